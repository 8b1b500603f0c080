"""MLflow's own pages, in Chromium, over a server that was away when the sweep ended."""

import json
from collections.abc import Generator
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

from lclab.reporting import make_report
from sweeps.config import dump
from sweeps.home import Home
from sweeps.tables import write_tables
from sweeps.tracking import MlflowView
from tests.chromium import Tab, browser, needs_chromium
from tests.processes import free_port, tracking_server
from tests.sweeps.made_up import made_up
from tests.sweeps.virtual import config
from trainer.corpus import Corpus

pytestmark = [pytest.mark.slow, needs_chromium, pytest.mark.timeout(900)]
CHOSEN = config("trials=14", "seeds=3", "recipe.steps=240")


class Pages:
    """tab: on the pages of `server`. client: of the same."""

    def __init__(self, tab: Tab, server: str, home: Home) -> None:
        self.tab, self.server, self.home = tab, server, home
        self.client = MlflowClient(tracking_uri=server)
        self.experiment, self.runs = home.sweep(CHOSEN.name).runs()

    def open(self, path: str, *texts: str) -> str:
        """The text of a page, when all of `texts` are on it."""
        self.tab.goto("about:blank")  # else only the fragment changes, and the page keeps what it has
        self.tab.goto(f"{self.server}/#{path}{'&' if '?' in path else '?'}workflowType=machine_learning")
        for text in texts:
            self.tab.wait_until(f"document.body.innerText.includes({json.dumps(text)})")
        return str(self.tab.evaluate("document.body.innerText"))

    def rows(self) -> list[dict[str, str]]:
        """Of the table of runs, best guess of what a person reads: text by column."""
        script = """() => [...document.querySelectorAll('.ag-center-cols-container .ag-row')].map(row =>
            Object.fromEntries([...document.querySelectorAll(`.ag-row[row-index="${row.getAttribute('row-index')}"]
            .ag-cell`)].map(cell => [cell.getAttribute('col-id').replaceAll('`', ''), cell.innerText.trim()])))"""
        return self.tab.evaluate(script)


@pytest.fixture(scope="module")
def pages(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Generator[Pages]:
    folder, port = tmp_path_factory.mktemp("ui"), free_port()
    home = Home(folder / "runs", tracking=f"http://127.0.0.1:{port}")
    home.path.mkdir()
    ledger = made_up(CHOSEN, home, failing=9)

    def draw() -> None:
        view = MlflowView(ledger, home, corpus, dump(CHOSEN))
        view.update(trial.number for trial in ledger.trials())
        sweep = home.sweep(CHOSEN.name)
        frame = write_tables(ledger, sweep)
        analysis, files = make_report(sweep)
        view.close(analysis, frame, files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        draw()
    assert home.sweep(CHOSEN.name).runs() == ("", {}), "no server was there"
    with tracking_server(folder, port), browser(2400, 1100) as tab:
        draw()
        yield Pages(tab, home.tracking_url, home)


def test_the_view_of_trials_shows_what_decides(pages: Pages) -> None:
    pages.open(
        f"/experiments/{pages.experiment}/runs?viewStateShareKey=trials", "Trials, best first", "14 matching runs"
    )
    pages.tab.wait(".ag-center-cols-container .ag-row")
    rows = pages.rows()
    assert len(rows) == 14
    columns = {"tags.lclab.state", "tags.lclab.verdict", "tags.lclab.role", "metrics.heldout_parallel"}
    columns |= {"metrics.arm_difference", "params.seed", "params.pooling", "params.window"}
    assert columns <= rows[0].keys()
    losses = [float(row["metrics.heldout_parallel"].rstrip("\N{HORIZONTAL ELLIPSIS}")) for row in rows[:-1]]
    assert losses == sorted(losses) and rows[-1]["tags.lclab.state"] == "failed"
    assert "concat-w16-causal-mlp-O0-n4 seed 0" in [row["attributes.Run Name"].split("\n")[-1] for row in rows]
    assert {row["tags.lclab.state"] for row in rows} == {"complete", "pruned", "failed"}


def test_the_view_of_arms_has_a_group_for_each_design(pages: Pages) -> None:
    designs = {pages.client.get_run(run).data.params["design"] for run in pages.runs.values()}
    pages.open(f"/experiments/{pages.experiment}/runs?viewStateShareKey=arms", "Group by: design", "Group: ")
    pages.tab.wait(".ag-center-cols-container .ag-row")
    groups = [row["attributes.Run Name"] for row in pages.rows() if "Group: " in row["attributes.Run Name"]]
    assert any(CHOSEN.baseline in group and group.split()[-1] == str(CHOSEN.seeds) for group in groups)
    assert len(groups) <= len(designs)


def test_charts_begin_with_the_losses(pages: Pages) -> None:
    path = f"/experiments/{pages.experiment}/runs?viewStateShareKey=trials&compareRunsMode=CHART"
    text = pages.open(path, "Designs\n(6)", "heldout_parallel_by_distance")
    pages.tab.wait(".js-plotly-plot .scatterlayer .trace")
    places = [text.index(f"\n{name}\n") for name in ("heldout_parallel", "train_loss", "arm_difference")]
    assert places == sorted(places)
    lines = pages.tab.evaluate("document.querySelector('.js-plotly-plot').querySelectorAll('.trace').length")
    assert lines >= 13, "a line for each trial that has come to a rung"


def test_a_search_is_typed_as_documented(pages: Pages) -> None:
    query = 'params.pooling = "concat" and metrics.heldout_parallel < 1.5'
    found = pages.client.search_runs([pages.experiment], query)
    order = "orderByAsc=true&orderByKey=" + quote("metrics.`heldout_parallel`")  # by time, they would be nested
    path = f"/experiments/{pages.experiment}/runs?{order}&searchFilter={quote(query)}"
    pages.open(path, f"{len(found)} matching runs", "concat-w16")
    assert 0 < len(found) < 14


def test_the_page_that_compares_opens_with_the_loss_and_what_differs(pages: Pages) -> None:
    done = pages.client.search_runs([pages.experiment], "tags.`lclab.state` = 'complete'")
    runs, experiments = (json.dumps(ids) for ids in ([run.info.run_id for run in done], [pages.experiment]))
    path = f"/compare-runs?runs={quote(runs)}&experiments={quote(experiments)}"
    text = pages.open(path, f"Comparing {len(done)} Runs from 1 Experiment", "Show diff only", "pooling")
    chosen = text[text.index("Metrics:") : text.index("Clear All")]
    assert chosen.split() == ["Metrics:", "heldout_parallel"]
    assert "concat-w16-causal-mlp-O0-n4 seed 0" in text


def test_the_run_of_the_sweep_says_what_was_learnt(pages: Pages) -> None:
    (parent,) = pages.client.search_runs([pages.experiment], "tags.`lclab.role` = 'sweep'")
    path = f"/experiments/{pages.experiment}/runs/{parent.info.run_id}"
    text = pages.open(path, "Against the baseline", "best_loss", "sigma", "Finished")
    pages.tab.click("text=Show more")
    cells = pages.tab.evaluate("[...document.querySelectorAll('table td')].map(cell => cell.innerText)")
    arm = cells.index(CHOSEN.baseline)
    assert cells[arm + 1 : arm + 3] == ["baseline", "3"]
    assert "lclab.metric" in text and "Child runs" in text
    pages.open(f"{path}/artifacts/arms.json", "View as table", "difference")
    pages.open(f"{path}/artifacts/report.html", "trials.parquet")


def test_a_trial_shows_its_data(pages: Pages) -> None:
    run = pages.client.get_run(pages.runs[0])
    assert run.inputs is not None
    data = run.inputs.dataset_inputs[0].dataset
    pages.open(f"/experiments/{pages.experiment}/runs/{run.info.run_id}", f"{data.name} ({data.digest})", "Parent run")


def test_the_registry_shows_the_candidate_and_why(pages: Pages) -> None:
    version = pages.client.get_model_version_by_alias(CHOSEN.name, "candidate")
    path = f"/models/{CHOSEN.name}/versions/{version.version}"
    text = pages.open(path, "candidate", "against the baseline", version.tags["data"])
    assert str(pages.client.get_run(str(version.run_id)).info.run_name) in text.replace("\n", " ")


def test_the_description_of_the_experiment_leads_to_the_views(pages: Pages) -> None:
    pages.open(f"/experiments/{pages.experiment}/runs")
    links = "[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))"
    pages.tab.wait_until(f"{links}.some(href => href && href.includes('viewStateShareKey=trials'))")
    with pages.tab.page.context.expect_page() as opened:  # a tab of its own
        pages.tab.evaluate("document.querySelector(\"a[href*='viewStateShareKey=trials']\").click()")
    opened.value.wait_for_function("document.body.innerText.includes('14 matching runs')")
    opened.value.close()
