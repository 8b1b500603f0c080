import numpy as np
import pandas as pd
import pytest

from analysis.table import CURVES, TRIALS, comparable, documents, latest, load, save, to_frame
from search_space.errors import UsageError
from tests.analysis.synthetic import BASELINE, sweep, trial


def test_columns_and_types_survive_the_file(tmp_path):
    frame = sweep()
    save(frame, tmp_path / "trials.parquet")
    again = load(tmp_path / "trials.parquet")
    assert list(again) == list(TRIALS)
    assert {name: str(dtype) for name, dtype in again.dtypes.items()} == TRIALS
    pd.testing.assert_frame_equal(again, frame)
    assert [path.name for path in tmp_path.iterdir()] == ["trials.parquet"]


def test_an_empty_table_has_the_schema(tmp_path):
    save(to_frame([]), tmp_path / "t.parquet")
    assert {name: str(dtype) for name, dtype in load(tmp_path / "t.parquet").dtypes.items()} == TRIALS
    assert list(to_frame([], CURVES)) == list(CURVES)


def test_what_is_missing_is_nan_null_or_an_empty_list():
    row = to_frame(trial(0, BASELINE, 1.0, reached=0, state="failed")).iloc[0]
    assert np.isnan(row["parallel"])
    assert row["parallel_documents"] == []
    assert pd.isna(row["reason"])


@pytest.mark.parametrize("change", [{"colour": 1}, {"seed": None}, {"seed": "zero"}])
def test_wrong_rows_are_refused(change):
    with pytest.raises(UsageError, match=r"colour|seed"):
        to_frame([trial(0, BASELINE, 1.0)[0] | change])


def test_bad_files_are_one_clear_line(tmp_path):
    path = tmp_path / "trials.parquet"
    with pytest.raises(UsageError, match="no such table"):
        load(path)
    path.write_bytes(b"PAR1 cut short")
    with pytest.raises(UsageError, match="not a readable Parquet file") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    sweep().drop(columns="seed").to_parquet(path)
    with pytest.raises(UsageError, match="lacks the columns seed"):
        load(path)


def test_pruned_seeds_hold_their_design_back_and_repeats_count_once():
    frame = to_frame(
        [
            *trial(0, "a", 1.0),
            *trial(1, "a", 2.0, seed=1, reached=1, state="pruned"),
            *trial(2, "b", 1.0),
            *trial(3, "b", 3.0),  # the same seed again: the newest counts
            *trial(4, "c", float("nan")),
            *trial(5, "d", 1.0, reached=0, state="failed"),
        ]
    )
    rows = comparable(frame)
    assert rows[["trial", "rung"]].to_numpy().tolist() == [[0, 1], [1, 1], [3, 1], [3, 2]]
    assert latest(frame)["rung"].tolist() == [2, 1, 2, 2, 2, 0]


def test_documents_are_those_that_both_sides_have():
    a = to_frame(trial(0, "a", 2.0, documents=np.array([1.0, np.nan, 0.5, 1.5]), rungs=1, reached=1))
    b = to_frame(trial(1, "b", 1.0, documents=np.array([1.0, 2.0, 3.0, 4.0]), rungs=1, reached=1))
    pair = documents(a, b)
    assert pair is not None
    np.testing.assert_allclose(pair, [[2.0, 1.0, 3.0], [1.0, 3.0, 4.0]])
    assert documents(a, to_frame(trial(1, "b", 1.0, documents=np.ones(3)))) is None
