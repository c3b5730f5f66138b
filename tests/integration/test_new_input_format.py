"""A new input format is one class and one row of a table: here zip files of images."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import cvbatch
from cvbatch.config.loader import parse_job
from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import SinkError, SourceError
from cvbatch.core.types import EncodedImage, ImageBatch, Item
from cvbatch.distributed.resources import Resources
from cvbatch.explain.tables import image_name
from cvbatch.planning import part_files
from cvbatch.planning.plan import Plan, make_plan
from cvbatch.predict.allocation import choose_allocation
from cvbatch.predict.dry_run import estimate
from cvbatch.predict.stage_timer import StageTimer
from cvbatch.predict.steps import PredictSpec, read_and_decode
from cvbatch.results import schema, writer
from cvbatch.sources.base import InputFormat, ReadItems, ReadOptions, image_id_in
from cvbatch.sources.formats import INPUT_FORMATS
from cvbatch.sources.readers import ChunkReader
from cvbatch.sources.units import UNITS
from cvbatch.storage.store import Storage
from tests.support import jobs

METADATA = b'{"schema_version": 1, "fingerprint": "abc", "models": []}'
FIRST = {f"set {n % 2}/{n}.png": jobs.encoded_image(3 * n) for n in range(9)}  # all are PNG
SECOND = {f"{n}.png": jobs.encoded_image(3 * n) for n in range(20, 23)}


class ZipFiles(InputFormat):
    """Zip files of images: the number of images is known from the directory at their end."""

    name = "zip"
    noun = "zip file"
    suffixes = ("zip",)
    key = "member"
    is_split = True

    def expand(
        self, storage: Storage, files: pa.Table, image_column: str, chunk_images: int
    ) -> pa.Table:
        units = []
        for file in files.to_pylist():
            with zipfile.ZipFile(file["uri"]) as archive:
                sizes = [member.compress_size for member in archive.infolist()]
            for start in range(0, len(sizes), chunk_images):
                chunk_sizes = sizes[start : start + chunk_images]
                location = {"row_group": 0, "row_start": start, "first_row": start}
                units.append(
                    {
                        **file,
                        **location,
                        "size_bytes": sum(chunk_sizes),
                        "num_rows": len(chunk_sizes),
                    }
                )
        return pa.Table.from_pylist(units, UNITS)

    def new_reader(self, storage: Storage) -> ReadItems:
        return _read_zips

    def select(self, items: Sequence[Item], wanted: Collection[str]) -> tuple[Item, ...]:
        files = {image_id.partition("#")[0] for image_id in wanted}
        return tuple(item for item in items if item.image_id in files)


def _read_zips(items: Sequence[Item], options: ReadOptions) -> Iterator[EncodedImage]:
    for item in items:
        with zipfile.ZipFile(item.uri) as archive:
            for name in archive.namelist()[item.row_start : item.row_start + item.num_rows]:
                yield EncodedImage(image_id_in(item, name), item.uri, archive.read(name))


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INPUT_FORMATS, "zip", ZipFiles())


@pytest.fixture
def job(tmp_path: Path, keras_files: Path) -> JobConfig:
    """A job over two zip files, with four images per chunk."""
    write_zip(tmp_path / "in" / "a.zip", FIRST)
    write_zip(tmp_path / "in" / "b.zip", SECOND)
    (tmp_path / "in" / "notes.txt").touch()
    values = jobs.job(tmp_path / "in", tmp_path / "out", keras_files, chunk_images=4)
    values["models"] = values["models"][1:2]  # type: ignore[index]
    return parse_job(values, ["run.engine=litert", "run.gpus_per_actor=0"])


def planned(job: JobConfig) -> Plan:
    return make_plan(Storage(), job.source, job.sink.uri, job.run.chunk_images, job.run.chunk_bytes)


def write_chunks(job: JobConfig, plan: Plan, count: int | None = None) -> list[ImageBatch]:
    """Read, decode and write the pending chunks of a plan, like a worker without models."""
    spec = PredictSpec(job, plan.format, (), (), METADATA, 1, plan.revisions)
    reader = ChunkReader(Storage(), plan.format, job.source.image_column)
    arrow_schema = schema.result_schema([])
    batches = []
    for ref in plan.pending[:count]:
        chunk_batches = list(read_and_decode(spec, reader, ref, StageTimer()))
        rows = [
            {"image_id": image_id, "uri": uri, "width": width, "height": height, "status": "ok"}
            for batch in chunk_batches
            for image_id, uri, width, height in zip(
                batch.image_id, batch.uri, batch.width, batch.height, strict=True
            )
        ]
        table = pa.Table.from_pylist(rows, arrow_schema)
        metadata = part_files.with_revision(METADATA, plan.revisions.get(ref.chunk_id, 0))
        writer.write_part(Storage(), job.sink.uri, ref.chunk_id, [table], arrow_schema, metadata)
        batches += chunk_batches
    return batches


def pixels(data: bytes) -> np.ndarray:  # (h, w, 3)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


EXPECTED = {
    **{f"a.zip#{name}": data for name, data in FIRST.items()},
    **{f"b.zip#{name}": data for name, data in SECOND.items()},
}  # by image id, in the order of the manifest


@pytest.mark.keras
def test_it_is_planned_resumed_and_revised(job: JobConfig, tmp_path: Path) -> None:
    plan = planned(job)
    plan.commit()
    assert (plan.format, plan.num_images, plan.num_new) == ("zip", len(EXPECTED), 2)
    assert plan.num_ignored_files == 1
    assert [ref.num_images for ref in plan.chunks] == [4, 4, 4]

    first = write_chunks(job, plan, 1)
    resumed = planned(job)
    assert (resumed.pending, resumed.num_new) == (plan.chunks[1:], 0)
    batches = [*first, *write_chunks(job, resumed)]
    assert [image_id for batch in batches for image_id in batch.image_id] == list(EXPECTED)
    assert not any(batch.failures for batch in batches)
    assert planned(job).is_finished

    result = cvbatch.read(job.sink.uri)
    assert [row.image_id for row in result] == list(EXPECTED)
    for row in reversed(list(result)):
        assert np.array_equal(np.asarray(row.image()), pixels(EXPECTED[row.image_id]))
    assert image_name("a.zip#set 0/0.png", "zip") == "a.zip/set 0/0.png"

    changed = write_zip(tmp_path / "in" / "b.zip", dict(list(SECOND.items())[1:]))
    os.utime(changed, ns=(1, 1))
    revised = planned(job)
    assert (revised.num_changed, revised.num_new, len(revised.pending)) == (1, 0, 1)
    revised.commit()
    write_chunks(job, revised)
    assert [row.image_id for row in cvbatch.read(job.sink.uri)][-2:] == list(EXPECTED)[-2:]
    assert planned(job).is_finished


@pytest.mark.keras
def test_a_dry_run_counts_and_samples_it(job: JobConfig) -> None:
    estimated = estimate(job, jobs.RecordingListener())
    assert (estimated.num_images, estimated.num_images_left) == (len(EXPECTED), len(EXPECTED))
    assert (estimated.sampled_images, estimated.sampled_failures) == (4, 0)
    assert estimated.result_bytes > 0


@pytest.mark.keras
def test_it_can_be_streamed_and_messages_name_it(job: JobConfig, tmp_path: Path) -> None:
    assert choose_allocation(job, "zip", Resources(4, 1), 3).arrangement == "streaming"
    planned(job).commit()
    for path in (tmp_path / "in").glob("*.zip"):
        path.unlink()
    with pytest.raises(SourceError, match="holds no image, Parquet file, tar or zip file;"):
        planned(job)
    jobs.write_files(tmp_path / "in", {"x.jpg": b""})
    with pytest.raises(SinkError, match=r"planned with \{.format.: .zip.\}"):
        planned(job)
    write_zip(tmp_path / "in" / "a.zip", FIRST)
    with pytest.raises(SourceError, match="mixes 1 of format images, 1 of format zip"):
        planned(job)
