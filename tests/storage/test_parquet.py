"""Parquet is read with the rows of pyarrow, and without threads that outlive the interpreter."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

TABLE = pa.table({name: [[i, len(name)] for i in range(1000)] for name in ("a", "bb", "ccc")})
READERS = {
    "read": lambda file: file.read(["a", "ccc"]),
    "read_row_group": lambda file: file.read_row_group(1, ["a", "ccc"]),
    "read_row_groups": lambda file: file.read_row_groups([2, 0], ["a", "ccc"]),
    "iter_batches": lambda file: pa.Table.from_batches(
        list(file.iter_batches(77, [3, 1], ["a", "ccc"]))
    ),
}
COUNT_THREADS = """
import os, sys
import pyarrow.parquet as pq
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

with Storage().open_input(sys.argv[1]) as source:
    file = {"cvbatch": ParquetFile, "pyarrow": pq.ParquetFile}[sys.argv[2]](source)
    before = len(os.listdir("/proc/self/task"))
    file.read(), file.read_row_group(0), file.read_row_groups([1]), list(file.iter_batches(10))
    print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("parquet") / "table.parquet"
    pq.write_table(TABLE, path, row_group_size=250)
    return path


@pytest.mark.parametrize("name", READERS)
def test_rows_are_those_of_pyarrow(path, name):
    with Storage().open_input(str(path)) as source:
        table = READERS[name](ParquetFile(source))
    assert table.equals(READERS[name](pq.ParquetFile(path)))


@pytest.mark.parametrize(("library", "has_threads"), [("cvbatch", False), ("pyarrow", True)])
def test_reading_starts_no_threads_that_could_abort_the_exit_of_the_interpreter(
    path, library, has_threads
):
    command = [sys.executable, "-c", COUNT_THREADS, str(path), library]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (int(printed) > 0) == has_threads
