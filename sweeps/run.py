"""Run a sweep: everything in its place, the driver in the middle. The same call starts, continues and finishes it."""

import os
import signal
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from analysis import Analysis
from search_space.design import Design
from search_space.errors import UsageError
from search_space.files import write_text
from sweeps.aside import Aside
from sweeps.config import SweepConfig, differences, dump, load
from sweeps.driver import Driver, Snapshot
from sweeps.executor import Job
from sweeps.home import Home, SweepFolder, hide, reachable, setting_up
from sweeps.ledger import Assignment, Ledger
from sweeps.ray_executor import RayExecutor, knock
from sweeps.tables import write_tables
from sweeps.tracking import MlflowView
from trainer.corpus import Corpus
from trainer.heldout import check_fit
from trainer.prepare import prepare
from trainer.trial import TrialSpec

__all__ = ["Outcome", "run_sweep"]

CHANGEABLE = {
    "trials",
    "seeds",
    "workers",
    "threads",
    "gpus",
    "address",
    "retries",
    "timeout",
    "tracking_url",
    "parallel.loaders",
    "parallel.patience",
}
"""Keys that may change when a sweep is continued: none of them changes what a trial computes."""

Report = Callable[[SweepFolder], tuple[Analysis, list[Path]]]
"""Makes of a sweep's tables what is shown of it: the analysis, and files for the parent run."""


@dataclass(frozen=True)
class Outcome:
    """stopped: whether trials are left to run. trouble: why it stopped, where that was the machine's doing."""

    folder: SweepFolder
    analysis: Analysis
    stopped: bool
    trouble: str = ""


def run_sweep(
    config: SweepConfig,
    home: Home,
    report: Report,
    say: Callable[[str], None] = lambda text: None,
    watch: Callable[[Snapshot], None] = lambda snapshot: None,
) -> Outcome:
    """Run what is left of the sweep.

    Raises `UsageError` when another driver has it, or when it exists with other settings; nothing is written then.
    """
    home, folder, resolved = home.of(config), home.sweep(config.name), dump(config)
    if config.metric == "parallel" and config.recipe.format == "published":
        raise UsageError("metric: the published format trains no parallel reconstruction; choose continue")
    _refuse_changes(folder, config)
    _refuse_size(config)
    reachable("study_url", home.study_url)
    knock(config.address)
    say("Corpus: building or reusing tokenizer and shards")
    corpus = _corpus(config, home, folder)
    check_fit(corpus, config.recipe, config.parallel)
    with ExitStack() as held:
        executor = None
        if not folder.config.exists():  # what is wrong with a cluster is to be known before anything is written
            executor = held.enter_context(closing(_executor(config, say)))
        held.enter_context(folder.locked())
        write_text(folder.config, resolved)
        write_text(folder.corpus, _known_as(corpus, home))
        with setting_up(home.study_url):
            ledger = Ledger(config, home.study_url)

        view, trouble = MlflowView(ledger, home, corpus, hide(resolved)), ""
        if not ledger.finished():
            with closing(Aside(view)) as aside, closing(executor or _executor(config, say)) as executor:
                driver = Driver(ledger, executor, partial(_job, config, corpus, folder), aside)

                def look(snapshot: Snapshot) -> None:
                    if folder.asked_to_stop():
                        driver.stop()
                    watch(snapshot)

                driver.watch = look
                with _stopped_by_signals(driver):
                    driver.run()
                trouble = driver.trouble
        view.update(trial.number for trial in ledger.trials())  # before the table, which names MLflow's runs
        frame = write_tables(ledger, folder)
        analysis, files = report(folder)
        view.close(analysis, frame, files)
    return Outcome(folder, analysis, not ledger.finished(), trouble)


def _job(config: SweepConfig, corpus: Corpus, folder: SweepFolder, trial: Assignment) -> Job:
    recipe = config.recipe_at(trial.rate)
    spec = TrialSpec(trial.design, config.model_size(), recipe, trial.seed, str(corpus.folder.resolve()))
    return Job(trial.number, trial.rung, spec, folder.trial(trial.number).resolve(), config.parallel)


def _executor(config: SweepConfig, say: Callable[[str], None]) -> RayExecutor:
    say("Ray: starting workers" if not config.address else f"Ray: connecting to {config.address}")
    return RayExecutor(config.workers, config.threads, config.address, config.gpus, config.parallel)


def _known_as(corpus: Corpus, home: Home) -> str:
    """Its name among the home's corpora; the path of one that is elsewhere."""
    return corpus.folder.name if corpus.folder.parent == home.corpora else str(corpus.folder.resolve())


def _corpus(config: SweepConfig, home: Home, folder: SweepFolder) -> Corpus:
    """The corpus of the sweep: the one it was begun on, whatever has become of the source since."""
    if not folder.corpus.exists():
        return prepare(config.corpus, home.corpora, config.workers)
    begun_on = home.corpora / folder.corpus.read_text()
    if begun_on.exists():
        return Corpus(begun_on)
    corpus = prepare(config.corpus, home.corpora, config.workers)
    if corpus.folder != begun_on:
        raise UsageError(
            f"corpus.source: sweep {folder.path.name!r} was begun on {begun_on}, which is gone, and the text has "
            "changed since; give the new sweep its own name with name=NEW"
        )
    return corpus


def _refuse_changes(folder: SweepFolder, config: SweepConfig) -> None:
    if not folder.config.exists():
        return
    saved = load(str(folder.config))  # with the defaults of keys that have come since
    free = CHANGEABLE | _grown(saved, config)
    changed = [k for k in differences(hide(dump(saved)), hide(dump(config))) if k not in free]
    if changed:
        raise UsageError(
            f"{changed[0]}: sweep {folder.path.name!r} exists with another value ({len(changed)} keys differ: "
            f"{', '.join(changed)}); give the new sweep its own name with name=NEW, or keep the settings"
        )


def _grown(saved: SweepConfig, config: SweepConfig) -> set[str]:
    """Keys in which a grid has only become larger: what was planned of it before still is. (Optuna lets no space of
    designs grow.)"""
    grid = saved.sampler == config.sampler == "grid"
    return {"replicates"} if grid and config.replicates >= saved.replicates else set()


def _refuse_size(config: SweepConfig) -> None:
    """Raise `UsageError` where the baseline needs more memory than this machine has for a worker.

    Its tensors alone are counted; what the process needs beside them is not known.
    """
    if config.address or torch.cuda.is_available():  # the memory of other machines is Ray's to know
        return
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // config.workers
    need = config.cost(Design.parse(config.baseline)).memory
    if need > have:
        raise UsageError(
            f"size: a step of {config.baseline} needs {need / 1e9:.1f} GB and a worker has "
            f"{have / 1e9:.1f} GB; make size, recipe.pieces, recipe.piece or workers smaller"
        )


@contextmanager
def _stopped_by_signals(driver: Driver) -> Generator[None]:
    """Ctrl-C or SIGTERM stops the driver cleanly; a second one at once."""

    def stop(number: int, frame: Any) -> None:
        if driver.stopping:
            raise KeyboardInterrupt
        driver.stop()

    old = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
