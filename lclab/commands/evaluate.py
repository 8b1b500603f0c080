"""`lclab evaluate`: an exported compressor on the held-out documents of a corpus."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lclab.commands.options import AsJson
from lclab.console import make_console
from search_space.errors import UsageError

__all__ = ["evaluate"]


def evaluate(
    folder: Annotated[Path, typer.Argument(help="That `lclab export` or the published training has written.")],
    data: Annotated[Path, typer.Option(help="A corpus by `lclab data prepare`, of the same tokenizer.")],
    documents: Annotated[int, typer.Option(min=2, help="Held-out documents.")] = 256,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each, at most.")] = 16_384,
    spans: Annotated[bool, typer.Option("--spans", help="Wrap halves as sweeps do, not as published.")] = False,
    as_json: AsJson = False,
) -> None:
    """Held-out loss and accuracy of a compressor, by task and by distance from what was compressed."""
    import torch

    from lclab.heldout import show_heldout
    from trainer.corpus import Corpus, digest_of
    from trainer.evaluate import score
    from trainer.exported import DECODER, import_
    from trainer.heldout import heldout_batches
    from trainer.recipe import Lesson, Recipe

    corpus = Corpus(data)
    theirs = folder / DECODER / "tokenizer.json"
    if theirs.is_file() and digest_of(theirs) != corpus.manifest["tokenizer"]:
        raise UsageError(
            f"--data: {data} is not of the tokenizer of {folder}; prepare the text with `lclab data prepare "
            f"--tokenizer {theirs}`"
        )
    model = import_(folder, vocab=corpus.vocab).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    wrapping = "spans" if spans else "published"
    recipe = Recipe(format=wrapping, piece=length, pieces=1, documents=documents, curriculum=[Lesson(1.0, length)])
    found = score(model, heldout_batches(corpus, recipe, model.design, model.size))
    if as_json:
        print(json.dumps({"folder": str(folder), "design": model.design.name} | asdict(found)))
        return
    show_heldout(make_console(), found, f"{model.design.name} on {data}")
