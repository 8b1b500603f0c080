import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.records import BOOK_PART, TO_THE_END, Document, Kind, Problem, Slice, read

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]
CHAT = Document("", (("user", "hi"), ("assistant", "")))


def rows(path: Path, kind: Kind, text_field: str = "", start: int = 0, stop: int = TO_THE_END) -> list[Any]:
    return list(read(Slice(0, kind, str(path), path.name, start, stop), text_field))


def cut(path: Path, kind: Kind, cuts: list[int]) -> list[Any]:
    edges = [0, *sorted(cuts), TO_THE_END]
    return [row for a, b in pairwise(edges) for row in rows(path, kind, start=a, stop=b)]


lines = st.one_of(
    st.text(max_size=40).map(lambda t: json.dumps({"text": t}, ensure_ascii=False).encode()),
    st.sampled_from([b"", b"  ", b"{broken", b"\xff\xfe", b"[1]", b'{"other": 1}', b'{"text": 3}', b"3"]),
)


@given(st.lists(lines, max_size=12), st.booleans(), st.lists(st.integers(1, 400), max_size=4))
def test_slices_of_json_lines_share_no_row_and_miss_none(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes], ended: bool, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_bytes(b"\n".join(content) + b"\n" * (ended and bool(content)))
    whole = rows(path, "jsonl")
    assert cut(path, "jsonl", cuts) == whole
    # A line is a row whatever is in it. Where the last one is empty and not ended, it is none.
    assert len(whole) == len(content) - (not ended and bool(content) and not content[-1])


@given(
    st.lists(st.text("ab \n", max_size=3000), max_size=8),
    st.lists(st.integers(1, 20_000), max_size=3),
)
def test_a_book_is_cut_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, paragraphs: list[str], cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("book") / "x.txt"
    path.write_text("\n\n".join(paragraphs))
    words = path.read_text().split()
    for found in (rows(path, "book"), cut(path, "book", cuts)):
        assert [word for d in found if isinstance(d, Document) for word in d.text.split()] == words


def test_parts_of_a_book_are_of_a_size(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\n\n".join(f"Paragraph {i} says {'so ' * 90}." for i in range(200)))
    sizes = [len(d.text) for d in rows(path, "book")]
    assert len(sizes) > 10 and all(BOOK_PART <= size < BOOK_PART + 400 for size in sizes[:-1])


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"text": "a"}, Document("a")),
        ({"text": " "}, Problem("empty", broken=False)),
        ({"messages": MESSAGES}, CHAT),
        ({"messages": MESSAGES, "text": "rendered"}, CHAT),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": ""}]}, CHAT),
        ({"body": "a"}, Problem("has no 'messages' or 'conversations' or 'text'")),
        ({"text": 3}, Problem("'text' is neither text nor a list of messages")),
        ({"text": "\ud800"}, Problem("'text' has half of a surrogate pair")),
        ({"messages": []}, Problem("empty", broken=False)),
        ({"messages": [3]}, Problem("'messages': a message is an object with role and content")),
        ({"messages": [{"content": "a"}]}, Problem("'messages': None is not a role")),
        ({"messages": [{"role": "a\nb", "content": "a"}]}, Problem("'messages': 'a\\nb' is not a role")),
        ({"messages": [{"role": "tool"}]}, Problem("'messages': the content of a message of tool is not text")),
        (3, Problem("a record is an object, not int")),
    ],
)
def test_a_record_is_a_document_or_says_why_not(tmp_path: Path, record: Any, row: Document | Problem) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(record))
    (tmp_path / "x.json").write_text(json.dumps([record]))
    assert rows(tmp_path / "x.jsonl", "jsonl") == rows(tmp_path / "x.json", "json") == [row]


def test_a_field_that_is_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "a", "body": "b", "messages": MESSAGES}))
    assert rows(path, "jsonl", "body") == [Document("b")]
    assert rows(path, "jsonl", "other") == [Problem("has no 'other'")]


def test_json_lines_may_be_called_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert rows(tmp_path / "x.json", "json") == [Document("a"), Document("b")]
    (tmp_path / "x.json").write_text('[{"text": "a"},')
    (row,) = rows(tmp_path / "x.json", "json")
    assert isinstance(row, Problem) and row.reason.startswith("not JSON") and row.broken


def test_packed_lines_are_read_up_to_where_the_file_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    texts = [f"{i} " * 500 for i in range(300)]
    path.write_bytes(gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode(), 1))
    assert rows(path, "jsonl") == [Document(t) for t in texts]
    path.write_bytes(path.read_bytes()[:-2000])
    *good, last = rows(path, "jsonl")
    assert 0 < len(good) < len(texts) and good == [Document(t) for t in texts[: len(good)]]
    assert isinstance(last, Problem) and last.reason.startswith("unreadable from here on")


def test_parquet_of_texts_and_of_chats(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    texts = [f"text {i}" for i in range(10)] + [None]
    pq.write_table(pa.table({"id": list(range(11)), "text": texts}), path, row_group_size=3)
    found = [*rows(path, "parquet", stop=2), *rows(path, "parquet", start=2, stop=4)]
    assert found == rows(path, "parquet")
    assert found[:10] == [Document(f"text {i}") for i in range(10)] and isinstance(found[10], Problem)
    assert rows(path, "parquet", "body") == [Problem("has no 'body'")] * 11
    pq.write_table(pa.table({"messages": [MESSAGES] * 2}), path)
    assert rows(path, "parquet") == [CHAT] * 2
    path.write_bytes(path.read_bytes()[:-9])
    (row,) = rows(path, "parquet")
    assert isinstance(row, Problem) and row.reason.startswith("unreadable from here on")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"a\xff", "not UTF-8 at byte 1"), (b"a\0", "not text: it has a NUL byte")]
)
def test_a_file_that_is_no_text_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x").write_bytes(content)
    assert rows(tmp_path / "x", "text") == rows(tmp_path / "x", "book") == [Problem(reason)]


def test_a_file_that_is_gone_says_so(tmp_path: Path) -> None:
    (row,) = rows(tmp_path / "x", "text")
    assert isinstance(row, Problem) and "No such file" in row.reason


def test_line_ends_are_one_kind_in_texts(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\r\nb\rc\n")
    assert rows(tmp_path / "x", "text") == [Document("a\nb\nc\n")]


def test_a_chat_is_no_copy_of_a_text_that_looks_like_it() -> None:
    documents = [
        CHAT,
        Document('[["user", "hi"], ["assistant", ""]]'),
        Document("user\nhi"),
        Document("", (("user", "hi"),)),
    ]
    assert len({d.digest() for d in documents}) == len(documents)
