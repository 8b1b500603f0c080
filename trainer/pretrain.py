"""Pre-train one design up to a rung: the one function that every sweep, test and benchmark calls.

What a call leaves in the trial's folder: `step-*` (the two newest checkpoints) and `rung-K.json` for each
rung reached. Calling again continues from the newest good checkpoint, bit for bit as if it had not stopped; a rung
already reached is read back, not trained again.

With several ranks each of them calls it; the first one writes.
"""

import logging
import math
import shutil
import warnings
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from search_space.layout import Batch
from trainer import checkpoint
from trainer.clock import Clock
from trainer.corpus import Corpus
from trainer.heldout import heldout_batches
from trainer.module import CompressorModule
from trainer.parallel import Parallel
from trainer.patient import Patient
from trainer.recipe import Recipe, precision_of
from trainer.strategies import lightning_strategy, rest
from trainer.stream import Microbatches, TrainingSamples
from trainer.trial import Diverged, Heldout, Interrupted, OutOfMemory, Progress, RungResult, TrialSpec

__all__ = ["evaluate", "fit", "make_trainer", "pretrain"]

# What torch says for CUDA, for its CPU allocator, and for oneDNN, whose kernels take memory of their own.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "could not create a primitive")


def pretrain(
    spec: TrialSpec,
    folder: Path,
    rung: int,
    progress: Progress = lambda step, tokens: True,
    parallel: Parallel | None = None,
    device: torch.device | None = None,
    begin: Callable[[CompressorModule], None] = lambda module: None,
    corpus: Corpus | None = None,
) -> RungResult:
    """Train to the end of `rung` and evaluate there.

    device: of this rank, where whoever started the process has chosen it. begin: gives a new trial its first weights,
    where they are not those of its seed. corpus: that of `spec`, where it is open already.
    Raises `Diverged`, `OutOfMemory`, `Stalled`, or `Interrupted` when `progress` returned False; in every case `folder`
    holds what the next call needs.
    """
    reached = RungResult.path(folder, rung)
    if reached.exists():
        return RungResult.load(reached)
    parallel = parallel or Parallel()
    corpus = corpus or Corpus(Path(spec.corpus), verify=False)  # the sweep has verified it once for all trials
    samples = TrainingSamples(corpus, spec.recipe, spec.seed, spec.read)
    clock = Clock(spec, samples, folder, rung, progress, lambda trainer: evaluate(trainer, module, heldout))
    with _memory(clock):
        module = CompressorModule(spec.design, spec.size, spec.recipe, spec.seed, parallel)
        trainer = make_trainer(spec.recipe, clock, parallel, device)
        rank = trainer.global_rank
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for scratch in folder.glob("*.part"):  # of a process that was killed while it wrote
                shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink(missing_ok=True)
        heldout: Any = heldout_batches(
            corpus, spec.recipe, spec.design, spec.size, rank, parallel.ranks, parallel.accumulate
        )

        def batches(first: int) -> DataLoader[Batch]:
            part = (first, parallel.accumulate, rank, parallel.ranks)
            steps = Microbatches(samples, spec.design, spec.size, corpus.specials, *part)
            return DataLoader(steps, batch_size=None, num_workers=parallel.loaders)

        weights = fit(trainer, module, clock, batches, begin)
        trainer.validate(module, DataLoader(heldout, batch_size=None), weights, verbose=False, weights_only=False)
    if not all(map(math.isfinite, module.heldout.loss.values())):
        raise Diverged(f"held-out loss is {module.heldout.loss} at step {clock.step}")
    curve = clock.curve
    at = (rung, clock.step, clock.tokens(), clock.seconds, curve[-1][1])
    result = RungResult(*at, module.heldout, curve, clock.recovered, clock.evaluations)
    if rank == 0:
        result.save(folder)
    trainer.strategy.barrier()  # until it is written
    return result


def evaluate(trainer: Trainer, module: CompressorModule, heldout: list[Batch]) -> Heldout:
    """Held out, in the midst of training. Every rank takes part."""
    with torch.no_grad(), trainer.precision_plugin.val_step_context():
        for index, batch in enumerate(heldout):
            module.validation_step(trainer.strategy.batch_to_device(batch, module.device), index)
    rest(module.model)
    module.on_validation_epoch_end()
    return module.heldout


def fit(
    trainer: Trainer,
    module: CompressorModule,
    clock: Clock,
    batches: Callable[[int], DataLoader[Batch]],
    begin: Callable[[CompressorModule], None] = lambda module: None,
) -> Path | None:
    """Go on from the newest good checkpoint to where the clock stops; `batches` are those from a step on.

    The checkpoint that holds the weights, or None where the module does.
    """
    step, clock.recovered = checkpoint.newest(clock.folder, clock.stop)
    start = None if step is None else checkpoint.path_of(clock.folder, step)
    if start and step == clock.stop:  # killed between the rung's checkpoint and its evaluation
        clock.load_state_dict(checkpoint.outline(start)["callbacks"][clock.state_key])
        return start
    if start is None:
        begin(module)
    with closing(Patient(batches(step or 0), module.parallel.patience)) as ahead:
        trainer.fit(module, ahead, ckpt_path=start, weights_only=False)
    if clock.interrupted:
        raise Interrupted(f"stopped at step {clock.step}")
    return None


@contextmanager
def _memory(clock: Clock) -> Generator[None]:
    """Name the error that torch has for each of its allocators, and Python for its own."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise OutOfMemory(f"out of memory after step {clock.step}: {' '.join(str(error).split())[:200]}") from error


def make_trainer(recipe: Recipe, clock: Clock, parallel: Parallel, device: torch.device | None) -> Trainer:
    _quiet()
    return Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        strategy=lightning_strategy(parallel, device),
        devices=parallel.devices,
        num_nodes=parallel.nodes,
        max_steps=clock.stop,
        accumulate_grad_batches=parallel.accumulate,
        precision=precision_of(recipe),
        callbacks=[clock],
        logger=False,
        use_distributed_sampler=False,  # `Microbatches` divides a step
        enable_checkpointing=False,  # `Clock` decides when
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _quiet() -> None:
    """Lightning's advice is for people who call it by hand."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    known = ("does not have many workers", "Mismatch dtype between", "not resumable", "LeafSpec", "no `val_dataloader`")
    for advice in known:
        warnings.filterwarnings("ignore", f".*{advice}.*")
