"""`source.keep_columns`: columns of the source are beside the predictions of their row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.config.predict import JobConfig, fingerprint
from cvbatch.core.errors import ConfigError, CvbatchError
from cvbatch.core.types import Predictions
from cvbatch.planning.plan import make_plan
from cvbatch.predict.stage_timer import StageTimer
from cvbatch.predict.steps import PredictSpec, read_and_decode, write
from cvbatch.results.kept_columns import check_kept_names
from cvbatch.results.result import Result
from cvbatch.sources.formats import INPUT_FORMATS
from cvbatch.storage.store import Storage
from tests.support import jobs

METADATA = b'{"schema_version": 1, "fingerprint": "abc", "models": []}'
NUM_ROWS = 9
NAMES = ["customer_id", "tags", "shop"]


def job_of(folder: Path, **source: Any) -> JobConfig:
    return parse_job(
        {
            "source": {"uri": str(folder / "in"), **source},
            "sink": {"uri": str(folder / "out")},
            "models": [{"task": "classification", "model": "a.keras"}],
        }
    )


def write_source(folder: Path, **columns: Any) -> dict[str, list[Any]]:
    """Write 9 images with a customer, tags and a shop each; return the columns."""
    values: dict[str, Any] = {
        "customer_id": pa.array([f"c{n}" for n in range(NUM_ROWS)]),
        "tags": pa.array([["a"] * (n % 3) for n in range(NUM_ROWS)]),
        "shop": pa.array(["x" if n % 2 else None for n in range(NUM_ROWS)]).dictionary_encode(),
        **columns,
    }
    images = [jobs.encoded_image(n) if n != 4 else b"broken" for n in range(NUM_ROWS)]
    (folder / "in").mkdir(exist_ok=True)
    values.setdefault("image", images)
    table = pa.table(values)
    pq.write_table(table, folder / "in" / "a.parquet", 4)
    kept: dict[str, list[Any]] = table.select(NAMES).to_pydict()
    return kept


def predict_without_models(job: JobConfig, folder: Path) -> pa.Table:
    """Return the result of a job without models, in the order of the source."""
    options = job.source.options
    plan = make_plan(Storage(), job.source, job.sink.uri, 3, 1 << 20, options=options)
    plan.commit()
    input_format = INPUT_FORMATS[plan.format].configured(options)
    kept = input_format.kept_columns(Storage(), str(folder / "in" / "a.parquet"))
    without = job.model_copy(update={"models": []})
    spec = PredictSpec(without, plan.format, (), (), METADATA, 1, {}, tuple(kept))
    for ref in plan.chunks:
        timer = StageTimer()
        batches = [
            Predictions(b.chunk_id, b.image_id, b.uri, b.width, b.height, b.failures, ())
            for b in read_and_decode(spec, spec.new_reader(), ref, timer)
        ]
        write(spec, ref, batches, timer)
    return Result(Storage(), job.sink.uri).table()


@pytest.mark.parametrize("id_column", [None, "customer_id"])
def test_columns_are_beside_their_row(tmp_path: Path, id_column: str | None) -> None:
    kept = write_source(tmp_path)
    options = {"id_column": id_column} if id_column else {}
    result = predict_without_models(job_of(tmp_path, keep_columns=NAMES, **options), tmp_path)
    assert result.select(NAMES).to_pydict() == kept
    rows = list(Result(Storage(), str(tmp_path / "out")))
    assert {name: [row.kept[name] for row in rows] for name in NAMES} == kept
    assert rows[3].image().size == (rows[3].width, rows[3].height)  # read again by its id
    assert result.schema.field("tags").type == pa.list_(pa.string())
    assert result.schema.field("shop").type == pa.string()
    assert result["status"].to_pylist() == ["failed" if n == 4 else "ok" for n in range(NUM_ROWS)]
    keys = kept[id_column] if id_column else range(NUM_ROWS)
    assert result["image_id"].to_pylist() == [f"a.parquet#{key}" for key in keys]


def test_the_images_of_a_list_have_the_columns_of_their_row(tmp_path: Path) -> None:
    lists = [[jobs.encoded_image(n)] * (n % 3) for n in range(NUM_ROWS)]
    kept = write_source(tmp_path, image=lists)
    result = predict_without_models(job_of(tmp_path, keep_columns=NAMES), tmp_path)
    rows = [n for n in range(NUM_ROWS) for _ in range(max(1, n % 3))]
    assert result["customer_id"].to_pylist() == [kept["customer_id"][n] for n in rows]


def test_the_result_without_columns_is_as_before(tmp_path: Path) -> None:
    write_source(tmp_path)
    result = predict_without_models(job_of(tmp_path), tmp_path)
    assert result.schema.names == ["image_id", "uri", "width", "height", "status", "error"]
    plain, kept = job_of(tmp_path), job_of(tmp_path, keep_columns="shop")
    assert fingerprint(plain, ["x"], "litert") != fingerprint(kept, ["x"], "litert")


def test_files_with_other_types_are_reported(tmp_path: Path) -> None:
    write_source(tmp_path)
    numbers = pa.table({"tags": range(NUM_ROWS), "image": [b"x"] * NUM_ROWS})
    pq.write_table(numbers, tmp_path / "in" / "b.parquet")
    with pytest.raises(CvbatchError, match=r"'tags' is list.*int64 in another"):
        predict_without_models(job_of(tmp_path, keep_columns=["tags"]), tmp_path)


@pytest.mark.parametrize("names", [["uri"], ["labels"], ["a", "a"], ["embedding"]])
def test_names_of_the_result_are_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"source\.keep_columns.*rename"):
        check_kept_names(names)
