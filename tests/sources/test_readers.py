from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.core.errors import StoreError
from cvbatch.core.types import Chunk, EncodedImage, Item
from cvbatch.sources import readers
from cvbatch.sources.readers import SOURCES, read_chunk_images
from cvbatch.sources.tar import read_tar
from cvbatch.storage import retry, store
from tests.support.s3_server import S3Server

LIMIT = 100_000


def read(items: list[Item], format: str, max_bytes: int = LIMIT) -> list[EncodedImage]:
    chunk = Chunk("0" * 16, tuple(items))
    return list(read_chunk_images(chunk, format, "image", max_bytes=max_bytes, threads=3))


def kinds(images: list[EncodedImage]) -> list[str | None]:
    for image in images:
        assert image.failure is None or (image.failure.stage, image.data) == ("read", b"")
    return [image.failure and image.failure.kind for image in images]


@pytest.mark.parametrize("format", SOURCES)
def test_nothing_in_nothing_out(format: str) -> None:
    assert read([], format) == []


# --- files ---------------------------------------------------------------------------------------


def put_files(home: str, count: int) -> list[Item]:
    for i in range(count):
        store.put_bytes(f"{home}/{i} #é.jpg", b"%d" % i * i)
    return [Item(f"{home}/{i} #é.jpg", f"{i} #é.jpg", i) for i in range(count)]


def test_files_come_in_order(tmp_path: Path) -> None:
    items = put_files(str(tmp_path), 40)
    images = read(items, "images")
    assert [(i.image_id, i.uri) for i in images] == [(i.image_id, i.uri) for i in items]
    assert [i.data for i in images] == [b"%d" % i * i for i in range(40)]
    assert read(items[::-1], "images") == images[::-1]


def test_a_bad_file_fails_one_row(tmp_path: Path) -> None:
    items = put_files(str(tmp_path), 6)
    (tmp_path / "1 #é.jpg").unlink()
    (tmp_path / "3 #é.jpg").write_bytes(b"x" * (LIMIT + 1))
    (tmp_path / "4 #é.jpg").unlink()
    (tmp_path / "4 #é.jpg").mkdir()
    images = read(items, "images")
    assert kinds(images) == [None, "missing", None, "too_large", "missing", None]
    assert [i.image_id for i in images] == [i.image_id for i in items]


def test_errors_of_the_store_become_the_right_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = put_files(str(tmp_path), 3)
    answers: dict[str, StoreError] = {
        items[0].uri: store.ShortReadError("half"),
        items[1].uri: retry.AccessDeniedError("no"),
    }

    def answer(uri: str, max_bytes: int) -> bytes:
        if uri in answers:
            raise answers[uri]
        return b"x"

    monkeypatch.setattr(store, "read_bytes", answer)
    assert kinds(read(items, "images")) == ["short_read", "denied", None]
    for fatal in (StoreError("gone"), store.CredentialsError("expired")):
        answers[items[2].uri] = fatal
        with pytest.raises(type(fatal), match=str(fatal)):
            read(items, "images")


def test_few_files_are_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = put_files(str(tmp_path), 50)
    fetched: list[str] = []
    lock = threading.Lock()
    read_bytes = store.read_bytes

    def counted(uri: str, max_bytes: int) -> bytes:
        with lock:
            fetched.append(uri)
        return read_bytes(uri, max_bytes)

    monkeypatch.setattr(store, "read_bytes", counted)
    images = read_chunk_images(
        Chunk("0" * 16, tuple(items)), "images", "image", max_bytes=LIMIT, threads=3
    )
    for taken, _ in enumerate(images, 1):
        assert len(fetched) <= taken + 2 * 3
        if taken == 10:
            break
    assert isinstance(images, Iterator)
    images.close()  # type: ignore[attr-defined]
    assert len(fetched) <= 10 + 2 * 3


def test_files_from_s3(s3: S3Server, tmp_path: Path) -> None:
    items = put_files(f"s3://bucket/{tmp_path.name}", 12)
    items.insert(5, Item(f"s3://bucket/{tmp_path.name}/gone.jpg", "gone.jpg", 1))
    images = read(items, "images")
    assert kinds(images) == [None] * 5 + ["missing"] + [None] * 7
    assert images[12].data == b"11" * 11


# --- Parquet -------------------------------------------------------------------------------------


ROWS: list[bytes | None] = [b"%d" % i * i for i in range(40)]
ROWS[7] = None
ROWS[9] = b"x" * (LIMIT + 1)


@pytest.fixture(
    params=[pa.binary(), pa.large_binary(), pa.binary_view(), pa.struct({"bytes": pa.binary()})]
)
def parquet(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Forty images in row groups of fifteen, each kind of column."""
    is_struct = pa.types.is_struct(request.param)
    values = [{"bytes": row} for row in ROWS] if is_struct else ROWS
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(40), "image": pa.array(values, request.param)}), path, 15)
    return path


def slices(path: Path | str, step: int) -> list[Item]:
    found = []
    for group, rows in enumerate([15, 15, 10]):
        for start in range(0, rows, step):
            count = min(step, rows - start)
            found.append(Item(str(path), "a.parquet", 1, group, start, count, 15 * group + start))
    return found


@pytest.mark.parametrize("step", [1, 4, 15])
def test_slices_give_every_row_once(parquet: Path, step: int) -> None:
    items = slices(parquet, step)
    images = read(items, "parquet")
    assert [i.image_id for i in images] == [f"a.parquet#{n}" for n in range(40)]
    assert {i.uri for i in images} == {str(parquet)}
    assert kinds(images) == [{7: "missing", 9: "too_large"}.get(n) for n in range(40)]
    assert [i.data for i in images if not i.failure] == [
        row for n, row in enumerate(ROWS) if n not in (7, 9)
    ]
    backwards = [image for item in items[::-1] for image in read([item], "parquet")]
    assert sorted(backwards, key=lambda i: int(i.image_id[10:])) == images


def test_a_row_group_is_read_once_by_one_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"%d" % i for i in range(40)]}), path, row_group_size=15)
    opened: list[str] = []
    open_input = store.open_input
    monkeypatch.setattr(store, "open_input", lambda uri: (opened.append(uri), open_input(uri))[1])
    readers._spare.clear()
    read(slices(path, 2), "parquet")
    assert len(opened) == 3


def test_a_damaged_or_shortened_file_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [os.urandom(5000) for _ in range(40)]}), path, 15)
    items = slices(path, 5)
    data = bytearray(path.read_bytes())
    assert kinds(read(items, "parquet")) == [None] * 40
    readers._spare.clear()
    path.write_bytes(data[:10_000] + b"\0" * 100_000 + data[110_000:])
    damaged = read(items, "parquet")
    assert [i.image_id for i in damaged] == [f"a.parquet#{n}" for n in range(40)]
    pq.write_table(pa.table({"image": [b"x"] * 20}), path, row_group_size=15)
    readers._spare.clear()
    shortened = kinds(read(items, "parquet"))
    assert shortened[:20] == [None] * 20
    assert len(shortened) == 40
    assert None not in shortened[20:]
    path.write_bytes(b"nothing of the kind")
    readers._spare.clear()
    assert kinds(read(items, "parquet")) == ["corrupt"] * 40
    path.unlink()
    assert kinds(read(items, "parquet")) == ["missing"] * 40


def test_parquet_from_s3(s3: S3Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [b"%d" % i for i in range(40)]}), buffer, row_group_size=15)
    uri = f"s3://bucket/{tmp_path.name}/a.parquet"
    store.put_bytes(uri, buffer.getvalue())
    assert [i.data for i in read(slices(uri, 4), "parquet")] == [b"%d" % i for i in range(40)]


# --- tars ----------------------------------------------------------------------------------------


def make_tar(members: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def read_tar_file(path: Path, data: bytes, max_bytes: int = LIMIT) -> list[EncodedImage]:
    path.write_bytes(data)
    return read([Item(str(path), "t.tar", len(data), num_rows=0)], "webdataset", max_bytes)


MEMBERS = [
    ("a/0.jpg", b"zero"),
    ("a/0.json", b"{}"),
    ("1 é#.PNG", b"one"),
    ("x/" * 90 + "2.gif", b""),
]
IDS = ["t.tar#a/0.jpg", "t.tar#1 é#.PNG", "t.tar#" + "x/" * 90 + "2.gif"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_the_images_of_a_tar_come_in_order(tmp_path: Path, mode: str) -> None:
    images = read_tar_file(tmp_path / "t.tar", make_tar(MEMBERS, mode))
    assert [i.image_id for i in images] == IDS
    assert [i.data for i in images] == [b"zero", b"one", b""]
    assert kinds(images) == [None] * 3
    assert list(tmp_path.iterdir()) == [tmp_path / "t.tar"]


def test_an_empty_tar_has_no_rows_but_no_tar_has_one(tmp_path: Path) -> None:
    assert read_tar_file(tmp_path / "t.tar", make_tar([])) == []
    for data in [b"", b"not a tar", os.urandom(5000), b"\x1f\x8b\x08junk", b"BZh9junk" * 99]:
        images = read_tar_file(tmp_path / "t.tar", data)
        assert [(i.image_id, *kinds([i])) for i in images] == [("t.tar#", "truncated")]
    (tmp_path / "t.tar").unlink()
    gone = read([Item(str(tmp_path / "t.tar"), "t.tar", 1, num_rows=0)], "webdataset")
    assert [(i.image_id, *kinds([i])) for i in gone] == [("t.tar#", "missing")]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_tar_cut_anywhere_gives_its_whole_images_and_one_failure(mode: str, share: float) -> None:
    members = [(f"{i}.jpg", os.urandom(700)) for i in range(8)]
    whole = make_tar(members, mode)
    end = 8 * (512 + 1024) if mode == "w" else len(whole)  # then come only the marks of the end
    found = list(read_tar(io.BytesIO(whole[: int(share * end)]), LIMIT))
    images = [(m.name, m.data) for m in found if m.name]
    assert images == members[: len(images)]
    if mode == "w" or len(images) < 8:
        assert [m.failure and m.failure.kind for m in found[len(images) :]] == ["truncated"]


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 8 * 1536 - 1), junk=st.binary(min_size=1, max_size=40))
def test_a_damaged_tar_never_loses_an_image_silently(position: int, junk: bytes) -> None:
    members = [(f"{i}.jpg", b"%d" % i * 700) for i in range(8)]
    data = bytearray(make_tar(members))
    data[position : position + len(junk)] = junk
    found = list(read_tar(io.BytesIO(bytes(data)), LIMIT))
    whole = [m for m in found if m.name]
    broke_off = found[-1].name == ""
    assert len(whole) == 8 or broke_off


def test_what_is_no_regular_file_fails_its_row(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in [
            ("d.jpg", tarfile.DIRTYPE),
            ("s.jpg", tarfile.SYMTYPE),
            ("h.jpg", tarfile.LNKTYPE),
            ("c.jpg", tarfile.CHRTYPE),
            ("s.txt", tarfile.SYMTYPE),
        ]:
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            tar.addfile(header)
    images = read_tar_file(tmp_path / "t.tar", buffer.getvalue())
    assert [i.image_id for i in images] == ["t.tar#s.jpg", "t.tar#h.jpg", "t.tar#c.jpg"]
    assert kinds(images) == ["unsupported"] * 3


def test_equal_names_get_different_ids(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.jpg", b"2"), ("a.jpg~2", b""), ("a.jpg", b"3")]
    images = read_tar_file(tmp_path / "t.tar", make_tar(members))
    assert [i.image_id for i in images] == ["t.tar#a.jpg", "t.tar#a.jpg~2", "t.tar#a.jpg~3"]
    assert [i.data for i in images] == [b"1", b"2", b"3"]


def test_a_member_over_the_limit_is_not_read(tmp_path: Path) -> None:
    members = [("a.jpg", b"x" * 101), ("b.jpg", b"x" * 100)]
    images = read_tar_file(tmp_path / "t.tar", make_tar(members), 100)
    assert kinds(images) == ["too_large", None]


@pytest.mark.parametrize("size", [1 << 35, 1 << 37, 1 << 62])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_false_size_costs_no_memory_and_no_time(size: int, kind: bytes) -> None:
    header = tarfile.TarInfo("a.jpg")
    header.size, header.type = size, kind
    data = header.tobuf(tarfile.GNU_FORMAT) + b"x" * 2000
    found = list(read_tar(io.BytesIO(data), LIMIT))
    assert found[-1].name == ""
    assert len(found) <= 2


def test_a_tar_from_s3(s3: S3Server, tmp_path: Path) -> None:
    uri = f"s3://bucket/{tmp_path.name}/t.tar"
    store.put_bytes(uri, make_tar(MEMBERS))
    images = read([Item(uri, "t.tar", 1, num_rows=0)], "webdataset")
    assert [i.image_id for i in images] == IDS
