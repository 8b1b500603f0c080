"""The view in MLflow of a made-up sweep: what is logged is what is documented, again is the same, the winner's way."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from analysis import analyse
from lclab.reporting import make_report
from search_space.layout import TASKS
from sweeps.config import dump
from sweeps.home import Home
from sweeps.ledger import Ledger
from sweeps.registry import ALIAS, winner
from sweeps.tables import refresh_tables, write_tables
from sweeps.tracking import MlflowView
from tests.sweeps.made_up import made_up
from tests.sweeps.virtual import config
from trainer.corpus import Corpus

pytestmark = pytest.mark.slow
DOCUMENT = Path(__file__).parents[2] / "docs" / "mlflow.md"
CHOSEN = config("trials=18", "seeds=3", "recipe.steps=240", "rates=[0.5]")  # all kinds: pruned, failed, other rates


class Shown:
    """A sweep and what MLflow has of it."""

    def __init__(self, ledger: Ledger, home: Home, corpus: Corpus) -> None:
        self.ledger, self.home, self.corpus, self.name = ledger, home, corpus, ledger.config.name
        self.client = MlflowClient(tracking_uri=home.tracking_url)

    def close(self) -> None:
        """As a driver does that finds the sweep as it is."""
        view = MlflowView(self.ledger, self.home, self.corpus, dump(self.ledger.config))
        view.update(trial.number for trial in self.ledger.trials())
        frame, folder = write_tables(self.ledger, self.home.sweep(self.name)), self.home.sweep(self.name)
        analysis, files = make_report(folder)
        view.close(analysis, frame, files)

    def experiment(self) -> Any:
        return self.client.get_experiment_by_name(self.name)

    def runs(self) -> dict[str | None, Run]:
        """By trial; the parent's is None."""
        found = self.client.search_runs([self.experiment().experiment_id])
        return {run.data.tags.get("lclab.trial"): run for run in found}

    def versions(self) -> list[Any]:
        return self.client.search_model_versions(f"name = '{self.name}'", order_by=["version_number ASC"])

    def everything(self) -> dict[str, Any]:
        """But for the times at which MLflow's own records were changed."""
        runs = {}
        for number, run in self.runs().items():
            history = {m: [p.to_dictionary() for p in self.history(run, m)] for m in run.data.metrics}
            runs[number] = dict(run.info), run.data.to_dictionary(), history, self.artifacts(run)
        versions = [(v.version, v.run_id, v.tags, v.source, v.description, v.aliases) for v in self.versions()]
        return {"runs": runs, "versions": versions, "tags": self.experiment().tags}

    def history(self, run: Run, metric: str) -> list[Any]:
        return sorted(self.client.get_metric_history(run.info.run_id, metric), key=lambda m: (m.step, m.timestamp))

    def artifacts(self, run: Run) -> set[str]:
        return {artifact.path for artifact in self.client.list_artifacts(run.info.run_id)}


@pytest.fixture(scope="module")
def shown(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    home = Home(tmp_path_factory.mktemp("shown"))
    sweep = Shown(made_up(CHOSEN, home, failing=9), home, corpus)
    sweep.close()
    return sweep


def documented(section: str = "Names") -> dict[str, set[str]]:
    """The names in the first column of each table of a section, by heading."""
    found: dict[str, set[str]] = {}
    text = DOCUMENT.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    for heading, body in re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL):
        names = re.findall(r"^\| `(.+?)` \|", body, re.MULTILINE)
        assert len(names) == len(set(names)), heading
        found[heading] = {name.replace("TASK", task) for name in names for task in TASKS}
    return found


def test_every_name_is_documented_and_every_documented_name_is_there(shown: Shown) -> None:
    runs = shown.runs()
    parent, trials = runs.pop(None), list(runs.values())
    assert {run.data.tags["lclab.role"] for run in trials} == {"baseline", "control", "arm", "rate"}
    assert {run.data.tags["lclab.state"] for run in trials} == {"complete", "pruned", "failed"}

    def seen(names: Callable[[Run], Any]) -> set[str]:
        return {name for run in trials for name in names(run)}

    assert documented() == {
        "Experiment: tags": set(shown.experiment().tags),
        "Sweep: tags": set(parent.data.tags),
        "Sweep: metrics": set(parent.data.metrics),
        "Sweep: artifacts": shown.artifacts(parent),
        "Trial: params": seen(lambda run: run.data.params),
        "Trial: metrics": seen(lambda run: run.data.metrics),
        "Trial: tags": seen(lambda run: run.data.tags),
        "Trial: artifacts": seen(shown.artifacts),
        "Registered model: tags": set(shown.versions()[0].tags),
    }
    assert not parent.data.params


def test_closing_again_changes_nothing(shown: Shown) -> None:
    before = shown.everything()
    shown.close()
    assert shown.everything() == before
    assert len(before["versions"]) == 1


def test_the_winner_is_registered_with_its_evidence(shown: Shown) -> None:
    frame = refresh_tables(shown.home, shown.name)
    best = next(row for row in analyse(frame).rows if row.role in ("baseline", "arm"))
    effect, (version,) = best.effect, shown.versions()
    assert effect is not None and effect.low is not None, "the baseline has won: nothing is shown"
    assert {k: version.tags[k] for k in ("design", "verdict", "difference", "low", "high", "seeds", "rung")} == {
        "design": best.design,
        "verdict": best.verdict,
        "difference": str(effect.difference),
        "low": str(effect.low),
        "high": str(effect.high),
        "seeds": str(best.seeds),
        "rung": "2",
    }
    assert version.tags["data"] == shown.corpus.manifest["hash"]
    run = shown.client.get_run(version.run_id)
    assert run.data.params["design"] == best.design and run.data.params["rate"] == "1"
    assert version.source == run.info.artifact_uri
    assert shown.client.get_model_version_by_alias(shown.name, ALIAS).version == version.version


def test_the_table_has_the_runs_also_for_a_report(shown: Shown) -> None:
    frame = refresh_tables(shown.home, shown.name)
    runs = {number: run.info.run_id for number, run in shown.runs().items()}
    assert [runs[str(trial)] for trial in frame["trial"]] == frame["mlflow_run"].tolist()


def test_searches_find_what_the_table_has(shown: Shown) -> None:
    frame = refresh_tables(shown.home, shown.name)
    last = frame.sort_values("rung").drop_duplicates("trial", keep="last")
    wanted = last[(last["pooling"] == "concat") & (last["parallel"] < 1.5)]
    query = 'params.pooling = "concat" and metrics.heldout_parallel < 1.5'
    found = shown.client.search_runs([shown.experiment().experiment_id], query)
    assert {run.info.run_id for run in found} == set(wanted["mlflow_run"]) != set()
    rates = shown.client.search_runs([shown.experiment().experiment_id], 'params.rate = "0.5"')
    assert len(rates) == (last["role"] == "rate").sum() > 0


def test_arms_have_mean_and_deviation_over_seeds(shown: Shown) -> None:
    frame = refresh_tables(shown.home, shown.name)
    path = shown.client.download_artifacts(shown.runs()[None].info.run_id, "arms.json")
    table = json.loads(Path(path).read_text())
    arms = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    baseline = frame[(frame["role"] == "baseline") & (frame["rung"] == 2)]["parallel"]
    arm = arms[CHOSEN.baseline]
    assert (arm["n"], arm["mean"], arm["sd"]) == (3, pytest.approx(baseline.mean()), pytest.approx(baseline.std()))
    for run in shown.runs().values():
        if run.data.tags["lclab.role"] in ("baseline", "arm", "control"):
            arm = arms[run.data.tags["lclab.design"]]
            assert run.data.tags["lclab.verdict"] == arm["verdict"]
            assert run.data.metrics.get("arm_difference") == arm["difference"]


def test_another_winner_is_another_version(shown: Shown) -> None:
    """Last in this file: it leaves the registry changed."""
    frame = refresh_tables(shown.home, shown.name)
    others = frame[(frame["role"] == "baseline") & (frame["rung"] == 2)].index
    frame.loc[others, "parallel"] /= 10
    view = MlflowView(shown.ledger, shown.home, shown.corpus, dump(CHOSEN))
    for _ in range(2):
        view.close(analyse(frame), frame, [])
    first, second = shown.versions()
    assert second.tags["design"] == CHOSEN.baseline and second.tags["verdict"] == "baseline"
    assert "difference" not in second.tags
    assert shown.client.get_model_version_by_alias(shown.name, ALIAS).version == second.version != first.version
    shown.close()
    assert [v.tags["design"] for v in shown.versions()][::2] == [first.tags["design"]] * 2
    assert shown.client.get_model_version_by_alias(shown.name, ALIAS).version == shown.versions()[-1].version


def test_a_sweep_that_was_stopped_waits_and_has_no_winner(shown: Shown) -> None:
    chosen = config("name=stopped", "trials=10", "seeds=3", "recipe.steps=240")
    stopped = Shown(made_up(chosen, shown.home, stop_after=9), shown.home, shown.corpus)
    stopped.close()
    states = {run.data.tags.get("lclab.state"): run.info.status for run in stopped.runs().values()}
    assert states[None] == states["running"] == "SCHEDULED" and states["complete"] == "FINISHED"
    assert not stopped.versions()
    going_on = Shown(made_up(chosen, shown.home), shown.home, shown.corpus)
    going_on.close()
    runs = going_on.runs()
    assert runs[None].info.status == "FINISHED" and len(runs) == 11 and len(going_on.versions()) == 1


def test_a_control_never_wins_nor_does_what_got_not_to_the_end(shown: Shown) -> None:
    frame = refresh_tables(shown.home, shown.name)
    assert frame[frame["role"] == "control"]["parallel"].min() < frame[frame["role"] == "arm"]["parallel"].min()
    won = winner(analyse(frame), frame)
    assert won is not None and won.evidence["design"] in set(frame[frame["role"] == "arm"]["design"])
    early = frame[frame["rung"] < 2]
    assert winner(analyse(early), early) is None
