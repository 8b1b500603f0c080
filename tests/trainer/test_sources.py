import gzip
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from search_space.errors import UsageError
from trainer import sources
from trainer.prepare import CorpusConfig, prepare
from trainer.records import TO_THE_END, Document, read, s3_client
from trainer.sources import find, units_of

TEXTS = [f"text number {i} " * 20 for i in range(60)]


def fill(folder: Path) -> Path:
    """Every kind of file that a folder may have."""
    (folder / "deep" / "er").mkdir(parents=True)
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (folder / "a.py").write_text(TEXTS[0])
    (folder / "b.json").write_text('["a text", "like others"]')
    (folder / "deep" / "c.jsonl").write_text("".join(lines[1:20]))
    (folder / "deep" / "d.jsonl.gz").write_bytes(gzip.compress("".join(lines[20:40]).encode()))
    pq.write_table(pa.table({"text": TEXTS[40:]}), folder / "deep" / "er" / "e.parquet", row_group_size=4)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("not a person's text")
    return folder


def texts(given: list[str]) -> list[str]:
    rows = [row for unit in units_of(find(given)) for piece in unit for row in read(piece, "")]
    assert all(isinstance(row, Document) for row in rows)
    return [row.text for row in rows if isinstance(row, Document)]


WHOLE = [TEXTS[0], '["a text", "like others"]', *TEXTS[1:]]


@pytest.mark.parametrize("unit", [500, 2**20])
def test_a_folder_is_read_in_the_order_of_names_whatever_the_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int
) -> None:
    monkeypatch.setattr(sources, "SMALLEST_UNIT", unit)
    folder = fill(tmp_path / "data")
    (source,) = find([str(folder)])
    assert source.name == "data"
    assert [(f.name, f.kind) for f in source.files] == [
        ("a.py", "text"),
        ("b.json", "text"),
        ("deep/c.jsonl", "jsonl"),
        ("deep/d.jsonl.gz", "jsonl"),
        ("deep/er/e.parquet", "parquet"),
    ]
    assert texts([str(folder)]) == WHOLE
    units = units_of([source])
    assert (len(units) > 8) == (unit == 500)
    stops = {piece.stop for u in units for piece in u if piece.kind == "parquet"}
    assert len(stops) == (5 if unit == 500 else 1)


def test_a_single_file_is_taken_for_what_its_name_says(tmp_path: Path) -> None:
    for name, kind in {"a.jsonl": "jsonl", "a.json": "json", "a.parquet": "parquet", "a.txt": "book"}.items():
        (tmp_path / name).write_text("x")
        (source,) = find([str(tmp_path / name)])
        assert [f.kind for f in source.files] == [kind] and source.name == "a"


def test_sources_have_names(tmp_path: Path) -> None:
    one, two = fill(tmp_path / "one"), fill(tmp_path / "x=two")
    assert [s.name for s in find([f"web={one}", str(one), str(two)])] == ["web", "one", "x=two"]
    with pytest.raises(UsageError, match=r"^corpus.source: two sources are named 'one'; write one as NAME="):
        find([str(one), str(one)])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'/nowhere' is neither 'stdlib' nor"):
        find(["/nowhere"])
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(UsageError, match="no readable text"):
        find([str(tmp_path)])


def test_a_broken_parquet_file_is_left_to_its_reader(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    ((piece,),) = units_of(find([str(tmp_path)]))
    assert (piece.start, piece.stop) == (0, TO_THE_END)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server that speaks S3."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_s3_gives_what_the_folder_gives(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moto")
    for name, value in {
        "ENDPOINT_URL": s3,
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "x",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    folder, client = fill(tmp_path / "data"), boto3.client("s3")
    (folder / ".git" / "config").unlink()
    client.create_bucket(Bucket="lake")
    for file in (p for p in folder.rglob("*") if p.is_file()):
        client.upload_file(str(file), "lake", f"some/data/{file.relative_to(folder)}")
    client.put_object(Bucket="lake", Key="some/database", Body=b"not below the prefix")
    s3_client.cache_clear()
    monkeypatch.setattr(sources, "SMALLEST_UNIT", 3000)
    assert texts(["s3://lake/some/data"]) == texts(["s3://lake/some/data/"]) == WHOLE
    assert texts(["s3://lake/some/data/deep/c.jsonl"]) == TEXTS[1:20]
    remote = prepare(CorpusConfig("s3://lake/some/data", vocab=300, heldout=0.3), tmp_path / "remote")
    local = prepare(CorpusConfig(str(folder), vocab=300, heldout=0.3), tmp_path / "local")
    assert remote.manifest["files"] == local.manifest["files"] and remote.manifest["key"] != local.manifest["key"]
    with pytest.raises(UsageError, match="cannot be listed"):
        find(["s3://nothere/some"])


def test_a_dataset_of_the_hub_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One on the disk: `datasets` reads a folder as it reads a repository."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sources, "SMALLEST_UNIT", 500)
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"id": list(range(60)), "text": TEXTS}), tmp_path / "data" / "train.parquet")
    pq.write_table(pa.table({"id": [1], "text": ["a test"]}), tmp_path / "data" / "test.parquet")
    assert texts([f"hf:{tmp_path / 'data'}"]) == TEXTS
    assert texts([f"named=hf:{tmp_path / 'data'}:test"]) == ["a test"]
    with pytest.raises(UsageError, match="cannot be loaded: .*validation"):
        find([f"hf:{tmp_path / 'data'}:validation"])


def test_without_datasets_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="hf:a/b needs the package datasets; pip install"):
        find(["hf:a/b"])
