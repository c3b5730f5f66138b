"""Malformed tar and Parquet files lose no image silently, run no code and need little memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from cvbatch.sources import members
from cvbatch.sources.tar import read_tar
from tests.security import containers, reading
from tests.security.bounded import run_module

pytestmark = pytest.mark.process

MEMORY_LIMIT = 600 << 20  # Parquet pages are decompressed as a whole; the largest has 60 MiB
TAR_MEMORY_LIMIT = 200 << 20


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tars")
    num_before = {}
    for name, data, num_before[name] in containers.tars():
        (folder / name).write_bytes(data)
    before = sorted(folder.parent.rglob("*"))
    outcomes = run_module("reading", str(folder), "webdataset")
    assert sorted(folder.parent.rglob("*")) == before  # no file was unpacked
    return {**outcomes, "num_before": num_before}


@pytest.fixture(scope="module")
def parquets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("parquets")
    canary = folder.parent / "canary-of-parquets"
    for name, data in containers.parquets(canary):
        (folder / name).write_bytes(data)
    outcomes = run_module("reading", str(folder), "parquet")
    assert not canary.exists()
    return outcomes


def test_no_files_have_no_outcomes(tmp_path: Path) -> None:
    assert run_module("reading", str(tmp_path), "webdataset")["outcomes"] == {}


def test_every_tar_yields_its_images_and_one_failure_where_it_is_damaged(
    tars: dict[str, Any],
) -> None:
    outcomes = tars["outcomes"]
    assert len(outcomes) > 200
    assert outcomes.keys() == tars["num_before"].keys()
    for name, num_before in tars["num_before"].items():
        rows = outcomes[name]["rows"]  # a tar is never refused and never stops the job
        assert rows.get("read", 0) >= num_before, name
        expected = 10 if num_before and name.endswith(".tar") else num_before
        if name == "pax of false length.tar":
            expected = 9  # the next member is named "x", so it is no image
        if name not in ("no end.tar", "cut.tar", "half an end.tar"):
            assert rows.get("read", 0) >= expected or rows.get("read/truncated") == 1, (name, rows)
        assert set(rows) <= {"read", "read/truncated", "read/unsupported", "read/too_large"}
    assert outcomes["empty.tar"]["rows"] == {}
    assert outcomes["nothing.tar"]["rows"] == {"read/truncated": 1}
    for kind in ("link", "hard link", "char", "block", "fifo"):
        assert outcomes[f"type {kind}.tar"]["rows"] == {"read": 10, "read/unsupported": 1}
    for size in ("10 GiB", "8 EiB", "negative"):
        assert outcomes[f"size {size}.tar"]["rows"] == {"read": 5, "read/truncated": 1}
    assert outcomes["the same 30,000 times.tar"]["rows"] == {"read": 30_010}


def test_names_in_a_tar_stay_distinct(tars: dict[str, Any]) -> None:
    outcomes = tars["outcomes"]
    assert outcomes["name 0.tar"]["first"][5] == "name 0.tar#../../../x.png"
    assert outcomes["name 4.tar"]["first"][5] == "name 4.tar#a\nb.png"
    assert outcomes["name 7.tar"]["first"][5] == "name 7.tar#🙂é.PNG"
    assert outcomes["case.tar"]["first"][5:] == [
        f"case.tar#{name}" for name in ("a.PNG", "A.png", "a.png")
    ]


def test_tars_need_little_memory_and_time(tars: dict[str, Any]) -> None:
    assert tars["grown"] < TAR_MEMORY_LIMIT, tars["largest"]
    assert tars["slowest"][0][1] < reading.FILE_LIMIT_S / 2, tars["slowest"]


def test_every_parquet_file_is_refused_or_yields_the_planned_rows(parquets: dict[str, Any]) -> None:
    outcomes = parquets["outcomes"]
    assert len(outcomes) > 200
    for name, outcome in outcomes.items():
        assert "stopped" not in outcome, (name, outcome)
        if "refused" in outcome:
            assert name in outcome["refused"], outcome
            assert (
                "source." in outcome["refused"] or "more than one column" in outcome["refused"]
            ), outcome
        else:
            assert sum(outcome["rows"].values()) == outcome["planned"], (name, outcome)
    rows = {name: outcome.get("rows") for name, outcome in outcomes.items()}
    assert rows["no rows.parquet"] == {}
    assert rows["nulls.parquet"] == {"read": 1, "read/missing": 2}
    assert rows["column large.parquet"] == rows["pickled type.parquet"] == {"read": 5}
    assert rows["bomb of many.parquet"] == {"read": 600}
    for codec in ("snappy", "gzip", "zstd", "brotli", "lz4"):
        assert rows[f"bomb {codec}.parquet"] == {"read/too_large": 1, "read": 5}
    for name, outcome in outcomes.items():
        is_row_count = name.startswith("footer of") and (" rows" in name or "values" in name)
        assert not is_row_count or "refused" in outcome, (name, outcome)
        if name.startswith(("text", "cut", "marks", "nothing", "footer of 2 GiB for total")):
            assert "refused" in outcome


def test_parquet_needs_little_memory_and_time(parquets: dict[str, Any]) -> None:
    assert parquets["grown"] < MEMORY_LIMIT, parquets["largest"]
    assert parquets["slowest"][0][1] < reading.FILE_LIMIT_S / 2, parquets["slowest"]


def test_a_name_that_occurs_100000_times_needs_little_time() -> None:
    names: dict[str, int] = {}
    unique = [members.unique_name("a.jpg", names) for _ in range(100_000)]
    assert len(set(unique)) == 100_000
    assert unique[:3] == ["a.jpg", "a.jpg~2", "a.jpg~3"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sparse 1.0", "a member is sparse (GNU 1.0)"),  # its map can have any length
        ("global headers", "it has too many global headers"),  # they stay in memory to the end
        ("pax of no length", "a header is damaged"),
        ("size 10 GiB", "a header claims 10737418240 bytes"),
    ],
)
def test_a_damaged_tar_names_the_damage(name: str, message: str) -> None:
    data = next(data for other, data, _ in containers.tars() if other == f"{name}.tar")
    *_, last = read_tar(io.BytesIO(data), 1_000)
    assert last.failure is not None
    assert message in last.failure.message
