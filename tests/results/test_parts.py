"""Rows taken from a Parquet file by number equal those of reading the file."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.core.errors import SourceError
from cvbatch.results import parts
from cvbatch.results.parts import box_corners, take_rows
from cvbatch.storage.store import Storage

ROWS = [{"n": i, "boxes": [{"class_id": k, "score": k / 2} for k in range(i % 3)]}
        for i in range(23)]  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("parts") / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=7)
    return str(file)


@given(rows=st.lists(st.integers(0, len(ROWS) - 1), max_size=30), batch=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_rows_by_number_equal_those_of_the_file(path, rows, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_TAKEN_ROWS", batch)
        table = take_rows(Storage(), path, np.array(rows, np.int64), None)
        leaves = take_rows(
            Storage(), path, np.array(rows, np.int64), ["boxes.list.element.class_id", "none"]
        )
    assert table.to_pylist() == [ROWS[i] for i in rows]
    assert leaves.to_pylist() == [
        {"boxes": [{"class_id": box["class_id"]} for box in ROWS[i]["boxes"]]} for i in rows
    ]


def test_no_rows_are_taken_from_an_empty_file(tmp_path):
    pq.write_table(pa.table({"n": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    table = take_rows(Storage(), str(tmp_path / "a.parquet"), np.zeros(0, np.int64), ["n"])
    assert (table.num_rows, table.column_names) == (0, ["n"])


def test_a_missing_row_and_a_damaged_file_are_refused(path, tmp_path):
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        take_rows(Storage(), path, np.array([len(ROWS)]), None)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        take_rows(Storage(), str(tmp_path / "b.parquet"), np.array([0]), None)


def test_boxes_are_arrays_of_corners():
    assert box_corners(None).shape == box_corners([]).shape == (0, 4)
    box = {"y_max": 4.5, "x_min": 1.0, "y_min": 2.0, "x_max": 3.0, "score": 9.0}
    assert box_corners([box]).tolist() == [[1.0, 2.0, 3.0, 4.5]]
