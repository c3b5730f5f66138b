"""Every file of a source is planned or counted by kind."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvbatch.core.errors import SourceError
from cvbatch.core.types import Item, SourceOptions
from cvbatch.images.signatures import IMAGE_SUFFIXES
from cvbatch.sources.base import options_of
from cvbatch.sources.discovery import SourceFiles, find_files
from cvbatch.sources.file_kinds import FILE_KINDS, NO_SUFFIX, UNKNOWN, kind_of, kinds_of
from cvbatch.storage import store
from cvbatch.storage.junk import JUNK_NAMES
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.reading import kinds, read
from tests.support.s3_server import S3Server

JPEG, PNG = jobs.encoded_image(1), jobs.encoded_image(0)
CAMERA_CARD = {
    "_DSC0001.JPG": JPEG,
    "DSC_0002.JPG": JPEG,
    "DSC_0002.NEF": b"II*\0raw",
    "clip.MOV": b"\0\0\0\x14ftypqt  ",
    "scan": PNG,  # no suffix, an image
    "0a1b2c3d4e5f": b"not an image",
    "photo.jpg.orig1": JPEG,
    "broken.unk": b"",
    "notes.txt": JPEG,  # the suffix is known: it is not opened
    "manual.pdf": b"%PDF-",
    "backup.7z": b"7z",
    "._DSC0001.JPG": b"\0\5\x16\7",
    "Thumbs.db": b"",
    "icon.svg": b"<svg/>",
}
IGNORED = {
    "raw_photograph": 1,
    "video": 1,
    "text": 1,
    "document": 1,
    "archive": 1,
    "junk": 2,
    "unsupported_image": 1,
    NO_SUFFIX: 1,
    UNKNOWN: 1,
}
PLANNED = ["DSC_0002.JPG", "_DSC0001.JPG", "photo.jpg.orig1", "scan"]


def found(uri: str, format_: str = "auto", **options: object) -> SourceFiles:
    return find_files(
        Storage(),
        [uri],
        format_,
        "/nowhere",
        None,
        SourceOptions(**options),  # type: ignore[arg-type]
    )


def ids(files: SourceFiles) -> list[str]:
    names: list[str] = files.files["image_id"].to_pylist()
    return names


@pytest.fixture(params=["local", "s3"])
def card(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    uri = str(tmp_path / "card")
    if request.param == "s3":
        request.getfixturevalue("s3")
        uri = f"s3://bucket/{tmp_path.name}"
    for name, data in CAMERA_CARD.items():
        Storage().put_bytes(store.join(uri, name), data)
    return uri


def test_a_file_is_planned_or_counted_with_its_kind_and_name(card: str) -> None:
    files = found(card)
    assert ids(files) == PLANNED
    assert files.ignored.counts == IGNORED
    assert sum(files.ignored.counts.values()) + len(PLANNED) == len(CAMERA_CARD)
    assert files.ignored.examples["junk"] == ["._DSC0001.JPG", "Thumbs.db"]
    assert files.ignored.examples["raw_photograph"] == ["DSC_0002.NEF"]
    assert "raw photograph 1 (DSC_0002.NEF)" in files.ignored.text


def test_raw_photographs_and_videos_are_failed_rows_on_request(card: str) -> None:
    files = found(card, unreadable="fail")
    pictures = {"raw_photograph", "video", "unsupported_image"}
    assert set(ids(files)) - set(PLANNED) == {"DSC_0002.NEF", "clip.MOV", "icon.svg"}
    assert files.ignored.counts == {k: v for k, v in IGNORED.items() if k not in pictures}
    items = [Item(f"{card}/{name}", name, 1) for name in ("DSC_0002.NEF", "clip.MOV")]
    assert kinds(read(items, "images")) == ["unsupported"] * 2  # a NEF begins like a TIFF


def test_a_file_without_suffix_that_cannot_be_read_is_planned(tmp_path: Path) -> None:
    jobs.write_files(tmp_path, {"a.jpg": JPEG})
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    files = found(str(tmp_path))
    assert ids(files) == ["a.jpg", "circle", "gone"]
    assert (
        kinds(read([Item(str(tmp_path / n), n, 0) for n in ("circle", "gone")], "images"))
        == ["missing"] * 2
    )


NAMES = st.sampled_from(
    [*"ab", ".a", "_b", "..c", "a.b"],
).flatmap(
    lambda stem: st.sampled_from(
        ["", *(f".{s}" for i in FILE_KINDS.values() for s in i.suffixes.split()), ".JPG", ".Q", "."]
    ).map(lambda suffix: stem + suffix)
)


@settings(deadline=None)
@given(st.lists(NAMES, max_size=30))
def test_the_kind_of_one_name_equals_that_of_many(names: list[str]) -> None:
    column = pa.chunked_array([[f"/x/{name}" for name in names]], pa.large_string())
    assert kinds_of(column).to_pylist() == [kind_of(f"/x/{name}") for name in names]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.sets(NAMES, min_size=1, max_size=20))
def test_no_file_is_lost(tmp_path: Path, names: set[str]) -> None:
    shutil.rmtree(tmp_path / "in", ignore_errors=True)
    names -= {".", "..", ""}
    jobs.write_files(tmp_path / "in", dict.fromkeys(names, PNG) | {"x.png": PNG})
    try:
        files = found(str(tmp_path / "in"))
    except SourceError as error:
        assert "mixes" in str(error)
        return
    assert files.files.num_rows + sum(files.ignored.counts.values()) == len(names | {"x.png"})


def test_a_suffix_has_one_kind() -> None:
    suffixes = Counter(s for info in FILE_KINDS.values() for s in info.suffixes.split())
    assert max(suffixes.values()) == 1
    assert not set(suffixes) & set(IMAGE_SUFFIXES)
    assert all(suffix == suffix.lower() for suffix in (*suffixes, *IMAGE_SUFFIXES))
    assert len(JUNK_NAMES) > 3


# --- layouts of other tools ----------------------------------------------------------------------


def stats(path: Path) -> None:
    path.write_text(json.dumps({"count": 1}))


def test_a_folder_of_img2dataset_is_recognised(tmp_path: Path) -> None:
    """Tars with a Parquet file and statistics each; or folders of files with them."""
    for shard in ("00000", "00001"):
        jobs.write_tar(tmp_path / "w" / f"{shard}.tar", {"0.jpg": JPEG, "0.json": b"{}"})
        jobs.write_parquet(tmp_path / "w" / f"{shard}.parquet", {"url": b""})
        stats(tmp_path / "w" / f"{shard}_stats.json")
        jobs.write_files(tmp_path / "f" / shard, {"0.jpg": JPEG, "0.txt": b"", "0.json": b"{}"})
        jobs.write_parquet(tmp_path / "f" / f"{shard}.parquet", {"url": b""})
        stats(tmp_path / "f" / f"{shard}_stats.json")
    tars, images = found(str(tmp_path / "w")), found(str(tmp_path / "f"))
    assert (tars.format.name, ids(tars)) == ("webdataset", ["00000.tar", "00001.tar"])
    assert tars.ignored.counts == {"metadata": 2, "text": 2}
    assert (images.format.name, ids(images)) == ("images", ["00000/0.jpg", "00001/0.jpg"])
    assert images.ignored.counts == {"metadata": 2, "text": 6}
    jobs.write_parquet(tmp_path / "w" / "00002.parquet", {"x": b""})  # no tar: images, perhaps
    with pytest.raises(SourceError, match="mixes 3 of format parquet, 2 of format webdataset"):
        found(str(tmp_path / "w"))


def test_a_folder_of_hugging_face_is_recognised(tmp_path: Path) -> None:
    for name in ("README.md", ".gitattributes", "dataset_infos.json"):
        jobs.write_files(tmp_path, {f"p/{name}": b"", f"i/{name}": b""})
    jobs.write_parquet(tmp_path / "p" / "data" / "train-00000-of-00001.parquet", {"a": JPEG})
    jobs.write_files(tmp_path / "i" / "train", {"cat/1.jpg": JPEG, "metadata.jsonl": b""})
    jobs.write_parquet(tmp_path / "i" / "train" / "metadata.parquet", {"a": b""})
    for format_ in ("auto", "parquet"):
        tables = found(str(tmp_path / "p"), format_)
        assert (tables.format.name, tables.files.num_rows) == ("parquet", 1)
        assert tables.ignored.counts == {"text": 2, "junk": 1}
    images = found(str(tmp_path / "i"))
    assert (images.format.name, ids(images)) == ("images", ["train/cat/1.jpg"])
    assert images.ignored.counts == {"text": 3, "junk": 1, "metadata": 1}


def test_zips_beside_more_images_are_counted_as_archives(tmp_path: Path) -> None:
    jobs.write_files(tmp_path, {"1.jpg": JPEG, "2.jpg": JPEG})
    jobs.write_zip(tmp_path / "backup.zip", {"1.jpg": JPEG})
    assert found(str(tmp_path)).ignored.counts == {"archive": 1}
    jobs.write_zip(tmp_path / "other.zip", {"1.jpg": JPEG})
    with pytest.raises(SourceError, match="mixes 2 of format images, 2 of format zip"):
        found(str(tmp_path))


def test_an_option_that_the_format_has_no_use_for_is_refused(tmp_path: Path) -> None:
    jobs.write_files(tmp_path, {"1.jpg": JPEG})
    with pytest.raises(SourceError, match=r"source\.members is set.*format images.*remove it"):
        found(str(tmp_path), members=("jpg",))
    with pytest.raises(SourceError, match=r"source\.keep_columns is set"):
        found(str(tmp_path), keep_columns=("a",))


def test_a_bucket_is_listed_with_its_junk(s3: S3Server, tmp_path: Path) -> None:
    root = f"s3://bucket/{tmp_path.name}"
    for name in ("a.jpg", "__MACOSX/x/._a.jpg", "__MACOSX/._a.jpg", "d/e/f/g/.DS_Store"):
        Storage().put_bytes(f"{root}/{name}", JPEG)
    files = found(root)
    assert ids(files) == ["a.jpg"]
    assert files.ignored.examples == {"junk": ["__MACOSX/", "d/e/f/g/.DS_Store"]}


def test_the_manifest_stores_which_members_are_images(tmp_path: Path) -> None:
    jobs.write_tar(tmp_path / "a.tar", {"1.jpg": JPEG})
    for options in ({}, {"members": ("jpg", "seg.png")}, {"unreadable": "fail"}):
        reading = found(str(tmp_path), **options).format.reading("image")
        assert reading.keys() - {"format"} == options.keys()
        assert options_of(reading) == SourceOptions(**options)  # type: ignore[arg-type]
