"""`lclab sweep ladder`, `promote`, `launch`, `train` and `export`, on made-up evidence and once for real."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from lclab.__main__ import main
from sweeps.fleet import Cluster
from sweeps.home import Home
from sweeps.promote import promote, read_decision
from sweeps.registry import PROMOTED
from sweeps.scale_up import Wish
from sweeps.tables import refresh_tables
from tests.sweeps.promotable import ARM, BASELINE, SWEEP, home_of, made_up_ladder, made_up_sweep
from tests.sweeps.virtual import MINI
from trainer.corpus import Corpus
from trainer.plan import dump, load
from trainer.prepare import CorpusConfig, prepare
from trainer.stages import stage_folder

NAME = SWEEP.name
AWAY = "http://127.0.0.1:9"  # nothing listens there
SMALL = ("--encoder", "base", "--decoder", "base", "--tokens", "1e-6", "--batch", "2048", "--length", "256")


@dataclass
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def lclab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["lclab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Said(int(end.value.code or 0), captured.out, captured.err)

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return call


@pytest.fixture(scope="module")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep and its ladder; the server that showed its trials is gone."""
    home = home_of(tmp_path_factory.mktemp("finished"), corpus)
    made_up_sweep(home, corpus, replace(SWEEP, tracking_url=AWAY))
    home.sweep(NAME).note_runs("1", {number: f"run{number}" for number in range(8)})
    refresh_tables(home, NAME)
    made_up_ladder(home, corpus)
    return home.path


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "runs", symlinks=True)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_promoted(lclab: Callable[..., Said], home: Path) -> None:
    done = lclab("promote", NAME, *SMALL, "--home", home)
    assert done.code == 0, done.err
    folder = home / NAME / "promotion"
    assert f"Promoted: {ARM}" in done.out and f"lclab train {folder / 'plan.yaml'}" in done.out
    decision = yaml.safe_load((folder / "decision.yaml").read_text())
    plan = load(folder / "plan.yaml")
    assert decision["decision"]["status"] == "promoted" and plan.evidence == decision and plan.design == ARM
    assert [plan.size.encoder, plan.size.decoder] == [SWEEP.size.encoder, SWEEP.size.decoder]
    for page in ("report.html", "report.md"):
        assert f"Promoted: {ARM}" in (home / NAME / page).read_text().replace("\\", "")


def test_a_server_that_is_away_keeps_nobody_from_the_plan(lclab: Callable[..., Said], home: Path) -> None:
    done = lclab("promote", NAME, *SMALL, "--home", home)
    assert done.code == 0 and "MLflow was not told: " in done.out
    assert load(home / NAME / "promotion/plan.yaml").tracking_url == AWAY


def test_refused_and_forced(lclab: Callable[..., Said], home: Path) -> None:
    (home / NAME / "ladder.json").unlink()
    refused = lclab("promote", NAME, *SMALL, "--home", home, "--json")
    told = json.loads(refused.out)
    assert refused.code == 1 and told["status"] == "refused" and told["plan"] is None
    assert "against it: no ladder" in refused.err and f"lclab sweep ladder {NAME}" in refused.err
    assert [path.name for path in (home / NAME / "promotion").iterdir()] == ["decision.yaml"]
    forced = lclab("promote", NAME, *SMALL, "--force", "--home", home, "--json")
    assert forced.code == 0 and json.loads(forced.out)["reasons"] == told["reasons"]
    plan = load(Path(json.loads(forced.out)["plan"]))
    assert plan.evidence["decision"]["status"] == "forced" and plan.evidence["decision"]["reasons"] == told["reasons"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--design", "mean-w4-causal-mlp-O0-n4"], "design: 'mean-w4-causal-mlp-O0-n4' is not one of"),
        (["--encoder-weights", "lab/one"], "decoder_weights: none given"),
        (["--tokens", "0"], "tokens: 0.0 is not a factor above 0"),
        (["--encoder", "7b"], "encoder: '7b' is not base, 0.6b, 4b, 8b or sizes"),
        (["--data", "/nowhere"], "corpus: /nowhere has no readable manifest.json"),
        (["--nodes", "1", "--kind", "tpu"], "cluster.kind: 'tpu' is not one of a100, h100"),
        (["--nodes", "1", "--gpus", "1", "--kind", "a100", "--encoder", "4b", "--decoder", "8b"], "cluster: a step of"),
        (["--encoder", "0.6b", "--dry-run"], "data: a dry run reads a batch of the text to train on"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    options: list[str], message: str, lclab: Callable[..., Said], finished: Path
) -> None:
    before = contents(finished)
    done = lclab("promote", NAME, *SMALL, *options, "--home", finished)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and f"lclab: {message}" in done.err
    assert not done.out and contents(finished) == before


def test_an_unfinished_sweep_is_one_line_too(lclab: Callable[..., Said], corpus: Corpus, tmp_path: Path) -> None:
    home = home_of(tmp_path, corpus)
    made_up_sweep(home, corpus, stop_after=6)
    before = contents(tmp_path)
    done = lclab("promote", NAME, *SMALL, "--force", "--home", tmp_path)
    assert done.code == 2 and re.fullmatch(r"lclab: sweep: 'small' has \d trials left; .*\n", done.err)
    assert contents(tmp_path) == before


def test_a_dry_run_reads_the_text_and_writes_nothing(lclab: Callable[..., Said], finished: Path) -> None:
    before = contents(finished)
    done = lclab("promote", NAME, *SMALL, "--dry-run", "--home", finished)
    assert done.code == 0 and "Dry run: 30,784 parameters" in done.out, done.err
    told = json.loads(lclab("promote", NAME, *SMALL, "--dry-run", "--home", finished, "--json").out)
    assert told["parameters"] == 30_784 and told["plan"] is None and len(told["steps"]) == 4
    assert all(f"  {stage}: " in done.out and step["pieces"] > 0 for stage, step in told["steps"].items())
    assert contents(finished) == before


def test_text_of_another_tokenizer_is_not_trained_on(
    lclab: Callable[..., Said], home: Path, text_folder: Path, tmp_path: Path
) -> None:
    assert lclab("promote", NAME, *SMALL, "--home", home).code == 0
    other = prepare(CorpusConfig(str(text_folder), vocab=290, heldout=0.3), tmp_path / "other", workers=1)
    done = lclab("train", home / NAME / "promotion/plan.yaml", f"corpus={other.folder}", "--home", home)
    assert done.code == 2 and done.err.startswith("lclab: corpus: the tokenizer of")
    assert not (home / "plans").exists()


@pytest.fixture(scope="module")
def large(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for two nodes of eight GPUs."""
    wish = Wish(encoder="0.6b", decoder="0.6b", length=2048)
    found = promote(Home(finished), NAME, wish, Cluster(2, 8, "h100"))
    assert found.plan is not None and found.plan.parallel.ranks == 16
    file = tmp_path_factory.mktemp("large") / "plan.yaml"
    file.write_text(dump(found.plan))
    return file


def test_files_to_launch_elsewhere(lclab: Callable[..., Said], large: Path) -> None:
    where = ("--nodes", 2, "--gpu", "h100", "--home", "/lab/runs")
    slurm = lclab("launch", large, "--kind", "slurm", *where)
    assert slurm.code == 0 and "#SBATCH --nodes=2" in slurm.out and str(large) in slurm.out
    assert "--nproc-per-node=8" in slurm.out
    job = lclab("launch", large, "--kind", "job", *where)
    assert job.code == 0 and job.out.startswith("ray job submit") and "plan.yaml --ray --home /lab/runs" in job.out
    kuberay = lclab("launch", large, "--kind", "kuberay", *where, "--image", "lab/lclab:1")
    about, ray_job = yaml.safe_load_all(kuberay.out)
    (text,) = about["data"].values()
    assert yaml.safe_load(text) == yaml.safe_load(large.read_text()) and ray_job["kind"] == "RayJob"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "kuberay", "--nodes", "2"], "image: a RayJob needs one"),
        (["--kind", "slurm", "--nodes", "3"], "parallel: the plan is for 16 ranks, and the cluster has 24 GPUs"),
        (["--kind", "kuberay", "--image", "a:1"], "parallel: the plan is for 16 ranks, and the cluster has 8 GPUs"),
        (["--kind", "slurm", "--nodes", "2", "--gpu", "tpu"], "cluster.kind: 'tpu' is not one of"),
        (["--kind", "job", "--home", "runs"], "home: 'runs' is not the full path"),
    ],
)
def test_what_cannot_be_launched(options: list[str], message: str, lclab: Callable[..., Said], large: Path) -> None:
    done = lclab("launch", large, *options)
    assert done.code == 2 and not done.out and f"lclab: {message}" in done.err and len(done.err.splitlines()) == 1


def test_one_process_is_no_job_of_ray(lclab: Callable[..., Said], home: Path) -> None:
    assert lclab("promote", NAME, *SMALL, "--home", home).code == 0
    file = home / NAME / "promotion/plan.yaml"
    for kind in ("job", "kuberay"):
        done = lclab("launch", file, "--kind", kind, "--gpus", 1, "--image", "a:1")
        assert done.code == 2 and "parallel.strategy: Ray Train runs ddp or fsdp" in done.err
    assert lclab("launch", tmp := file.with_name("none.yaml"), "--kind", "job").err.startswith(f"lclab: {tmp}: ")


@pytest.mark.parametrize("option", ["--sizes=1,2", "--sizes=a", "--seeds=1", "--design=blind", "--sizes=nan,1,2"])
def test_a_ladder_that_cannot_be(option: str, lclab: Callable[..., Said], finished: Path) -> None:
    before = contents(finished)
    done = lclab("sweep", "ladder", NAME, option, "--home", finished)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and not done.out and contents(finished) == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_a_sweep_to_an_export(lclab: Callable[..., Said], text_folder: Path, tmp_path: Path) -> None:
    """With real training at every step; what so little of it shows is no evidence, so it takes --force."""
    home = tmp_path / "runs"
    sweep = lclab(
        *("sweep", "run", MINI, "--home", home, f"corpus.source={text_folder}", "metric=continue", "controls=[]"),
        *(f"space.designs=[{BASELINE},{ARM}]", "ablations=false", "sampler=grid", "replicates=2", "trials=4"),
        *("pruner=none", "recipe.format=published", "recipe.piece=256"),
    )
    assert sweep.code == 0, sweep.err
    levels: list[dict[Path, int]] = []
    for seeds in (2, 2, 3):
        ladder = lclab("sweep", "ladder", "mini", "--top", 1, "--seeds", seeds, "--home", home, "--json")
        assert ladder.code == 0, ladder.err
        told = json.loads(ladder.out.splitlines()[-1])
        assert told["levels"] == [f"mini.ladder-{factor}" for factor in ("0.5", "1", "2")] and not told["trouble"]
        levels.append({path: path.stat().st_mtime_ns for path in home.glob("mini.ladder-*/trials/*/rung-*.json")})
    assert len(levels[0]) == 24 and levels[1] == levels[0], "what was trained is not trained again"
    assert len(levels[2]) == 36 and levels[2].items() > levels[0].items(), "a third seed is added"
    promoted = lclab("promote", "mini", *SMALL[:4], "--tokens", "3e-7", *SMALL[6:], "--force", "--home", home)
    assert promoted.code == 0, promoted.err
    decided = read_decision(Home(home).sweep("mini"))
    assert decided is not None and decided[0].status == "forced" and decided[0].prediction is not None
    client = MlflowClient(tracking_uri=Home(home).tracking_url)
    version = client.get_model_version_by_alias("mini", PROMOTED)
    assert version.tags["promotion.status"] == "forced" and version.tags["promotion.design"] == decided[0].design
    file = home / "mini/promotion/plan.yaml"
    plan = load(file)
    trained = lclab("train", file, "--home", home)
    assert trained.code == 0, trained.err
    told = plan.evidence["prediction"]
    assert told["loss"] is None and "tokens per parameter and the levels" in told["why"]
    assert "Held-out loss (continue): " in trained.out and "nothing was predicted" in trained.out
    stage = stage_folder(home / "plans" / plan.name, 3, plan.stages[3])
    assert f"lclab export {stage} OUT" in trained.out
    exported = lclab("export", stage, tmp_path / "out", "--ours")
    assert exported.code == 0 and (tmp_path / "out/decoder/model.safetensors").is_file(), exported.err
