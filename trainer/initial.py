"""Initial weights: encoder and decoder from Hugging Face Qwen3 folders, or all from a compressor's folder.

A name of the Hugging Face Hub is fetched if `huggingface_hub` is installed; safetensors and JSON, never pickles.

Which of a small model's aids go with weights that were trained elsewhere:
- `size.embedding_std`, `size.silent_encoder` and `optim.scaling` act on weights before they are overwritten here. What
  stays as drawn are adapter, pooling, and the rows of embeddings that a folder lacks: set `embedding_std` to the
  folder's (0.02 to 0.04 for Qwen3) where such rows are read, as those of eos markers are;
- `size.phase_std` above 0 adds to the encoder's inputs what it has never seen, and is refused;
- `positions: spread` is another place for the same inputs and is allowed.
"""

import re
from pathlib import Path

from search_space import qwen3
from search_space.compressor import Compressor
from search_space.errors import UsageError
from trainer import exported

__all__ = ["check_initial", "config_here", "load_initial"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_initial(model: Compressor, encoder: str, decoder: str) -> None:
    """Overwrite the weights of encoder and decoder with those of two folders or names; '' leaves them.

    A folder of fewer embedding rows fills the first ones. That of a whole compressor (see `trainer.exported`) gives its
    part, for the encoder with its adapter.
    Raises `UsageError`, with no weight changed, where something is missing, damaged or of another shape.
    """
    reads, writes = _resolve(model, encoder, decoder)
    _check(model, reads, writes)
    if writes:
        qwen3.load_into(model.decoder, _decoder_in(writes), fewer_rows=True)
    if reads and model.encoder is not None:
        if exported.is_exported(reads):
            exported.load_encoder(model, reads)
        else:
            qwen3.load_into(model.encoder, reads, fewer_rows=True)


def config_here(name: str, part: str) -> Path | None:
    """The folder that says the shape of initial weights, for `part` encoder or decoder; nothing is fetched.

    None for a name that is not in the Hub's cache on this machine, and where nothing is.
    """
    folder: Path | None = Path(name).expanduser()
    if not folder.is_dir() and _NAME.fullmatch(name):
        folder = _cached(name)
    if folder and exported.is_exported(folder):
        folder /= part
    return folder if folder and (folder / "config.json").is_file() else None


def _cached(name: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def check_initial(model: Compressor, encoder: str, decoder: str) -> None:
    """Raise what `load_initial` raises. Reads headers only; `model` may be on `meta`."""
    _check(model, *_resolve(model, encoder, decoder))


def _resolve(model: Compressor, encoder: str, decoder: str) -> tuple[Path | None, Path | None]:
    """The two folders; what can be refused without them is, before anything is fetched."""
    if encoder and model.encoder is None:
        raise UsageError(f"encoder: {model.design.name} has none; leave it empty")
    if encoder and decoder and encoder != decoder and model.encoder and model.size.embeddings == "tied":
        raise UsageError(
            f"encoder: {encoder} and the decoder's {decoder} have embeddings of their own, which cannot be tied; "
            "set size.embeddings=separate"
        )
    if encoder != decoder:
        _refuse_phases(model)
    return _folder("encoder", encoder), _folder("decoder", decoder)


def _check(model: Compressor, encoder: Path | None, decoder: Path | None) -> None:
    if encoder and not exported.is_exported(encoder):
        _refuse_phases(model)
    if decoder:
        qwen3.check_fit(model.decoder, _decoder_in(decoder), fewer_rows=True)
    if encoder and model.encoder is not None:
        if exported.is_exported(encoder):
            exported.check_encoder(model, encoder)
        else:
            qwen3.check_fit(model.encoder, encoder, fewer_rows=True)


def _refuse_phases(model: Compressor) -> None:
    """Unless they come with the weights, which only those of one whole compressor do."""
    if model.phase is not None:
        raise UsageError(
            f"size.phase_std: {model.size.phase_std} adds to the inputs of initial weights what they have never seen; "
            "set size.phase_std=0"
        )


def _decoder_in(folder: Path) -> Path:
    return folder / exported.DECODER if exported.is_exported(folder) else folder


def _folder(field: str, name: str) -> Path | None:
    if not name:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not _NAME.fullmatch(name):
        raise UsageError(f"{field}: {name!r} is neither a folder nor a name such as Qwen/Qwen3-0.6B")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UsageError(f"{field}: {name} is no folder, and to fetch it huggingface_hub must be installed") from error
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:  # of the network, of the Hub, of the disk: it has many and shares no base for them
        why = str(error).strip().partition("\n")[0]
        raise UsageError(f"{field}: {name} is no folder and cannot be fetched ({why})") from error
