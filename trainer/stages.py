"""Run a plan: its stages in sequence, each begun with the weights that the one before has left.

A stage is a trial of one rung with a recipe, a folder and an optimizer of its own; what a part learns in it is the
stage's to say. The stages read each source of the corpus as one stream, on from where the one before stopped. Calling
again continues, from whatever checkpoint of whatever stage is the newest, with as many ranks as there are now.

In the folder: `plan.yaml`, and `stages/K-NAME/` as `trainer.pretrain` leaves it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from search_space.design import Design
from search_space.errors import UsageError
from trainer import checkpoint, state
from trainer.clock import LIVE
from trainer.corpus import Corpus
from trainer.heldout import check_fit
from trainer.initial import load_initial
from trainer.module import CompressorModule
from trainer.parallel import Parallel
from trainer.plan import Plan, Stage
from trainer.pretrain import pretrain
from trainer.strategies import meet
from trainer.stream import TrainingSamples
from trainer.together import first
from trainer.trial import Evaluation, RungResult, TrialSpec

__all__ = [
    *("Outcome", "StageState", "Watch"),
    *("check_corpus", "outcome_of", "read_state", "run_stages", "stage_folder", "stage_specs"),
]

Watch = Callable[[int, int, int], bool]
"""Called with (stage, step, raw tokens seen in it) after every step; returning False asks to stop there."""


def stage_folder(folder: Path, number: int, stage: Stage) -> Path:
    """Of the stage `number`, counted from 0, of the run in `folder`."""
    return folder / "stages" / f"{number}-{stage.name}"


def check_corpus(plan: Plan, verify: bool = True) -> Corpus:
    """The plan's corpus. Raises `UsageError` where it is missing, damaged, of another tokenizer, or too small.

    verify: whether its files are read and compared with their checksums.
    """
    if not plan.corpus:
        raise UsageError("corpus: the plan has none; `lclab data prepare` makes one, then set corpus=FOLDER")
    corpus = Corpus(Path(plan.corpus), verify)
    found = corpus.manifest["tokenizer"]
    if plan.tokenizer and found != plan.tokenizer:
        raise UsageError(
            f"corpus: the tokenizer of {plan.corpus} has SHA-256 {found[:12]}, and the plan's {plan.tokenizer[:12]}; "
            "prepare the text with the plan's, `lclab data prepare --tokenizer`"
        )
    if corpus.vocab > plan.size.vocab:
        raise UsageError(
            f"size.vocab: {plan.size.vocab} rows are fewer than the {corpus.vocab} that tokens of {plan.corpus} need"
        )
    for stage in plan.stages:
        check_fit(corpus, plan.recipe(stage), plan.parallel, plan.seed)
    return corpus


def stage_specs(plan: Plan, corpus: Corpus) -> list[TrialSpec]:
    """What is trained in each stage, weights apart."""
    specs: list[TrialSpec] = []
    read: dict[str, int] = {}
    for stage in plan.stages:
        recipe = plan.recipe(stage)
        where = str(corpus.folder.resolve())
        specs.append(TrialSpec(Design.parse(plan.design), plan.size, recipe, plan.seed, where, read))
        read = TrainingSamples(corpus, recipe, plan.seed, read).position(stage.steps)
    return specs


def run_stages(
    plan: Plan,
    folder: Path,
    watch: Watch = lambda stage, step, tokens: True,
    device: torch.device | None = None,
    parallel: Parallel | None = None,
) -> list[RungResult]:
    """Train what is left of `plan`; the result of each stage. With several ranks each of them calls it.

    Raises what `trainer.pretrain.pretrain` raises; in every case `folder` holds what the next call needs.
    """
    parallel = parallel or plan.parallel
    meet(parallel, device)
    corpus = check_corpus(plan, verify=False)
    folders = [stage_folder(folder, number, stage) for number, stage in enumerate(plan.stages)]
    _mend(plan, folders)
    results: list[RungResult] = []
    for number, spec in enumerate(stage_specs(plan, corpus)):
        begin = partial(_go_on, folders[number - 1]) if number else partial(_begin, plan)
        told = partial(watch, number)
        results.append(pretrain(spec, folders[number], 1, told, parallel, device, begin, corpus))
    return results


def _begin(plan: Plan, module: CompressorModule) -> None:
    load_initial(module.model, plan.encoder, plan.decoder)


def _go_on(before: Path, module: CompressorModule) -> None:
    """With the weights at the end of the stage in the folder `before`."""
    step, faults = checkpoint.newest(before, RungResult.load(RungResult.path(before, 1)).step)
    if step is None:
        raise checkpoint.CorruptCheckpoint(f"no checkpoint in {before} can be read: {'; '.join(faults)}")
    state.load_module(module, checkpoint.outline(checkpoint.path_of(before, step))["state_dict"])


def _mend(plan: Plan, folders: list[Path]) -> None:
    """A finished stage whose last checkpoint is damaged before the next one had its first is not finished."""
    for stage, folder, after in zip(plan.stages, folders, folders[1:], strict=False):
        reached = RungResult.path(folder, 1)
        if not first(lambda reached=reached, after=after: reached.exists() and not checkpoint.steps(after)):
            continue
        step, _ = checkpoint.newest(folder, stage.steps)
        if step != stage.steps:
            first(lambda reached=reached: reached.unlink(missing_ok=True))


@dataclass(frozen=True)
class StageState:
    """What is known of a stage that was begun. loss: held out at its end, by task, where it was reached."""

    name: str
    step: int
    curve: list[tuple[int, float, float]]
    evaluations: list[Evaluation]
    loss: dict[str, float]

    @property
    def tokens(self) -> int:
        """Raw tokens up to the last point of the curve."""
        return self.curve[-1][0] if self.curve else 0

    def points(self) -> Iterator[tuple[str, float, int]]:
        """Name, value and raw tokens of what was measured on the way."""
        for tokens, loss, rate in self.curve:
            yield "train_loss", loss, tokens
            yield "learning_rate", rate, tokens
        for _, tokens, losses in self.evaluations:
            for task, loss in losses.items():
                yield f"heldout_{task}", loss, tokens
        for task, loss in self.loss.items():
            yield f"heldout_{task}", loss, self.tokens


def read_state(plan: Plan, folder: Path) -> list[StageState]:
    """The stages that were begun, also while they are trained by other processes."""
    found: list[StageState] = []
    for number, stage in enumerate(plan.stages):
        place = stage_folder(folder, number, stage)
        reached, live = RungResult.path(place, 1), place / LIVE
        if reached.exists():
            end = RungResult.load(reached)
            found.append(StageState(stage.name, end.step, end.curve, end.evaluations, end.heldout.loss))
        elif live.exists():
            told = json.loads(live.read_text())
            curve = [(tokens, loss, rate) for tokens, loss, rate in told["curve"]]
            evaluations = [Evaluation(**entry) for entry in told["evaluations"]]
            found.append(StageState(stage.name, told["step"], curve, evaluations, {}))
        else:
            break
    return found


@dataclass(frozen=True)
class Outcome:
    """What has become of a plan's prediction. predicted, low, high: None where nothing was predicted."""

    metric: str
    loss: float
    predicted: float | None
    low: float | None
    high: float | None
    verdict: Literal["inside", "below", "above", "no prediction"]


def outcome_of(plan: Plan, results: list[RungResult]) -> Outcome:
    """The prediction scored: the last stage's held-out loss against the interval."""
    loss = results[-1].heldout.loss[plan.metric]
    told = plan.evidence.get("prediction") or {}
    predicted, low, high = (told.get(name) for name in ("loss", "low", "high"))
    if low is None or high is None:
        return Outcome(plan.metric, loss, None, None, None, "no prediction")
    return Outcome(
        plan.metric, loss, predicted, low, high, "below" if loss < low else "above" if loss > high else "inside"
    )
