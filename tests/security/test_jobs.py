"""Jobs over malformed archives: one row per image, and no other effect."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import SourceError
from cvbatch.core.types import Chunk, Failure, Item
from cvbatch.images.decode import Limits, decode
from cvbatch.sources.discovery import find_files
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage
from tests.security import containers, images
from tests.support import jobs
from tests.support.s3_server import S3Server

ODD_NAMES = [
    "a b.png", "a#b.png", "a%20b.png", "a%b.png", "a+b.png", "a&b=c?.png", "a\nb.png", "a\tb.png",
    "a\\b.png", "a'b\"c`d$e.png", "[a]*b.png", "🙂.png", "é.png", "e\u0301.png", "عربى.png",
    "-rf.png", "a;rm -rf b.png", "A.png", "a.PNG", "a.png", " .png", "a .png", "a..png", "~.png",
    "x" * 251 + ".png", "é" * 125 + ".png", "{a,b}.png", "a:b|c<d>.png", "NUL.png", "${HOME}.png",
    "\u202egnp.png", "\u200b.png", "\x7f.png", "\x01.png",
]  # fmt: skip
RUN = {"batch_size": 8, "chunk_images": 60, "max_failure_fraction": 1.0, "actors": 2}


def some_files() -> dict[str, bytes]:
    """Return all bombs, false headers and odd names, and a part of the other damaged files."""
    selected = {}
    for index, (name, data) in enumerate(images.malformed_files()):
        part = name.split("/")[0]
        if part == "bomb" or index % (9 if part in ("lying", "wrong") else 40) == 0:
            selected[name.replace(".webp.jpg", ".jpg")] = data
    valid = images.originals()["plain.png"]
    return selected | {f"odd/{name}": valid for name in ODD_NAMES}


def values(source: Path, sink: Path, format: str, models: Path) -> dict[str, Any]:
    return {
        "source": {"uri": str(source), "format": format, "max_pixels": images.PIXEL_LIMIT},
        "sink": {"uri": str(sink)},
        "models": [{"task": "classification", "model": str(models / "nested_classifier.keras")}],
        "run": RUN,
    }


@pytest.fixture(scope="module")
def programs(keras_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a sink, with the compiled program of these jobs."""
    from cvbatch.inference.compile import build
    from cvbatch.inference.programs import build_requests, identify, program_uri

    folder = tmp_path_factory.mktemp("compiled")
    job = parse_job(values(folder, folder, "images", keras_files))
    (request,) = build_requests(job, [identify(Storage(), job.models[0])], "litert")
    path = Path(program_uri(str(folder), request))
    path.parent.mkdir(parents=True)
    path.write_bytes(build(Storage(), request).to_bytes())
    return folder


def run(
    tmp_path: Path, source: Path, format: str, models: Path, programs: Path
) -> list[dict[str, Any]]:
    """Return the rows of a job, which must succeed and change only its sink."""
    sink = jobs.carry_programs(programs, tmp_path / "sink")
    path = jobs.write_job(tmp_path / "job.yaml", values(source, sink, format, models))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if sink not in p.parents}
    before.pop(sink)
    env = {**os.environ, "RAY_ADDRESS": ""}
    status, _, stderr = jobs.cvbatch("predict", "--config", path, cwd=tmp_path, env=env)
    assert status == 0, stderr[-3000:]
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if sink not in p.parents}
    after.pop(sink)
    assert after == before
    names = {p.name for p in sink.iterdir()} - set(jobs.parts(sink))
    assert names == {"_cvbatch"}
    rows: list[dict[str, Any]] = jobs.rows(sink)
    for row in rows:
        assert (row["status"] == "ok") == (row["error"] is None) == bool(row["labels"])
    return rows


@pytest.mark.ray
@pytest.mark.keras
class TestJobs:
    def test_files(self, tmp_path: Path, keras_files: Path, programs: Path) -> None:
        files = some_files()
        assert len(files) > 250
        source = jobs.write_files(tmp_path / "in", files)
        rows = run(tmp_path, source, "images", keras_files, programs)
        assert [row["image_id"] for row in rows] == sorted(files)
        for row in rows:
            expected = decode(files[row["image_id"]], [], Limits(max_pixels=images.PIXEL_LIMIT))
            if isinstance(expected, Failure):
                error = {
                    "stage": expected.stage,
                    "kind": expected.kind,
                    "message": expected.message,
                }
                assert row["error"] == error
            else:
                assert (row["width"], row["height"]) == (expected.width, expected.height)

    def test_tars(self, tmp_path: Path, keras_files: Path, programs: Path) -> None:
        archives = {
            name: data
            for name, data, _ in containers.tars()
            if len(data) < 2_000_000 and not name.startswith("flipped-1") and "000" not in name
        }
        source = jobs.write_files(tmp_path / "in", archives)
        rows = run(tmp_path, source, "webdataset", keras_files, programs)
        found = Counter(row["image_id"].split("#")[0] for row in rows)
        for name in archives:
            path = source / name
            item = Item(str(path), name, path.stat().st_size, num_rows=0)
            chunk = Chunk("0" * 16, (item,))
            expected = ChunkReader(Storage(), "webdataset", "image").read(chunk, 256 << 20)
            assert found[name] == sum(1 for _ in expected), name

    def test_parquet(self, tmp_path: Path, keras_files: Path, programs: Path) -> None:
        archives = {
            name: data
            for name, data in containers.parquets(tmp_path / "canary")
            if not name.startswith(("bomb brotli", "flipped-1"))
        }
        refused, planned = set(), {}
        for name, data in archives.items():
            path = tmp_path / "all" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            try:
                planned[name] = rows_planned(path)
            except SourceError:
                refused.add(name)
        assert min(len(refused), len(planned)) > 30
        source = jobs.write_files(tmp_path / "in", {name: archives[name] for name in planned})
        rows = run(tmp_path, source, "parquet", keras_files, programs)
        found = Counter(row["image_id"].split("#")[0] for row in rows)
        assert found == Counter(planned)
        assert not (tmp_path / "canary").exists()


def rows_planned(path: Path) -> int:
    found = find_files(Storage(), [str(path)], "parquet", "/nowhere")
    return sum(found.format.expand(Storage(), found.files, "image", 1_000)["num_rows"].to_pylist())


def test_a_name_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(b"")
    (tmp_path / os.fsdecode(b"bad \xff\xfe.jpg")).write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"bad \\xff\\xfe\.jpg.* is not Unicode .*rename the file"
    ):
        find_files(Storage(), [str(tmp_path)], "images", str(tmp_path / "sink"))


def test_odd_names_in_a_bucket_stay_distinct(s3: S3Server, tmp_path: Path) -> None:
    names = [name for name in ODD_NAMES if name.isprintable()]
    for name in names:
        place = s3.bucket / tmp_path.name / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(name.encode())
    found = find_files(Storage(), [f"s3://bucket/{tmp_path.name}"], "images", "/nowhere")
    assert sorted(found.files["image_id"].to_pylist()) == sorted(names)
    items = [
        Item(file["uri"], file["image_id"], file["size_bytes"]) for file in found.files.to_pylist()
    ]
    for image in ChunkReader(Storage(), "images", "").read(Chunk("0" * 16, tuple(items)), 10_000):
        assert (image.failure, image.data.decode()) == (None, image.image_id)
