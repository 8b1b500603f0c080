import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from search_space.errors import UsageError
from trainer.records import Document
from trainer.tokenizer import (
    CHAT,
    QWEN3_EMBEDDINGS,
    SPECIALS,
    Encoder,
    load,
    specials_of,
    train,
    vocab_of,
    with_specials,
)

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = ["The user said hello, and the assistant answered.\n\n" * 3, "def f(x):\n    return x + 1\n", "日本語 naïve"]
MARKS = [*SPECIALS.values(), *CHAT]


def qwen_like(folder: Path) -> Path:
    """A small tokenizer of Qwen's kind: its normalizer, its words, its special tokens behind the others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(["<|endoftext|>", *CHAT])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=["trained", "qwen"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "trained":
        return train(TEXTS, 300, chat=True)
    return with_specials(load(str(qwen_like(tmp_path_factory.mktemp("qwen") / "folder")))[0], chat=True)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    file = tmp_path_factory.mktemp("encoder") / "tokenizer.json"
    tokenizer.save(str(file))
    return Encoder(file)


with_marks = st.lists(st.one_of(st.sampled_from(MARKS), st.text(alphabet="abc |<>\né", max_size=9))).map("".join)
plain = st.text(alphabet="abc xyz|<>\n.,é", max_size=30)


@given(text=with_marks)
def test_special_tokens_in_a_text_are_text(encoder: Encoder, tokenizer: Tokenizer, text: str) -> None:
    (found,) = encoder([Document(text)])
    assert not set(found.tokens.tolist()) & {tokenizer.token_to_id(mark) for mark in MARKS}
    assert tokenizer.decode(found.tokens.tolist(), skip_special_tokens=False) == text
    assert found.messages == []


@given(contents=st.lists(with_marks, min_size=1, max_size=4))
def test_a_chat_has_the_markup_of_its_messages_and_no_more(
    encoder: Encoder, tokenizer: Tokenizer, contents: list[str]
) -> None:
    messages = tuple((("user", "assistant")[i % 2], content) for i, content in enumerate(contents))
    (found,) = encoder([Document("", messages)])
    tokens = found.tokens.tolist()
    start, end = (tokenizer.token_to_id(mark) for mark in CHAT)
    assert tokens.count(start) == tokens.count(end) == len(messages)
    assert not set(tokens) & {tokenizer.token_to_id(mark) for mark in SPECIALS.values()}
    edges = [0, *(stop for _, _, stop in found.messages)]
    assert [m[1] for m in found.messages] == edges[:-1] and edges[-1] == len(tokens)
    for (role, first, stop), (wanted, content) in zip(found.messages, messages, strict=True):
        whole = tokenizer.decode(tokens[first:stop], skip_special_tokens=False)
        assert role == wanted and whole == f"<|im_start|>{role}\n{content}<|im_end|>\n"


@given(contents=st.lists(plain, min_size=1, max_size=4))
def test_a_chat_is_tokenized_as_qwen_renders_it(encoder: Encoder, tokenizer: Tokenizer, contents: list[str]) -> None:
    (found,) = encoder([Document("", tuple(("user", content) for content in contents))])
    rendered = "".join(f"<|im_start|>user\n{content}<|im_end|>\n" for content in contents)
    tokenizer.encode_special_tokens = False
    assert found.tokens.tolist() == tokenizer.encode(rendered, add_special_tokens=False).ids


def test_documents_of_both_kinds_come_back_in_order(encoder: Encoder) -> None:
    mixed = [Document("one"), Document("", (("user", "two"), ("assistant", "three"))), Document("four")]
    together, alone = encoder(mixed), [encoder([d])[0] for d in mixed]
    assert [e.tokens.tolist() for e in together] == [e.tokens.tolist() for e in alone]
    assert [e.messages for e in together] == [e.messages for e in alone]


def test_chat_markup_is_in_the_vocabulary_only_where_there_is_chat() -> None:
    assert all(train(TEXTS, 300, chat=False).token_to_id(mark) is None for mark in CHAT)
    assert [train(TEXTS, 300, chat=True).token_to_id(mark) for mark in MARKS] == list(range(7))


def test_specials_are_added_behind_the_ids_that_a_tokenizer_has(tmp_path: Path) -> None:
    loaded, _ = load(str(qwen_like(tmp_path / "qwen")))
    before = loaded.get_vocab()
    after = with_specials(loaded, chat=True).get_vocab()
    assert {token: after[token] for token in before} == before
    added = [after[token] for token in SPECIALS.values()]
    assert added == list(range(len(before), len(before) + len(SPECIALS))) == list(vars(specials_of(loaded)).values())
    assert vocab_of(loaded) == len(after)


def test_qwen3_has_more_embeddings_than_tokens(tmp_path: Path) -> None:
    """Recognised by where its end of text is."""
    words = {f"w{i}": i for i in range(151_643)}
    tokenizer = Tokenizer(models.WordLevel(words, "w0"))
    tokenizer.add_special_tokens(["<|endoftext|>", *CHAT])
    assert vocab_of(with_specials(tokenizer, chat=True)) == QWEN3_EMBEDDINGS


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda folder: None, "cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "not a tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text(json.dumps({"model": 3})), "not a tokenizer.json"),
    ],
)
def test_what_is_no_tokenizer_is_named(tmp_path: Path, write: Callable[[Path], object], words: str) -> None:
    write(tmp_path)
    with pytest.raises(UsageError, match=f"^corpus.tokenizer: .*{words}"):
        load(str(tmp_path))
