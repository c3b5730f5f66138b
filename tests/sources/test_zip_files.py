"""Reading images from zips: order, slices, damage, encryption, false sizes, other members."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.core.errors import SourceError
from cvbatch.core.ignored import Ignored
from cvbatch.core.types import Chunk, EncodedImage, Item, SourceOptions
from cvbatch.sources import zip_files
from cvbatch.sources.discovery import find_files
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.reading import LIMIT, kinds
from tests.support.s3_server import S3Server

JPEG = jobs.encoded_image(1)


def read_zip(
    uri: str, options: SourceOptions | None = None, chunk_images: int = 3
) -> tuple[list[EncodedImage], Ignored]:
    """Plan a zip and read all its slices; return the images and the ignored members."""
    files = find_files(Storage(), [uri], "zip", "/nowhere", None, options)
    units = files.format.expand(Storage(), files.files, "image", chunk_images).drop(["version"])
    reader = ChunkReader(Storage(), "zip", "image", options=options)
    images, ignored = [], Ignored()
    for unit in units.to_pylist():
        assert unit["num_rows"] <= chunk_images
        images += list(reader.read(Chunk("0" * 16, (Item(**unit),)), LIMIT, ignored))
    return images, ignored


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("method", METHODS)
def test_images_are_read_in_order(tmp_path: Path, method: int) -> None:
    members = {f"d/{i} é.jpg": os.urandom(500) for i in range(8)}
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("d")
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr("../../etc/x.png", b"up")  # a name, nothing is written there
        archive.writestr("__MACOSX/d/._0 é.jpg", b"junk")
        archive.writestr("d/notes.txt", b"text")
        archive.writestr("scan", JPEG)
        archive.writestr("README", b"text")
    images, ignored = read_zip(str(path))
    assert {i.image_id: i.data for i in images} == {
        **{f"a.zip#{name}": data for name, data in members.items()},
        "a.zip#../../etc/x.png": b"up",
        "a.zip#scan": JPEG,
    }
    assert kinds(images) == [None] * 10
    assert ignored.counts == {"junk": 1, "text": 1, "no_suffix": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_the_zip_of_another_program_is_read(tmp_path: Path) -> None:
    """Python's command line writes it; Info-ZIP's if it is installed."""
    jobs.write_files(tmp_path, {"in/1.jpg": b"1", "in/2.jpg": b"2"})
    command = [sys.executable, "-m", "zipfile", "-c", "a.zip", "in"]
    if shutil.which("zip"):
        command = ["zip", "-qr", "a.zip", "in"]
    subprocess.run(command, cwd=tmp_path, check=True)
    images, _ = read_zip(str(tmp_path / "a.zip"))
    assert sorted((i.image_id, i.data) for i in images) == [
        ("a.zip#in/1.jpg", b"1"),
        ("a.zip#in/2.jpg", b"2"),
    ]


def test_one_bad_member_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg"):
            archive.writestr(name, f"data of {name}".encode() * 9)
        archive.writestr("4.jpg", b"x" * (LIMIT + 1))
    data = bytearray(path.read_bytes())
    data[data.index(b"data of 1")] ^= 1  # the checksum is wrong
    listed = data.index(b"2.jpg", data.index(b"PK\1\2")) - 46  # of the third member
    data[listed + 8] |= 1  # it is encrypted
    path.write_bytes(data)
    images, _ = read_zip(str(path))
    assert [i.image_id for i in images] == [f"a.zip#{n}.jpg" for n in range(5)]
    assert kinds(images) == [None, "corrupt", "unsupported", None, "too_large"]


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_member_that_expands_to_more_than_it_says_needs_little_memory(
    tmp_path: Path, method: int
) -> None:
    path = tmp_path / "a.zip"
    size = 1 << 28
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("0.jpg", bytes(size))
        archive.writestr("1.jpg", b"one")
    data = path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", 1000))
    path.write_bytes(data)
    tracemalloc.start()
    images, _ = read_zip(str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kinds(images) == ["corrupt", None]
    assert peak < 150 << 20


def test_bzip2_is_refused_because_it_expands_without_bounds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("0.jpg", b"zero")
    images, _ = read_zip(str(tmp_path / "a.zip"))
    assert kinds(images) == ["unsupported"]


def test_a_list_of_members_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jobs.write_zip(tmp_path / "a.zip", {f"{i}.jpg": b"" for i in range(300)})
    monkeypatch.setattr(zip_files, "_MAX_DIRECTORY_BYTES", 10_000)
    with pytest.raises(SourceError, match="list of members is larger"):
        read_zip(str(path))


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"not a zip")
    with pytest.raises(SourceError, match="not readable as a zip"):
        read_zip(str(tmp_path / "a.zip"))


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 1400), junk=st.binary(min_size=1, max_size=30))
def test_a_damaged_zip_loses_no_image_silently(position: int, junk: bytes) -> None:
    """As many images as its list has, or a refusal."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i in range(8):
            archive.writestr(f"{i}.jpg", b"%d" % i * 50)
    data = bytearray(buffer.getvalue())
    data[position : position + len(junk)] = junk

    class InMemory(Storage):
        def open_input(self, uri: str) -> io.RawIOBase:
            return io.BytesIO(bytes(data))  # type: ignore[return-value]

    item = Item("a.zip", "a.zip", 1, num_rows=8)
    images = list(ChunkReader(InMemory(), "zip", "image").read(Chunk("0" * 16, (item,)), LIMIT))
    assert len(images) == 8
    for image in images:
        assert image.failure or image.data in [b"%d" % i * 50 for i in range(8)]


def test_members_are_selected_by_suffix(tmp_path: Path) -> None:
    names = ["1.jpg", "1.seg.png", "1.depth.png", "1.json", "a.b/2.JPG", "2.png"]
    jobs.write_zip(tmp_path / "a.zip", dict.fromkeys(names, JPEG))
    images, ignored = read_zip(str(tmp_path / "a.zip"), SourceOptions(members=("jpg", "seg.png")))
    assert sorted(i.image_id for i in images) == [
        "a.zip#1.jpg",
        "a.zip#1.seg.png",
        "a.zip#a.b/2.JPG",
    ]
    assert ignored.counts == {"not_selected": 2, "text": 1}


def test_a_zip_is_read_by_ranges_from_s3(s3: S3Server, tmp_path: Path) -> None:
    jobs.write_zip(tmp_path / "a.zip", {f"{i}.jpg": os.urandom(9000) for i in range(9)})
    data = (tmp_path / "a.zip").read_bytes()
    uri = f"s3://bucket/{tmp_path.name}/a.zip"
    Storage().put_bytes(uri, data)
    local, _ = read_zip(str(tmp_path / "a.zip"))
    remote, _ = read_zip(uri)
    assert [(i.image_id, i.data) for i in remote] == [(i.image_id, i.data) for i in local]
