"""A file is whole or not there, whatever ends the process that writes it."""

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_space.files import whole, write_json

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
trees = st.recursive(leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=5), t, max_size=3))


@given(old=trees, new=trees, indent=st.none() | st.just(2))
def test_json_comes_back_and_takes_the_place_of_the_old(
    tmp_path_factory: pytest.TempPathFactory, old: object, new: object, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    for content in (old, new):
        write_json(path, content, indent)
        assert json.loads(path.read_text(encoding="utf-8")) == content
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a.json") as file:
        file.write_text("half")
        raise ZeroDivisionError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["1\n"]


def child(act: Callable[[], None]) -> int:
    """How a process ends that only calls `act`."""
    process = os.fork()
    if process == 0:
        try:
            act()
        except OSError:
            os._exit(17)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        write_json(tmp_path / "a.json", "x" * 9999)

    write_json(tmp_path / "a.json", 1)
    assert child(fill) == 17
    assert [path.read_text() for path in tmp_path.iterdir()] == ["1\n"]


def test_who_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    def die() -> None:
        with whole(tmp_path / "a.json") as file:
            file.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    write_json(tmp_path / "a.json", 1)
    assert child(die) == -signal.SIGKILL
    assert (tmp_path / "a.json").read_text() == "1\n"
