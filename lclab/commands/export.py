"""`lclab export`: a trained compressor as a folder that the published loaders read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lclab.console import make_console
from search_space.errors import UsageError

if TYPE_CHECKING:
    from search_space.compressor import Compressor, Size
    from search_space.design import Design

__all__ = ["export"]


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a trial, a `lclab train`, or a plan's stage.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    ours: Annotated[bool, typer.Option("--ours", help="Also write what published loaders have no place for.")] = False,
    step: Annotated[int | None, typer.Option(help="Of the checkpoint; else the newest good one.")] = None,
) -> None:
    """Write a trained compressor as decoder/, encoder/ and adapter/ in the published layout."""
    if out.exists():
        raise UsageError(f"OUT: {out} exists; choose a folder that does not")
    design, size, tokenizer = _about(folder.resolve())
    from trainer.export import check_layout
    from trainer.export import export as write

    check_layout(design, size, ours=ours)
    model, path = _trained(folder, design, size, step)
    write(model, tokenizer, out, ours=ours)
    make_console().print(f"{design.name} of {path.name}: {out}", soft_wrap=True)


def _about(folder: Path) -> "tuple[Design, Size, Path]":
    """Design, size and tokenizer of the run in `folder`, by what stands in it or above it."""
    above = folder.parents[1] if len(folder.parts) > 2 else folder
    if (folder / "spec.json").is_file():
        return _of_training(folder)
    if folder.parent.name == "stages" and (above / "plan.yaml").is_file():
        return _of_stage(above / "plan.yaml")
    if folder.parent.name == "trials" and folder.name.isdecimal() and (above / "sweep.yaml").is_file():
        return _of_trial(above, int(folder.name))
    raise UsageError(
        f"FOLDER: {folder} is not that of a trial (SWEEP/trials/0007), of `lclab train` (train/NAME) or of a plan's "
        "stage (PLAN/stages/0-NAME)"
    )


def _of_training(folder: Path) -> "tuple[Design, Size, Path]":
    from search_space.design import Design
    from search_space.qwen3 import read_json
    from trainer.exported import size_of

    spec = read_json(folder / "spec.json")
    try:
        return Design(**spec["design"]), size_of(spec["size"]), Path(spec["corpus"]) / "tokenizer.json"
    except (KeyError, TypeError) as error:
        raise UsageError(f"FOLDER: {folder / 'spec.json'} is not that of `lclab train` ({error})") from error


def _of_stage(file: Path) -> "tuple[Design, Size, Path]":
    import hashlib

    from search_space.design import Design
    from trainer.plan import load

    plan = load(file)
    tokenizer = Path(plan.corpus) / "tokenizer.json"
    if plan.tokenizer and tokenizer.is_file() and hashlib.sha256(tokenizer.read_bytes()).hexdigest() != plan.tokenizer:
        raise UsageError(f"corpus: {tokenizer} is not the one that {file} was made with")
    return Design.parse(plan.design), plan.size, tokenizer


def _of_trial(sweep: Path, number: int) -> "tuple[Design, Size, Path]":
    from search_space.design import Design
    from sweeps.config import load
    from sweeps.home import Home
    from sweeps.status import read_status

    home, config = Home(sweep.parent), load(str(sweep / "sweep.yaml"))
    kept = home.sweep(sweep.name).corpus
    if not kept.is_file():
        raise UsageError(f"FOLDER: {kept} is missing, so that the sweep's tokenizer is not known")
    name = next((t.design for t in read_status(home, sweep.name).trials if t.number == number), None)
    if name is None:
        raise UsageError(f"FOLDER: the study of sweep {sweep.name} has no trial {number}")
    return Design.parse(name), config.model_size(), home.corpora / kept.read_text().strip() / "tokenizer.json"


def _trained(folder: Path, design: "Design", size: "Size", step: int | None) -> "tuple[Compressor, Path]":
    """With the weights of a checkpoint, and which that is."""
    import sys

    from trainer import checkpoint
    from trainer.export import compressor_of

    steps = checkpoint.steps(folder)
    if not steps:
        raise UsageError(f"FOLDER: {folder} has no checkpoint, step-*")
    if step is not None and step not in steps:
        raise UsageError(f"--step: {step} is none of the checkpoints in {folder}: {', '.join(map(str, steps))}")
    found, faults = checkpoint.newest(folder, sys.maxsize if step is None else step)
    if found is None or step not in (None, found):
        raise UsageError(f"FOLDER: no checkpoint can be read: {faults[0]}")
    for fault in faults:
        make_console(stderr=True).print(f"Passed over: {fault}", soft_wrap=True)
    path = checkpoint.path_of(folder, found)
    return compressor_of(checkpoint.read(path, "state_dict")["state_dict"], design, size), path
