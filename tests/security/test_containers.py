"""No tar or Parquet file whatever loses an image in silence, runs code or fills a process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from cvbatch.sources import webdataset
from cvbatch.sources.tar import read_tar
from tests.security import containers, reading
from tests.security.bounded import run_module

MEMORY_LIMIT = 600 << 20  # a Parquet page is unpacked whole, the largest here has 60 MiB
TAR_MEMORY_LIMIT = 200 << 20


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tars")
    num_before = {}
    for name, data, num_before[name] in containers.tars():
        (folder / name).write_bytes(data)
    before = sorted(folder.parent.rglob("*"))
    said = run_module("reading", str(folder), "webdataset")
    assert sorted(folder.parent.rglob("*")) == before  # nothing was unpacked
    return {**said, "num_before": num_before}


@pytest.fixture(scope="module")
def parquets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("parquets")
    canary = folder.parent / "canary-of-parquets"
    for name, data in containers.parquets(canary):
        (folder / name).write_bytes(data)
    said = run_module("reading", str(folder), "parquet")
    assert not canary.exists()
    return said


def test_no_files_nothing(tmp_path: Path) -> None:
    assert run_module("reading", str(tmp_path), "webdataset")["said"] == {}


def test_every_tar_gives_its_images_and_says_where_it_breaks_off(tars: dict[str, Any]) -> None:
    said = tars["said"]
    assert len(said) > 200
    assert said.keys() == tars["num_before"].keys()
    for name, num_before in tars["num_before"].items():
        rows = said[name]["rows"]  # a tar is never refused, nor does it stop the job
        assert rows.get("read", 0) >= num_before, name
        whole = 10 if num_before and name.endswith(".tar") else num_before
        if name == "pax of false length.tar":
            whole = 9  # what follows is called "x" by it, and so is no image
        if name not in ("no end.tar", "cut.tar", "half an end.tar"):
            assert rows.get("read", 0) >= whole or rows.get("read/truncated") == 1, (name, rows)
        assert set(rows) <= {"read", "read/truncated", "read/unsupported", "read/too_large"}
    assert said["empty.tar"]["rows"] == {}
    assert said["nothing.tar"]["rows"] == {"read/truncated": 1}
    for kind in ("link", "hard link", "char", "block", "fifo"):
        assert said[f"type {kind}.tar"]["rows"] == {"read": 10, "read/unsupported": 1}
    for size in ("10 GiB", "8 EiB", "negative"):
        assert said[f"size {size}.tar"]["rows"] == {"read": 5, "read/truncated": 1}
    assert said["the same 30,000 times.tar"]["rows"] == {"read": 30_010}


def test_names_in_a_tar_are_kept_apart_whatever_they_are(tars: dict[str, Any]) -> None:
    said = tars["said"]
    assert said["name 0.tar"]["first"][5] == "name 0.tar#../../../x.png"
    assert said["name 4.tar"]["first"][5] == "name 4.tar#a\nb.png"
    assert said["name 7.tar"]["first"][5] == "name 7.tar#🙂é.PNG"
    assert said["case.tar"]["first"][5:] == [
        f"case.tar#{name}" for name in ("a.PNG", "A.png", "a.png")
    ]


def test_tars_take_no_memory_and_no_time(tars: dict[str, Any]) -> None:
    assert tars["grown"] < TAR_MEMORY_LIMIT, tars["largest"]
    assert tars["slowest"][0][1] < reading.FILE_LIMIT_S / 2, tars["slowest"]


def test_every_parquet_file_is_refused_or_gives_the_rows_planned(parquets: dict[str, Any]) -> None:
    said = parquets["said"]
    assert len(said) > 200
    for name, one in said.items():
        assert "stopped" not in one, (name, one)
        if "refused" in one:
            assert name in one["refused"], one
            assert "source." in one["refused"] or "more than one column" in one["refused"], one
        else:
            assert sum(one["rows"].values()) == one["planned"], (name, one)
    rows = {name: one.get("rows") for name, one in said.items()}
    assert rows["no rows.parquet"] == {}
    assert rows["nulls.parquet"] == {"read": 1, "read/missing": 2}
    assert rows["column large.parquet"] == rows["pickled type.parquet"] == {"read": 5}
    assert rows["bomb of many.parquet"] == {"read": 600}
    for codec in ("snappy", "gzip", "zstd", "brotli", "lz4"):
        assert rows[f"bomb {codec}.parquet"] == {"read/too_large": 1, "read": 5}
    for name, one in said.items():
        is_row_count = name.startswith("footer of") and (" rows" in name or "values" in name)
        assert not is_row_count or "refused" in one, (name, one)
        if name.startswith(("text", "cut", "marks", "nothing", "footer of 2 GiB for total")):
            assert "refused" in one


def test_parquet_takes_no_memory_and_no_time(parquets: dict[str, Any]) -> None:
    assert parquets["grown"] < MEMORY_LIMIT, parquets["largest"]
    assert parquets["slowest"][0][1] < reading.FILE_LIMIT_S / 2, parquets["slowest"]


def test_a_name_given_a_hundred_thousand_times_takes_no_time() -> None:
    names: dict[str, int] = {}
    given = [webdataset._unique("a.jpg", names) for _ in range(100_000)]
    assert len(set(given)) == 100_000
    assert given[:3] == ["a.jpg", "a.jpg~2", "a.jpg~3"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sparse 1.0", "a member is sparse (GNU 1.0)"),  # its map may be of any length
        ("global headers", "it has too many global headers"),  # they are kept to the end
        ("pax of no length", "a header is damaged"),
        ("size 10 GiB", "a header claims 10737418240 bytes"),
    ],
)
def test_a_tar_that_breaks_off_says_why(name: str, told: str) -> None:
    data = next(data for other, data, _ in containers.tars() if other == f"{name}.tar")
    *_, last = read_tar(io.BytesIO(data), 1_000)
    assert last.failure is not None
    assert told in last.failure.message
