"""From a made-up sweep and its ladder to a decision and a plan: what is promoted, as what, and what is kept of it."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from omegaconf import OmegaConf

from analysis.gate import Decision
from lclab.reporting import make_report
from search_space.errors import UsageError
from search_space.space import Space
from sweeps.fleet import Cluster
from sweeps.home import Home
from sweeps.mlflow_server import settle
from sweeps.promote import Promotion, promote, read_decision, save
from sweeps.registry import ALIAS, PROMOTED, register_decision
from sweeps.scale_up import Wish, target_of
from tests.analysis.ladders import Truth
from tests.sweeps.promotable import ARM, BASELINE, SMALL, SWEEP, home_of, made_up_ladder, made_up_sweep
from trainer.corpus import Corpus
from trainer.plan import dump, load
from trainer.prepare import CorpusConfig, prepare
from trainer.stages import run_stages
from trainer.trial import Interrupted

NAME = SWEEP.name
MINIATURE_OF = "concat-w1024-causal-mlp-O0"  # a ratio of 16 is not spelled


@pytest.fixture(scope="module")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With a ladder. Nothing is to be written to it."""
    home = home_of(tmp_path_factory.mktemp("finished"), corpus)
    made_up_sweep(home, corpus)
    made_up_ladder(home, corpus)
    return home


@pytest.fixture
def home(finished: Home, tmp_path: Path) -> Home:
    """One to write to."""
    return Home(shutil.copytree(finished.path, tmp_path / "runs", symlinks=True))


def without_ladder(home: Home) -> Home:
    (home.sweep(NAME).path / "ladder.json").unlink()
    return home


def files(home: Home) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in home.path.rglob("*") if path.is_file()}


def test_evidence_on_all_levels_promotes(finished: Home) -> None:
    before = files(finished)
    found = promote(finished, NAME, Wish())
    own, plan = found.decision, found.plan
    assert (own.status, own.design, own.reasons, own.evidence) == ("promoted", ARM, [], "ladder")
    assert own.high is not None and own.high < 0 and own.seeds == own.baseline_seeds == 3
    assert plan is not None and plan.design == ARM and plan.evidence == found.record
    assert files(finished) == before


def test_the_record_says_who_when_and_of_what(finished: Home, corpus: Corpus) -> None:
    found = promote(finished, NAME, SMALL)
    record = found.record
    assert record["decision"] == asdict(found.decision) and record["wish"] == asdict(SMALL)
    assert (record["sweep"], record["trained_as"], record["data"]) == (NAME, ARM, corpus.manifest["hash"])
    assert record["who"] and record["when"].endswith("+00:00") and record["commit"]
    assert OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(record)))) == record


def test_a_miniature_is_trained_as_what_it_stands_for(finished: Home) -> None:
    found = promote(finished, NAME, replace(SMALL, carried=MINIATURE_OF, tokens=1.0, batch=4_194_304, length=256,
                                            encoder="0.6b", decoder="0.6b"))  # fmt: skip
    assert found.decision.design == ARM and found.plan is not None and found.plan.design == MINIATURE_OF
    assert found.record["trained_as"] == MINIATURE_OF
    sums = sum(s.encoder_tokens for s in found.plan.stages), sum(s.decoder_tokens for s in found.plan.stages)
    assert sum(sums) == pytest.approx(350.04e9, abs=10)
    assert found.record["prediction"]["loss"] is None
    assert found.record["prediction"]["why"] == f"the ladder trained {ARM}, and the plan trains {MINIATURE_OF}"


LIKE = 8e-8  # times the published tokens: about as many per parameter as on the levels


@pytest.mark.parametrize("tokens", [LIKE / 9, LIKE, LIKE * 9])
def test_a_prediction_is_carried_over_where_loss_and_run_are_of_one_kind(finished: Home, tokens: float) -> None:
    """The run, if it reads as much text for its size as the levels did."""
    found = promote(finished, NAME, replace(SMALL, tokens=tokens))
    told = found.decision.prediction
    assert told is not None and told.trusted and found.plan is not None
    target = target_of(found.plan)
    assert (told.tokens, told.parameters) == (target.tokens, target.parameters)
    if tokens == LIKE:
        carried = found.record["prediction"]
        assert (carried["loss"], carried["low"], carried["high"]) == (told.loss, told.low, told.high)
        several, larger = carried["unlike"]
        assert several.startswith("4 schedules in a row") and larger.startswith("steps of ")
        assert promote(finished, NAME, replace(SMALL, tokens=tokens, batch=500)).record["prediction"]["unlike"] == [
            several
        ]
    else:
        assert found.record["prediction"]["loss"] is None
        assert "tokens per parameter and the levels" in found.record["prediction"]["why"]


def other_text(folder: Path, corpus: Corpus) -> Path:
    """Cut by the tokenizer of the corpus."""
    (folder / "text").mkdir()
    for i in range(30):
        (folder / "text" / f"{i}.txt").write_text(f"Another text, the {i}th of its kind. " * 60)
    made = CorpusConfig(str(folder / "text"), heldout=0.3, tokenizer=str(corpus.folder / "tokenizer.json"))
    return prepare(made, folder / "corpora", workers=1).folder


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"length": 512}, "what is held out is cut in another way: piece"),
        ({"encoder": "0.6b"}, "losses per token of two tokenizers are not comparable"),
        ({"data": "other"}, "the plan's corpus has another text to hold out"),
    ],
)
def test_a_prediction_of_another_loss_is_not_carried_over(
    change: dict[str, Any], why: str, finished: Home, corpus: Corpus, tmp_path: Path
) -> None:
    wish = replace(SMALL, **change)
    if wish.data:
        wish = replace(wish, data=str(other_text(tmp_path, corpus)))
    found = promote(finished, NAME, wish)
    assert found.decision.prediction is not None
    assert found.record["prediction"] == {"loss": None, "low": None, "high": None, "why": why}


def test_without_a_ladder_it_is_refused_unless_forced(home: Home) -> None:
    without_ladder(home)
    found = promote(home, NAME, SMALL)
    assert found.decision.status == "refused" and found.plan is None and found.cost is None
    assert found.trouble == f"it was not trained; `lclab sweep ladder {NAME}` does"
    (reason,) = found.decision.reasons
    assert reason.startswith("no ladder")
    forced = promote(home, NAME, replace(SMALL, force=True))
    assert forced.decision.status == "forced" and forced.decision.reasons == [reason]
    assert forced.plan is not None and forced.plan.evidence["decision"]["reasons"] == [reason]
    assert forced.record["prediction"]["why"] == "there is no ladder" and forced.record["wish"]["force"]


def test_a_refusal_leaves_no_plan(home: Home) -> None:
    folder = save(home, NAME, promote(home, NAME, SMALL))
    assert {path.name for path in folder.iterdir()} == {"decision.yaml", "plan.yaml"}
    refused = promote(without_ladder(home), NAME, SMALL)
    assert {path.name for path in save(home, NAME, refused).iterdir()} == {"decision.yaml"}
    assert OmegaConf.load(folder / "decision.yaml").decision.status == "refused"


def test_a_baseline_that_was_beaten_is_refused(finished: Home) -> None:
    decision = promote(finished, NAME, replace(SMALL, design=BASELINE)).decision
    assert decision.status == "refused" and f"{ARM} is better" in decision.reasons[0]


def test_a_gap_that_turns_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    """Better at every level and worse at the target, by its law."""
    home = home_of(tmp_path, corpus)
    turning = Truth(2.15, 0.02)
    made_up_sweep(home, corpus, arm=turning)
    made_up_ladder(home, corpus, arm=turning)
    decision = promote(home, NAME, Wish()).decision
    assert decision.high is not None and decision.high < 0
    assert decision.status == "refused" and any("may vanish or turn" in reason for reason in decision.reasons)


def test_a_ladder_with_a_level_that_goes_on_does_not_count(home: Home, corpus: Corpus) -> None:
    level = f"{NAME}.ladder-2"
    shutil.rmtree(home.sweep(level).path)
    shutil.copytree(home.sweep(f"{NAME}.ladder-1").path, home.sweep(level).path)  # a study of that name is finished
    config = OmegaConf.load(home.sweep(level).config)
    config.trials = 60
    home.sweep(level).config.write_text(OmegaConf.to_yaml(config))
    found = promote(home, NAME, SMALL)
    assert found.ladder is None and found.decision.status == "refused"
    assert "has trials left" in found.trouble


def test_an_unfinished_sweep_is_not_decided_on(corpus: Corpus, tmp_path: Path) -> None:
    home = home_of(tmp_path, corpus)
    made_up_sweep(home, corpus, stop_after=6)
    for force in (False, True):
        with pytest.raises(UsageError, match="sweep: 'small' has . trials left; finish it with `lclab sweep run`"):
            promote(home, NAME, replace(SMALL, force=force))


WRONG: list[tuple[dict[str, Any], Cluster | None, str]] = [
    ({"design": "mean-w4-causal-mlp-O0-n4"}, None, "design: 'mean-w4-causal-mlp-O0-n4' is not one of"),
    ({"design": "blind"}, None, "design: 'blind' is not one of"),
    ({"carried": "mean-w4"}, None, "'mean-w4'"),
    ({"encoder_weights": "a/b"}, None, "decoder_weights: none given"),
    ({"decoder_weights": "a/b"}, None, "encoder_weights: none given"),
    ({"tokens": 0.0}, None, "tokens: 0.0 is not a factor above 0"),
    ({"tokens": -1.0}, None, "tokens: -1.0 is not a factor above 0"),
    ({"tokens": float("nan")}, None, "tokens: nan is not a factor above 0"),
    ({"batch": 0}, None, "batch: 0 is not at least 1"),
    ({"length": 0}, None, "length: 0 is not at least 1"),
    ({"encoder": "7b"}, None, "encoder: '7b' is not base, 0.6b, 4b, 8b or sizes such as l4d256"),
    ({"decoder": "d0"}, None, "decoder: 'd0' has width 0"),
    ({"data": "/nowhere"}, None, "corpus: /nowhere has no readable manifest.json"),
    ({"name": "a b"}, None, "name: 'a b' cannot name a folder"),
    ({}, Cluster(1, 8, "tpu"), "cluster.kind: 'tpu' is not one of a100"),
    ({}, Cluster(1, 0, "h200"), "cluster.gpus: 0 is not at least 1"),
    ({}, Cluster(100, 8, "h200"), "cluster: 800 GPUs are more than the"),
    ({"encoder": "4b", "decoder": "8b"}, Cluster(1, 1, "a100"), "cluster: a step of .* needs .* GB"),
]


@pytest.mark.parametrize(("change", "cluster", "message"), WRONG)
def test_what_cannot_be_is_refused_in_a_line(
    change: dict[str, Any], cluster: Cluster | None, message: str, finished: Home
) -> None:
    before = files(finished)
    with pytest.raises(UsageError, match=message) as refused:
        promote(finished, NAME, replace(SMALL, **change), cluster)
    assert len(str(refused.value).splitlines()) == 1 and files(finished) == before


def test_a_cluster_gets_a_plan_of_its_own(finished: Home) -> None:
    cluster = Cluster(2, 8, "h200")
    found = promote(finished, NAME, Wish(encoder="0.6b", decoder="0.6b", length=2048), cluster)
    assert found.plan is not None and found.cost is not None and found.cost.total.gpu_hours > 0
    assert (found.plan.parallel.nodes, found.plan.parallel.devices, found.plan.parallel.strategy) == (2, 8, "fsdp")
    assert found.plan.evidence["cost"]["total"]["gpu_hours"] == pytest.approx(found.cost.total.gpu_hours)


@pytest.mark.parametrize("change", [lambda home: home, without_ladder])
def test_a_decision_is_read_as_it_was_written(change: Callable[[Home], Home], home: Home) -> None:
    folder = change(home).sweep(NAME)
    assert read_decision(folder) is None
    found = promote(home, NAME, SMALL)
    save(home, NAME, found)
    read = read_decision(folder)
    assert read is not None and read[0] == found.decision
    assert asdict(read[1]) == found.record["target"]
    if found.plan:
        assert load(folder.path / "promotion" / "plan.yaml") == found.plan


def test_the_report_has_the_decision(home: Home) -> None:
    save(home, NAME, promote(home, NAME, SMALL))
    folder = home.sweep(NAME)
    make_report(folder)
    for page in (folder.report, folder.report.with_suffix(".md")):
        assert f"Promoted: {ARM}" in page.read_text().replace("\\", "")
    without_ladder(home)
    save(home, NAME, promote(home, NAME, SMALL))
    make_report(folder)
    for page in (folder.report, folder.report.with_suffix(".md")):
        text = page.read_text().replace("\\", "")
        assert f"Refused: {ARM}" in text and "no ladder" in text


def test_the_report_says_why_a_ladder_is_not_shown(corpus: Corpus, tmp_path: Path) -> None:
    """Widths that a published run does not have in common leave no target to see it from."""
    tied = replace(SWEEP, size=replace(SWEEP.size, embeddings="separate"), baseline=f"{BASELINE}-tied")
    tied = replace(tied, space=Space(designs=[f"{BASELINE}-tied", ARM]))
    home = home_of(tmp_path, corpus)
    made_up_sweep(home, corpus, tied)
    (home.sweep(NAME).path / "ladder.json").write_text('{"levels": []}')
    folder = home.sweep(NAME)
    make_report(folder)
    for page in (folder.report, folder.report.with_suffix(".md")):
        assert "There is no ladder: the published run" in page.read_text() and "cannot be tied" in page.read_text()


@pytest.mark.slow
def test_the_registry_has_the_decision(home: Home) -> None:
    settle()
    client = MlflowClient(tracking_uri=home.tracking_url)
    found = promote(home, NAME, SMALL)
    frame = found.frame.copy()
    experiment = client.create_experiment(NAME, home.artifacts_of(NAME))
    runs = {int(trial): client.create_run(experiment).info.run_id for trial in frame["trial"].unique()}

    def register(decision: Decision) -> bool:
        return register_decision(client, NAME, decision, frame, {"promotion.who": "somebody"})

    assert not register(found.decision), "no trial of it is in MLflow"
    frame["mlflow_run"] = frame["trial"].map(runs)
    assert register(found.decision) and register(found.decision)
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    first = int(frame.loc[frame["design"] == ARM, "trial"].min())
    assert version.run_id == runs[first]
    assert client.get_model_version_by_alias(NAME, PROMOTED).version == version.version
    assert version.tags["promotion.status"] == "promoted" and version.tags["promotion.who"] == "somebody"
    assert float(version.tags["promotion.difference"]) == found.decision.difference
    assert found.decision.prediction is not None
    assert float(version.tags["promotion.predicted_low"]) == found.decision.prediction.low
    assert "promotion.reasons" not in version.tags

    refused = promote(home, NAME, replace(SMALL, design=BASELINE)).decision
    assert register(refused)
    newest, _ = client.search_model_versions(f"name = '{NAME}'", order_by=["version_number DESC"])
    assert newest.tags["promotion.status"] == "refused" and ARM in newest.tags["promotion.reasons"]
    assert newest.tags["promotion.design"] == BASELINE
    assert client.get_model_version_by_alias(NAME, PROMOTED).version == version.version

    client.set_model_version_tag(NAME, newest.version, "verdict", "of the sweep")
    client.set_registered_model_alias(NAME, ALIAS, newest.version)
    assert register(replace(refused, status="promoted", reasons=[], prediction=None))
    again = client.get_model_version_by_alias(NAME, PROMOTED)
    assert again.version == newest.version and again.tags["verdict"] == "of the sweep"
    assert not {"promotion.reasons", "promotion.predicted_low"} & again.tags.keys(), "of the decision before"
    assert client.get_model_version_by_alias(NAME, ALIAS).version == newest.version

    assert register(refused), "the one that is promoted"
    assert PROMOTED not in client.get_registered_model(NAME).aliases
    assert register(refused) and register(found.decision)
    assert client.get_model_version_by_alias(NAME, PROMOTED).run_id == runs[first]


@pytest.mark.slow
def test_a_plan_of_the_sweeps_own_size_can_be_trained(home: Home) -> None:
    found: Promotion = promote(home, NAME, SMALL)
    plan = load(save(home, NAME, found) / "plan.yaml")
    assert plan == found.plan and dump(plan) == dump(found.plan)
    seen: list[int] = []

    def watch(stage: int, step: int, tokens: int) -> bool:
        seen.append(tokens)
        return False

    with pytest.raises(Interrupted, match="stopped at step 1"):
        run_stages(plan, home.path / "plans" / plan.name, watch)
    (tokens,) = seen
    stage = plan.stages[0]
    assert tokens == pytest.approx(stage.pieces * plan.length, abs=plan.length)
