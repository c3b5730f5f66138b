"""The examples of docs/tools.md run: DuckDB, Polars, pandas, pyarrow, Spark and datasets.

Each tool reads the folder as one table with every value of every column.
"""

import ast
import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvbatch.images.masks import decode_png
from cvbatch.results.schema import COLUMN_TYPES
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.results import SIZE, TASKS, VECTOR_TASKS, random_row, write_predictions

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"## ([\w ]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE, re.DOTALL))
TOOLS = {
    "Python": "cvbatch", "DuckDB": "duckdb", "Polars": "polars", "pandas": "pandas",
    "pyarrow": "pyarrow", "Spark": "pyspark", "Hugging Face datasets": "datasets",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A result with all columns: 12 images, and two that failed."""
    root = tmp_path_factory.mktemp("tools")
    predictions = {f"set/i {n:02d}.png": random_row(n) for n in range(12)}
    files = {name: picture(*SIZE, seed=n) for n, name in enumerate(predictions)}
    jobs.write_files(root / "images", files | jobs.BROKEN)
    options = {"classification": {"heatmap": {"layer": "auto"}}, "detection": {"masks": "box"}}
    return write_predictions(
        *(root / "result", root / "images", predictions, (*TASKS, *VECTOR_TASKS)),
        **options,
    )


@pytest.fixture(scope="module")
def rows(folder):
    """image_id → row, read with pyarrow file by file."""
    tables = [pq.ParquetFile(path).read() for path in sorted(folder.glob("*.parquet"))]
    return {row["image_id"]: row for table in tables for row in table.to_pylist()}


def run(tool, folder):
    """Run the example of a tool; return the value of its last line."""
    if importlib.util.find_spec(TOOLS[tool]) is None:
        pytest.skip(f"{TOOLS[tool]} is not installed")
    *before, last = ast.parse(EXAMPLES[tool].replace("demo-out/result", str(folder))).body
    scope = {}
    exec(compile(ast.Module(before, []), "docs/tools.md", "exec"), scope)
    return eval(compile(ast.Expression(last.value), "docs/tools.md", "eval"), scope)


def test_every_tool_has_an_example_and_every_column_a_value(rows):
    assert set(EXAMPLES) == set(TOOLS)
    assert len(rows) == 14
    assert set(COLUMN_TYPES) <= set(rows["set/i 05.png"])
    assert all(rows["set/i 05.png"][name] for name in COLUMN_TYPES)


def test_python_draws_every_ok_image(folder, rows):
    images = run("Python", folder)
    assert set(images) == {name for name, row in rows.items() if row["status"] == "ok"}
    assert all(image.size == SIZE[::-1] for image in images.values())


def test_duckdb_finds_the_most_confident_boxes(folder, rows):
    boxes = [
        (box["score"], name, box["label"], np.float32(box["x_max"]) - np.float32(box["x_min"]))
        for name, row in rows.items()
        for box in row["boxes"] or []
    ]
    best = sorted(boxes, key=lambda box: (-box[0], box[1]))[:10]
    result = run("DuckDB", folder).fetchall()
    assert result == [(name, label, score, width) for score, name, label, width in best]


def test_polars_counts_the_best_classes(folder):
    assert run("Polars", folder).rows() == [("cat", 12, pytest.approx(0.7))]


def test_pandas_counts_failures(folder):
    assert run("pandas", folder).to_dict() == {"truncated": 2}


def test_pyarrow_returns_arrays(folder, rows):
    arrays = run("pyarrow", folder)
    assert len(arrays) == 12
    for name, (mask, maps) in arrays.items():
        assert np.array_equal(mask, decode_png(rows[name]["mask"]["bytes"]))
        (heatmap,) = rows[name]["heatmaps"]
        assert [values.tolist() for values in maps] == [
            [heatmap["values"][:3], heatmap["values"][3:]]
        ]


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java, which is not installed")
def test_spark_returns_every_box(folder, rows):
    table = run("Spark", folder)
    boxes = sorted(
        (name, box["x_min"], box["label"], box["score"])
        for name, row in rows.items()
        for box in row["boxes"] or []
    )
    columns = ["image_id", "x_min", "label", "score"]
    assert list(table[columns].itertuples(index=False, name=None)) == boxes
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    spark_rows = spark.read.parquet(str(folder)).collect()
    as_dicts = {row["image_id"]: row.asDict(recursive=True) for row in spark_rows}
    assert to_python(as_dicts) == to_python(rows)
    spark.stop()


def test_datasets_read_the_mask_as_an_image(folder, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    dataset = run("Hugging Face datasets", folder)
    assert dataset.num_rows == 14
    for row in dataset:
        expected = rows[row["image_id"]]["mask"]
        if expected is not None:
            assert np.array_equal(np.asarray(row["mask"]), decode_png(expected["bytes"]))


def to_python(value):
    """Convert nested values of any tool to built-in Python types."""
    if isinstance(value, dict):
        return {key: to_python(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [to_python(item) for item in value]
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, np.generic):
        return value.item()
    return None if value is None or value != value else value  # pandas represents null as NaN


def read_duckdb(folder):
    import duckdb

    table = duckdb.sql(f"select * from '{folder}/*.parquet'")
    return [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]


def read_polars(folder):
    import polars

    return polars.read_parquet(f"{folder}/*.parquet").to_dicts()


def read_pandas(folder):
    import pandas

    return pandas.read_parquet(folder).to_dict("records")


def read_pyarrow(folder):
    table = pq.read_table(folder)
    assert not any(isinstance(field.type, pa.ExtensionType) for field in table.schema)
    return table.to_pylist()


@pytest.mark.parametrize("read", [read_duckdb, read_polars, read_pandas, read_pyarrow])
def test_the_folder_is_one_table_with_every_value(folder, rows, read):
    by_id = to_python({row["image_id"]: row for row in read(folder)})
    assert len(by_id) == len(rows)
    assert by_id == to_python(rows)
