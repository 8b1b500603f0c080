"""From the shards of units to a corpus folder: shards in their place, LitData's index, arrays over documents."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from trainer.corpus import digest_of
from trainer.sources import Source
from trainer.units import SPLITS

__all__ = ["assemble"]

ARRAYS = {"lengths": np.int64, "source": np.int16, "chat": np.bool}


def assemble(folder: Path, units: list[Path], sources: list[Source]) -> dict[str, Any]:
    """Move what the units hold to where LitData finds it in `folder`; `counts`, `sources` and `files` of the manifest.

    May be killed at any place and called again: what has moved is not moved again.
    """
    known = [_known(unit) for unit in units]
    found: list[dict[str, Any]] = [
        {"name": s.name, "given": s.given, "files": len(s.files), "bytes": s.size} for s in sources
    ]
    counts: dict[str, dict[str, int]] = {}
    files: dict[str, str] = {}
    for number, split in enumerate(SPLITS):
        parts = [shards[number] for shards in known]
        files |= _place(folder, units, split, parts)
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS}
        for name, array in arrays.items():
            np.save(folder / split / f"{name}.npy", array)
        own = [f"{split}/index.json", *(f"{split}/{name}.npy" for name in ARRAYS)]
        files |= {name: digest_of(folder / name) for name in own}
        lengths, source = arrays["lengths"], arrays["source"]
        size = sum(part["bytes"] for part in parts)
        counts[split] = {"documents": len(lengths), "bytes": size, "tokens": int(lengths.sum())}
        for i, entry in enumerate(found):
            entry[split] = {"documents": int((source == i).sum()), "tokens": int(lengths[source == i].sum())}
    return {"sources": found, "counts": counts, "files": files}


def _known(unit: Path) -> list[dict[str, Any]]:
    """Of each split."""
    parts = json.loads((unit / "shards.json").read_text())
    return [part | {name: np.array(part[name], kind) for name, kind in ARRAYS.items()} for part in parts]


def _place(folder: Path, units: list[Path], split: str, parts: list[dict[str, Any]]) -> dict[str, str]:
    """Move a split's shards and write its index; their digests by name."""
    (folder / split).mkdir(exist_ok=True)
    chunks: list[dict[str, Any]] = []
    digests: dict[str, str] = {}
    for k, (unit, part) in enumerate(zip(units, parts, strict=True)):
        for i, (chunk, digest) in enumerate(zip(part["chunks"], part["digests"], strict=True)):
            made, name = unit / split / chunk["filename"], f"chunk-{k}-{i}.bin"
            if made.exists():
                os.replace(made, folder / split / name)
            chunks.append(chunk | {"filename": name})
            digests[f"{split}/{name}"] = digest
    config = next(part["config"] for part in parts if part["chunks"])
    (folder / split / "index.json").write_text(json.dumps({"chunks": chunks, "config": config}))
    return digests
