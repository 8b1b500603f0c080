import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from litdata import StreamingDataset

from search_space.errors import UsageError
from trainer import sources, units
from trainer.corpus import FORMAT, Corpus, Split
from trainer.prepare import CorpusConfig, Plan, build

CHATS = [
    {"messages": [{"role": "user", "content": f"ask {i}"}, {"role": "assistant", "content": "so " * i}]}
    for i in range(40)
]


@pytest.fixture(scope="module")
def mixed(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Texts and chats in many shards."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "chat.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SMALLEST_UNIT", 30_000)
        patch.setattr(units, "SHARD", 20_000)
        config = CorpusConfig(vocab=300, heldout=0.3)
        return build(Plan.of([str(text_folder), f"talk={folder / 'chat.jsonl'}"], config), folder / "corpus", "mixed")


def splits(corpus: Corpus) -> list[Split]:
    return [corpus.train, corpus.heldout]


def test_shards_are_litdatas(mixed: Corpus) -> None:
    for name in ("train", "heldout"):
        split, stream = getattr(mixed, name), StreamingDataset(str(mixed.folder / name))
        assert len(split) == len(stream) > 10
        for i in (0, len(split) - 1, 5, 2):
            assert np.array_equal(split[i], stream[i]["tokens"]) and split[i].dtype == np.uint32
            assert [split.name(i), split.messages(i)] == read_about(stream[i]["about"])


def read_about(about: memoryview) -> list[object]:
    name, messages = json.loads(bytes(about))
    return [name, [tuple(message) for message in messages]]


def test_a_split_knows_its_documents(mixed: Corpus) -> None:
    assert mixed.sources[1] == "talk" and len(mixed.sources) == 2
    for split in splits(mixed):
        assert split.lengths.tolist() == [len(split[i]) for i in range(len(split))]
        assert split.source.tolist() == split.chat.tolist() == [bool(split.messages(i)) for i in range(len(split))]
        assert (np.diff(split.shard) >= 0).all() and split.shard[-1] > 3
        assert [split.source.dtype, split.chat.dtype, split.shard.dtype] == [np.int16, np.bool, np.int32]
    chats = sum(int(split.chat.sum()) for split in splits(mixed))
    assert chats == len(CHATS)


def test_messages_are_stretches_of_a_chat(mixed: Corpus) -> None:
    for split in splits(mixed):
        for i in np.flatnonzero(split.chat)[:5].tolist():
            (_, _, middle), (role, start, stop) = split.messages(i)
            assert role == "assistant" and middle == start and stop == split.lengths[i]
            text = mixed.tokenizer.decode(split[i][start:stop].tolist(), skip_special_tokens=False)
            assert text.startswith("<|im_start|>assistant\nso ") or text == "<|im_start|>assistant\n<|im_end|>\n"


def test_documents_cannot_be_changed_or_missed(mixed: Corpus) -> None:
    with pytest.raises(ValueError, match="read-only"):
        mixed.train[0][0] = 1
    for outside in (-1, len(mixed.train)):
        with pytest.raises(IndexError, match=f"document {outside} of {len(mixed.train)}"):
            mixed.train[outside]


def test_a_split_goes_to_another_process(mixed: Corpus) -> None:
    again = pickle.loads(pickle.dumps(mixed.train))
    assert np.array_equal(again[7], mixed.train[7])


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_shard_is_named(corpus: Corpus, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus.folder, folder)
    shard = folder / "train" / "chunk-0-0.bin"
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(data[:-7])
    else:
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    with pytest.raises(UsageError, match="chunk-0-0.bin"):
        Corpus(folder)


def test_unreadable_manifest_is_named(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(corpus.manifest)[:-20])
    with pytest.raises(UsageError, match=r"manifest\.json"):
        Corpus(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(corpus.manifest | {"format": FORMAT - 1}))
    with pytest.raises(UsageError, match="of another version of lclab"):
        Corpus(tmp_path)
