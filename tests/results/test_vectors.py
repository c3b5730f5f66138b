"""Columns of vectors: fixed sizes, nulls, order, and rows by name."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cvbatch
from cvbatch.config.loader import parse_job
from cvbatch.core.types import Failure, ModelPredictions, ModelSpec, Predictions, Vectors
from cvbatch.results import schema, writer
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.results import CLASSES, SIZE, VECTOR_TASKS, random_row, write_predictions


def models_of(*tasks: str) -> list[schema.ResultModel]:
    sections = [{"task": task, "model": "m.keras"} for task in tasks]
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": sections})
    return [
        schema.ResultModel(
            config,
            ModelSpec(
                *("m", config.task, ("a", "b"), 4, 4, "stretch", "f" * 64),
                dimension=2 if config.task in VECTOR_TASKS else 0,
            ),
        )
        for config in job.models
    ]


def batch(failed: tuple[int, ...], *predictions: ModelPredictions) -> Predictions:
    sides = np.full(4, 4, np.int32)
    failures = {i: Failure("decode", "empty", "0 bytes") for i in failed}
    return Predictions("c", list("abcd"), list("abcd"), sides, sides, failures, predictions)


@pytest.mark.parametrize("failed", [(), (0,), (1, 3), (0, 1, 2, 3)])
def test_every_ok_row_has_its_vector_and_failed_rows_have_none(failed: tuple[int, ...]) -> None:
    models = models_of(*VECTOR_TASKS)
    index = np.array([i for i in range(4) if i not in failed])
    values = np.stack([index, index + 0.5], axis=1).astype(np.float32)
    filled = (
        ModelPredictions(embedding=Vectors(values, index)),
        ModelPredictions(values=Vectors(-values, index)),
    )
    predictions = filled if len(index) else (ModelPredictions(), ModelPredictions())
    columns = schema.result_schema(models)
    rows = schema.to_rows(batch(failed, *predictions), models, columns)
    stored = pq.read_table(BytesIO(writer.encode_part([rows], columns, b"{}")))
    for table in (rows, stored):
        expected = [None if i in failed else [i, i + 0.5] for i in range(4)]
        assert table["embedding"].to_pylist() == expected
        assert table["values"].to_pylist() == [v and [-v[0], -v[1]] for v in expected]
        assert pa.types.is_fixed_size_list(table.schema.field("values").type)


def test_only_results_with_vectors_store_the_arrow_schema() -> None:
    for task, is_stored in (("classification", False), ("embedding", True)):
        part = writer.encode_part([], schema.result_schema(models_of(task)), b"{}")
        assert (b"ARROW:schema" in pq.read_metadata(BytesIO(part)).metadata) == is_stored


def test_rows_have_the_embedding_as_an_array_and_values_by_name(tmp_path: Path) -> None:
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)} | jobs.BROKEN)
    row = random_row(3)
    result = write_predictions(tmp_path / "out", tmp_path / "images", {"a.png": row}, VECTOR_TASKS)
    read, *failed = cvbatch.read(result)
    np.testing.assert_array_equal(read.embedding, np.array(row["embedding"], np.float32))
    assert read.values == dict(zip(CLASSES, row["values"], strict=True))
    assert [(other.embedding, other.values) for other in failed] == [(None, None)] * 2
