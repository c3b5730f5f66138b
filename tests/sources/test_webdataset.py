"""Reading images from tars: order, truncation, damage, false sizes, repeated names."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.core.ignored import Ignored
from cvbatch.core.types import EncodedImage, Item, SourceOptions
from cvbatch.sources import tar
from cvbatch.sources.members import Member
from cvbatch.sources.tar import read_tar
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.reading import LIMIT, kinds, read
from tests.support.s3_server import S3Server

JPEG = jobs.encoded_image(1)


def make_tar(members: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
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
def test_images_of_a_tar_are_read_in_order(tmp_path: Path, mode: str) -> None:
    images = read_tar_file(tmp_path / "t.tar", make_tar(MEMBERS, mode))
    assert [i.image_id for i in images] == IDS
    assert [i.data for i in images] == [b"zero", b"one", b""]
    assert kinds(images) == [None] * 3
    assert list(tmp_path.iterdir()) == [tmp_path / "t.tar"]


def test_an_empty_tar_has_no_images_and_an_unreadable_one_has_a_failure(tmp_path: Path) -> None:
    assert read_tar_file(tmp_path / "t.tar", make_tar([])) == []
    for data in [b"", b"not a tar", os.urandom(5000), b"\x1f\x8b\x08junk", b"BZh9junk" * 99]:
        images = read_tar_file(tmp_path / "t.tar", data)
        assert [(i.image_id, *kinds([i])) for i in images] == [("t.tar#", "truncated")]
    (tmp_path / "t.tar").unlink()
    missing = read([Item(str(tmp_path / "t.tar"), "t.tar", 1, num_rows=0)], "webdataset")
    assert [(i.image_id, *kinds([i])) for i in missing] == [("t.tar#", "missing")]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_truncated_tar_has_its_complete_images_and_one_failure(mode: str, share: float) -> None:
    members = [(f"{i}.jpg", os.urandom(700)) for i in range(8)]
    data = make_tar(members, mode)
    end = 8 * (512 + 1024) if mode == "w" else len(data)  # without the end-of-archive blocks
    read_members = list(read_tar(io.BytesIO(data[: int(share * end)]), LIMIT))
    images = [(m.name, m.data) for m in read_members if m.name]
    assert images == members[: len(images)]
    if mode == "w" or len(images) < 8:
        assert [m.failure and m.failure.kind for m in read_members[len(images) :]] == ["truncated"]


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 8 * 1536 - 1), junk=st.binary(min_size=1, max_size=40))
def test_a_damaged_tar_loses_no_image_silently(position: int, junk: bytes) -> None:
    members = [(f"{i}.jpg", b"%d" % i * 700) for i in range(8)]
    data = bytearray(make_tar(members))
    data[position : position + len(junk)] = junk
    read_members = list(read_tar(io.BytesIO(bytes(data)), LIMIT))
    num_images = sum(bool(m.name) for m in read_members)
    has_failure = read_members[-1].name == ""
    assert num_images == 8 or has_failure


def test_members_that_are_not_regular_files_fail(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in [
            ("d.jpg", tarfile.DIRTYPE),
            ("s.jpg", tarfile.SYMTYPE),
            ("h.jpg", tarfile.LNKTYPE),
            ("c.jpg", tarfile.CHRTYPE),
            ("s.txt", tarfile.SYMTYPE),
        ]:
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
    images = read_tar_file(tmp_path / "t.tar", buffer.getvalue())
    assert [i.image_id for i in images] == ["t.tar#s.jpg", "t.tar#h.jpg", "t.tar#c.jpg"]
    assert kinds(images) == ["unsupported"] * 3


def test_repeated_names_get_different_ids(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.jpg", b"2"), ("a.jpg~2", b""), ("a.jpg", b"3")]
    images = read_tar_file(tmp_path / "t.tar", make_tar(members))
    assert [i.image_id for i in images] == ["t.tar#a.jpg", "t.tar#a.jpg~2", "t.tar#a.jpg~3"]
    assert [i.data for i in images] == [b"1", b"2", b"3"]


def test_a_member_over_the_size_limit_fails(tmp_path: Path) -> None:
    members = [("a.jpg", b"x" * 101), ("b.jpg", b"x" * 100)]
    images = read_tar_file(tmp_path / "t.tar", make_tar(members), 100)
    assert kinds(images) == ["too_large", None]


@pytest.mark.parametrize("size", [1 << 35, 1 << 37, 1 << 62])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_false_size_ends_reading_with_a_failure(size: int, kind: bytes) -> None:
    header = tarfile.TarInfo("a.jpg")
    header.size, header.type = size, kind
    data = header.tobuf(tarfile.GNU_FORMAT) + b"x" * 2000
    members = list(read_tar(io.BytesIO(data), LIMIT))
    assert members[-1].name == ""
    assert len(members) <= 2


def test_a_tar_is_read_from_s3(s3: S3Server, tmp_path: Path) -> None:
    uri = f"s3://bucket/{tmp_path.name}/t.tar"
    Storage().put_bytes(uri, make_tar(MEMBERS))
    images = read([Item(uri, "t.tar", 1, num_rows=0)], "webdataset")
    assert [i.image_id for i in images] == IDS


# --- which members are images --------------------------------------------------------------------


def ignored_of(data: bytes, **options: object) -> tuple[list[Member], dict[str, int]]:
    ignored = Ignored()
    source = SourceOptions(**options)  # type: ignore[arg-type]
    return list(read_tar(io.BytesIO(data), LIMIT, source, ignored)), ignored.counts


def test_a_member_is_read_or_counted() -> None:
    members = [
        ("a/_DSC1.JPG", b"1"),
        ("a/._DSC1.JPG", b"junk"),
        ("__MACOSX/a/x.jpg", b"junk"),
        ("a/1.nef", b"raw"),
        ("a/1.json", b"{}"),
        ("a/scan", JPEG),
        ("a/README", b"text"),
    ]
    read_members, counts = ignored_of(make_tar(members))
    assert [(m.name, m.data) for m in read_members] == [("a/_DSC1.JPG", b"1"), ("a/scan", JPEG)]
    assert counts == {"junk": 2, "raw_photograph": 1, "text": 1, "no_suffix": 1}
    failed, counts = ignored_of(make_tar(members), unreadable="fail")
    assert [m.failure and m.failure.kind for m in failed] == [None, "unsupported", None]
    assert counts == {"junk": 2, "text": 1, "no_suffix": 1}


def test_members_select_the_images_of_a_sample() -> None:
    suffixes = ("jpg", "seg.png", "depth.png", "json")
    data = make_tar([(f"d.1/{i}.{s}", f"{i}{s}".encode()) for i in range(3) for s in suffixes])
    every, counts = ignored_of(data)
    assert len(every) == 9
    assert counts == {"text": 3}
    for members in [("jpg",), ("seg.png",), ("jpg", "depth.png")]:
        chosen, counts = ignored_of(data, members=members)
        assert [m.name for m in chosen] == [f"d.1/{i}.{s}" for i in range(3) for s in members]
        assert counts == {"text": 3, "not_selected": 9 - len(chosen)}


@pytest.mark.parametrize("unpack", ["", ":gz", ":bz2", ":xz"])
def test_several_tars_in_one_file_are_read_as_one(unpack: str) -> None:
    """GNU tar's `--ignore-zeros` lists the same members."""
    mode = f"w{unpack}"
    first, second = (make_tar([(f"{i}.jpg", b"1") for i in n], mode) for n in ([1], [2, 3]))
    for data in (first + second, second + make_tar([], mode) + first):
        members, _ = ignored_of(data)
        assert all(m.failure is None for m in members)
        command = ["tar", f"-t{FLAGS[unpack]}", "--ignore-zeros"]
        listed = subprocess.run(command, input=data, capture_output=True, check=True)
        assert [m.name for m in members] == listed.stdout.decode().split()
    damaged = first + (second[: len(second) // 2] if unpack else b"x" * 512)
    assert ignored_of(damaged)[0][-1].failure is not None


FLAGS = {"": "", ":gz": "z", ":bz2": "j", ":xz": "J"}


def test_a_zstd_tar_is_read_and_bounded() -> None:
    data = make_tar([(f"{i}.jpg", os.urandom(5000)) for i in range(20)])
    packed = pa.Codec("zstd").compress(data, asbytes=True)
    assert ignored_of(packed) == ignored_of(data)
    assert ignored_of(packed * 2)[0] == ignored_of(data)[0] * 2  # two frames
    cut, _ = ignored_of(packed[: len(packed) // 2])
    assert cut[-1].failure is not None
    bomb = pa.Codec("zstd").compress(make_tar([("a.jpg", b"")]), asbytes=True)
    zeros = pa.Codec("zstd").compress(bytes(1 << 28), asbytes=True)
    with mock.patch.object(tar, "_ALWAYS_ALLOWED_BYTES", 1 << 20):
        members, _ = ignored_of(bomb + zeros * 9)
    assert members[0].name == "a.jpg"
    assert "decompresses to more than" in str(members[-1].failure)
