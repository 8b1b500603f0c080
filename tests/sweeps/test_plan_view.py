"""The view in MLflow of promoted runs that were really trained: nothing twice, nothing missing, all documented."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from analysis import analyse
from analysis.gate import Prediction, decide
from search_space.errors import UsageError
from sweeps.full_run import run_plan
from sweeps.home import Home
from sweeps.plan_view import PlanView
from sweeps.registry import PROMOTED, register_decision
from sweeps.tables import refresh_tables
from tests.processes import free_port, tracking_server
from tests.sweeps.made_up import made_up
from tests.sweeps.test_tracking import CHOSEN, Shown, documented
from tests.trainer.staged import STEPS, plan, stop_after
from trainer.corpus import Corpus
from trainer.plan import Plan, Rates, dump
from trainer.stages import Outcome, outcome_of, read_state, run_stages, stage_folder
from trainer.trial import Diverged, Interrupted, OutOfMemory, RungResult

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NEVER = 1e6  # seconds until the view looks by itself: here it is told to
PREDICTED = {"loss": 5.0, "low": 1.0, "high": 9.0}


@pytest.fixture(scope="module")
def wanted(corpus: Corpus) -> Plan:
    return replace(plan(corpus.folder), evidence={"prediction": PREDICTED, "sweep": "small"})


@pytest.fixture(scope="module")
def partly(wanted: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in the midst of its second stage."""
    folder = tmp_path_factory.mktemp("partly")
    with pytest.raises(Interrupted):
        run_stages(wanted, folder, stop_after(STEPS + 3))
    return folder


@pytest.fixture(scope="module")
def whole(wanted: Plan, partly: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, continued to its end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(partly, folder)
    run_stages(wanted, folder)
    return folder


def outcome(wanted: Plan, whole: Path) -> Outcome:
    ends = [RungResult.load(RungResult.path(stage_folder(whole, i, s), 1)) for i, s in enumerate(wanted.stages)]
    return outcome_of(wanted, ends)


def run_in(home: Home, wanted: Plan) -> Run:
    """The only one."""
    client = MlflowClient(home.tracking_url)
    experiment = client.get_experiment_by_name(wanted.name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def points(home: Home, run: Run) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every point of every metric, whatever is there twice included."""
    client = MlflowClient(home.tracking_url)
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: sorted((m.step, m.value) for m in history) for name, history in histories.items()}


def expected(wanted: Plan, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What the folder holds, stage after stage."""
    found: dict[str, list[tuple[int, float]]] = {}
    before = 0
    for number, stage in enumerate(read_state(wanted, folder)):
        rows = [("train_loss", tokens, loss) for tokens, loss, _ in stage.curve]
        rows += [("learning_rate", tokens, rate) for tokens, _, rate in stage.curve]
        rows += [(f"heldout_{task}", e.tokens, loss) for e in stage.evaluations for task, loss in e.loss.items()]
        for name, tokens, value in rows:
            found.setdefault(name, []).append((before + tokens, value))
            found.setdefault(f"{number}-{stage.name}/{name}", []).append((tokens, value))
        found.setdefault("stage", []).append((before, number))
        before += stage.tokens
    return {name: sorted(rows) for name, rows in found.items()}


def same(one: dict[str, list[tuple[int, float]]], other: dict[str, list[tuple[int, float]]]) -> bool:
    """Values from an evaluation at a stage's end and from the stage's result agree to rounding."""
    return one.keys() == other.keys() and all(
        [s for s, _ in one[k]] == [s for s, _ in other[k]]
        and [v for _, v in one[k]] == pytest.approx([v for _, v in other[k]])
        for k in one
    )


def test_a_stopped_run_is_shown_as_far_as_it_got(corpus: Corpus, wanted: Plan, partly: Path, tmp_path: Path) -> None:
    """Looked at twice, nothing doubles."""
    home = Home(tmp_path)
    view = PlanView(wanted, partly, home, corpus, NEVER)
    view.update()
    run = run_in(home, wanted)
    assert run.info.status == "RUNNING" and run.data.tags["lclab.stage"] == "encoder"
    first = points(home, run)
    assert same(first, expected(wanted, partly)) and len(first["train_loss"]) == STEPS + 3
    view.update()
    view.close("SCHEDULED")
    run = run_in(home, wanted)
    assert run.info.status == "SCHEDULED" and not [tag for tag in run.data.tags if "outcome" in tag]
    assert points(home, run) == first


def test_before_anything_is_trained_there_is_the_plan(corpus: Corpus, wanted: Plan, tmp_path: Path) -> None:
    home = Home(tmp_path)
    PlanView(wanted, tmp_path / "run", home, corpus, NEVER).close("SCHEDULED")
    run = run_in(home, wanted)
    assert run.data.tags["lclab.stage"] == "adapter" and not run.data.metrics
    file = MlflowClient(home.tracking_url).download_artifacts(run.info.run_id, "plan.yaml")
    assert Path(file).read_text() == dump(wanted)


def test_a_failure_says_why_until_the_run_goes_on(corpus: Corpus, wanted: Plan, tmp_path: Path) -> None:
    """A rate at which the loss is soon no number, and then one that trains."""
    home, folder = Home(tmp_path), tmp_path / "plans/staged"
    first = wanted.stages[0]
    wild = replace(wanted, stages=[replace(first, rates=Rates(1e30, 1e30, 1e30)), *wanted.stages[1:]], lowest=1e30)
    wild = replace(wild, optim=replace(wild.optim, clip=1e30))
    folder.mkdir(parents=True)
    with pytest.raises(Diverged):
        run_plan(wild, folder, home, corpus, lambda: run_stages(wild, folder))
    run = run_in(home, wanted)
    assert run.info.status == "FAILED" and run.data.tags["lclab.reason"].startswith("Diverged: ")
    assert run.data.tags["mlflow.note.content"] == run.data.tags["lclab.reason"]
    shutil.rmtree(folder)
    run_plan(wanted, folder, home, corpus, lambda: run_stages(wanted, folder))
    again = run_in(home, wanted)
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"
    assert not {"lclab.reason", "mlflow.note.content"} & again.data.tags.keys()


def test_a_reason_fits_its_tag_and_spares_what_somebody_wrote(corpus: Corpus, wanted: Plan, tmp_path: Path) -> None:
    home, folder = Home(tmp_path), tmp_path / "run"
    PlanView(wanted, folder, home, corpus, NEVER).close("FAILED", fault=OutOfMemory("too large " * 1000))
    run, client = run_in(home, wanted), MlflowClient(home.tracking_url)
    assert run.info.status == "FAILED" and run.data.tags["lclab.reason"].startswith("OutOfMemory: too large")
    for fault in (UsageError("corpus: it is gone"), None):
        client.set_tag(run.info.run_id, "mlflow.note.content", "a smaller one next")
        PlanView(wanted, folder, home, corpus, NEVER).close("FAILED" if fault else "SCHEDULED", fault=fault)
        run = run_in(home, wanted)
        assert run.data.tags["mlflow.note.content"] == "a smaller one next"
        assert run.data.tags.get("lclab.reason") == (fault and "UsageError: corpus: it is gone")


def test_another_process_goes_on_with_the_same_run(
    corpus: Corpus, wanted: Plan, partly: Path, whole: Path, tmp_path: Path
) -> None:
    """The first is killed while its run is `RUNNING`."""
    home = Home(tmp_path)
    script = """if True:
        import os, signal, sys
        from pathlib import Path
        from sweeps.home import Home
        from sweeps.plan_view import PlanView
        from trainer.corpus import Corpus
        from trainer.plan import load
        file, folder, home, corpus = map(Path, sys.argv[1:])
        PlanView(load(file), folder, Home(home), Corpus(corpus, verify=False), 1e6).update()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    file = tmp_path / "plan.yaml"
    file.write_text(dump(wanted))
    command = [sys.executable, "-c", script, *map(str, (file, partly, tmp_path, corpus.folder))]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, env=os.environ)
    assert done.returncode == -9, done.stderr
    before = run_in(home, wanted)
    assert before.info.status == "RUNNING" and len(points(home, before)["train_loss"]) == STEPS + 3
    PlanView(wanted, whole, home, corpus, NEVER).close("FINISHED", outcome(wanted, whole))
    run = run_in(home, wanted)
    assert run.info.run_id == before.info.run_id and run.info.status == "FINISHED"
    assert same(points(home, run), expected(wanted, whole))
    assert run.inputs is not None and len(run.inputs.dataset_inputs) == 1
    ended = outcome(wanted, whole)
    assert run.data.tags["lclab.outcome.verdict"] == ended.verdict == "inside"
    assert float(run.data.tags["lclab.outcome.loss"]) == ended.loss
    assert run.data.tags["lclab.stage"] == "sft"
    PlanView(wanted, whole, home, corpus, NEVER).close("FINISHED", ended)
    again = run_in(home, wanted)
    assert again.data.tags == run.data.tags and points(home, again) == points(home, run)


def test_without_a_prediction_the_outcome_has_a_loss_alone(
    corpus: Corpus, wanted: Plan, whole: Path, tmp_path: Path
) -> None:
    home, blank = Home(tmp_path), replace(wanted, evidence={})
    PlanView(blank, whole, home, corpus, NEVER).close("FINISHED", outcome(blank, whole))
    tags = run_in(home, blank).data.tags
    told = {name.removeprefix("lclab.outcome.") for name in tags if name.startswith("lclab.outcome.")}
    assert told == {"metric", "loss", "verdict"} and tags["lclab.outcome.verdict"] == "no prediction"
    assert "lclab.sweep" not in tags


def test_a_stage_that_goes_back_hides_what_the_next_had_begun(
    corpus: Corpus, wanted: Plan, partly: Path, tmp_path: Path
) -> None:
    """Its last checkpoint was damaged before the next stage had one: its curve is short again, and so would be the
    steps at which the next one stands."""
    folder, home = tmp_path / "run", Home(tmp_path)
    shutil.copytree(partly, folder)
    RungResult.path(stage_folder(folder, 0, wanted.stages[0]), 1).unlink()
    PlanView(wanted, folder, home, corpus, NEVER).close("SCHEDULED")
    run = run_in(home, wanted)
    assert run.data.tags["lclab.stage"] == "adapter"
    assert not [name for name in run.data.metrics if name.startswith("1-encoder/")]
    PlanView(wanted, partly, home, corpus, NEVER).close("SCHEDULED")
    assert same(points(home, run_in(home, wanted)), expected(wanted, partly))


def test_a_server_that_was_away_is_made_up_for(
    corpus: Corpus, wanted: Plan, partly: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there when the view begins, goes again, and has not been there when the run ended."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port, folder = free_port(), tmp_path / "run"
    home = Home(tmp_path / "runs", tracking=f"http://127.0.0.1:{port}")
    shutil.copytree(partly, folder)
    view = PlanView(wanted, folder, home, corpus, NEVER)
    view.update()
    with tracking_server(tmp_path, port):
        view.update()
        assert same(points(home, run_in(home, wanted)), expected(wanted, partly))
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    ended = outcome(wanted, whole)
    view.close("FINISHED", ended)
    with tracking_server(tmp_path, port):
        run = run_in(home, wanted)
        assert run.info.status == "RUNNING" and len(points(home, run)["train_loss"]) == STEPS + 3
        PlanView(wanted, folder, home, corpus, NEVER).close("FINISHED", ended)
        run = run_in(home, wanted)
        assert run.info.status == "FINISHED" and run.data.tags["lclab.outcome.verdict"] == "inside"
        assert same(points(home, run), expected(wanted, whole))


def test_points_that_got_through_unheard_are_not_sent_again(
    corpus: Corpus, wanted: Plan, partly: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes a batch, and the connection is lost before it has said so."""
    home, folder = Home(tmp_path), tmp_path / "run"
    shutil.copytree(partly, folder)
    view = PlanView(wanted, folder, home, corpus, NEVER)
    view.update()
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    log_batch, lost = MlflowClient.log_batch, []

    def loses_the_answer(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        answer = log_batch(self, *args, **kwargs)
        if kwargs.get("metrics") and not lost:
            lost.append(True)
            raise ConnectionResetError("connection reset by peer")
        return answer

    monkeypatch.setattr(MlflowClient, "log_batch", loses_the_answer)
    view.update()
    assert lost
    view.close("FINISHED", outcome(wanted, whole))
    run = run_in(home, wanted)
    assert run.info.status == "FINISHED"
    assert same(points(home, run), expected(wanted, whole))


def names_in(section: str, stages: list[str]) -> dict[str, set[str]]:
    """What docs/mlflow.md names, with K-STAGE and STAGE spelt out."""
    return {
        heading: {name.replace("K-", f"{k}-").replace("STAGE", s) for name in names for k, s in enumerate(stages)}
        for heading, names in documented(section).items()
    }


def test_every_name_is_documented_and_every_documented_name_is_there(
    corpus: Corpus, wanted: Plan, whole: Path, tmp_path: Path
) -> None:
    home = Home(tmp_path / "plan")
    home.path.mkdir()
    PlanView(wanted, whole, home, corpus, NEVER).close("FINISHED", outcome(wanted, whole))
    run, client = run_in(home, wanted), MlflowClient(home.tracking_url)
    sweep = Shown(made_up(CHOSEN, Home(tmp_path / "sweep")), Home(tmp_path / "sweep"), corpus)
    sweep.close()
    frame = refresh_tables(sweep.home, sweep.name)
    analysis = analyse(frame)
    decision = decide(analysis, frame, None, force=True)
    numbers: dict[str, Any] = {field.name: 1.0 for field in fields(Prediction)}
    numbers |= {"parameters": 1, "levels": [], "checks": {}, "trusted": True, "limits": []}
    forecast = Prediction(**numbers)
    decision = replace(decision, prediction=forecast, level="sweep.ladder-2")
    more = dict.fromkeys((f"promotion.{n}" for n in ("who", "when", "commit", "data", "trained_as")), "known")
    assert register_decision(sweep.client, sweep.name, decision, frame, more)
    version = sweep.client.get_model_version_by_alias(sweep.name, PROMOTED)
    found = {
        "Run: experiment": set(client.get_experiment(run.info.experiment_id).tags),
        "Run: params": set(run.data.params),
        "Run: metrics": set(run.data.metrics),
        "Run: tags": set(run.data.tags),
        "Run: artifacts": {artifact.path for artifact in client.list_artifacts(run.info.run_id)},
        "Registered model: decision": {name for name in version.tags if name.startswith("promotion.")},
    }
    assert found == names_in("Names of a promoted run", [stage.name for stage in wanted.stages])
