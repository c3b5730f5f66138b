"""Where an export goes: names, failures, half an export, stores; and what is refused."""

import hashlib
import json
import re
import shutil
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cvbatch.config.predict import SourceConfig
from cvbatch.core.errors import ConfigError, CvbatchError, RefusedError, SinkError, SourceError
from cvbatch.exporters.job import EXPORTS
from cvbatch.exporters.options import ExportOptions
from cvbatch.planning.plan import make_plan
from cvbatch.results import writer
from cvbatch.results.safe_names import split_name, unique_stem
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.results import SIZE, exported, predicted, row, saw, tree


@pytest.mark.parametrize("format_", EXPORTS)
def test_a_failed_image_is_listed_and_nowhere_else(tmp_path, result, seen, format_):
    (tmp_path / "images" / "set" / "i 03.png").unlink()  # since the prediction
    report = exported(format_, result, tmp_path / "out")
    assert report["images"] == {"written": 11, "failed": 3, "not_predicted": 0}
    found = tree(tmp_path / "out")
    listed = [json.loads(line) for line in found["_cvbatch/failed.jsonl"].splitlines()]
    assert {one["image_id"]: one["kind"] for one in listed} == {
        **dict.fromkeys(jobs.BROKEN, "truncated"), "set/i 03.png": "missing",
    }  # fmt: skip
    named = [json.loads(line)["image_id"] for line in found["_cvbatch/images.jsonl"].splitlines()]
    assert set(named) == set(seen) - {"set/i 03.png"}
    for name, data in found.items():
        if not name.startswith("_cvbatch"):
            assert not re.search(r"i.03|broken", name)
            assert not re.search(rb"i.03|broken/", data)


HOSTILE = [
    "../../../escape.jpg", "/etc/passwd.png", "a/../../b.jpg", "s3://bucket/x.jpg", "..", "...",
    "new\nline.jpg", "tab\tname.jpg", "null\0.jpg", "back\\slash.jpg", "a.jpg", "A.jpg", "a.png",
    "a.jpg/b.jpg", "a.xml/b.jpg", "a_b.jpg", "a b.jpg", "a/b.jpg", "é.jpg", "e\u0301.jpg",
    "x" * 300 + ".jpg", "y/" * 40 + "deep.jpg", "# comment.jpg", "images/c.jpg", ".hidden.jpg",
    "_under.jpg", "\u202egpj.exe", "<b>&amp;.jpg", "  .jpg", "-", "no suffix",
    "Case.jpg", "cASE.jpg", "solo.png", "solo.png/b.jpg",
    # what "a.jpg", which is not alone, becomes
    f"a-{hashlib.sha256(b'a.jpg').hexdigest()[:16]}.jpg",
]  # fmt: skip


@pytest.mark.parametrize("format_", EXPORTS)
def test_hostile_names_stay_inside_and_apart(tmp_path, result, seen, format_):
    part = sorted(result.glob("*.parquet"))
    for path in part[1:]:
        path.unlink()
    file = pq.ParquetFile(part[0])
    rows = [row(name, f"/nowhere/{n}", saw(n + 6)) for n, name in enumerate(HOSTILE)]
    kind = pa.schema([(field.name, field.type) for field in file.schema_arrow])
    chunk_id = part[0].stem.removeprefix("part-")
    metadata = file.metadata.metadata[b"cvbatch"]
    writer.write_part(
        Storage(), str(result), chunk_id, [pa.Table.from_pylist(rows, kind)], kind, metadata
    )
    before = tree(tmp_path)
    report = exported(format_, result, tmp_path / "out" / "in", images="none")
    assert report["images"]["written"] == len(HOSTILE)
    after = tree(tmp_path)
    assert {name for name in after if name not in before} == {
        f"out/in/{name}" for name in tree(tmp_path / "out" / "in")
    }
    found = tree(tmp_path / "out" / "in")
    lines = [json.loads(line) for line in found["_cvbatch/images.jsonl"].splitlines()]
    assert [line["image_id"] for line in lines] == HOSTILE
    ends = {"voc": "Annotations/.*xml", "yolo": "labels/.*txt", "fiftyone": "masks/.*png"}
    if format_ == "coco":
        said = json.loads(found["annotations/instances_train.json"])
        names = [unicodedata.normalize("NFC", image["file_name"]) for image in said["images"]]
        assert len({name.casefold() for name in names}) == len(HOSTILE)
    else:
        count = sum(bool(re.fullmatch(ends[format_], name)) for name in found)
        assert count == len(HOSTILE)
    if format_ == "voc":
        listed = found["ImageSets/Main/train.txt"].decode().splitlines()
        assert {f"Annotations/{stem}.xml" for stem in listed} == {
            name for name in found if name.endswith(".xml")
        }
        for name in listed:
            assert len(name.split()) == 1
            ET.fromstring(found[f"Annotations/{name}.xml"])


@example(image_id="#", is_inside=False, is_flat=True)
@given(image_id=st.text(min_size=1, max_size=250), is_inside=st.booleans(), is_flat=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_id_is_a_name_below_the_folder(image_id, is_inside, is_flat):
    stem, suffix = split_name(image_id, is_inside=is_inside, is_flat=is_flat)
    for name in (f"{stem}{suffix}", unique_stem(stem, image_id, frozenset())):
        path = PurePosixPath(name)
        assert name == str(path)
        assert not path.is_absolute()
        assert all(part.isprintable() and len(part.encode()) <= 255 for part in path.parts)
        assert not any(part[0] in "._ " for part in path.parts)
        assert not set("\\\0\n") & set(name)
        assert not is_flat or (len(path.parts) == 1 and len(name.split()) == 1)


def test_names_that_can_stand_are_kept():
    for name in ("a.jpg", "2026/11/21T10:00:00.jpeg", "tür & tor/größe 2.PNG", "a.b.c.tif"):
        assert "".join(split_name(name, is_inside=False, is_flat=False)) == name
    assert split_name("x.tar#a/b.jpg", is_inside=True, is_flat=False) == ("x.tar/a/b", ".jpg")
    assert split_name("a/b c.jpg", is_inside=False, is_flat=True) == ("a_b_c", ".jpg")


def test_images_are_copied_linked_or_left(tmp_path, result, seen):
    exported("yolo", result, tmp_path / "copy")
    exported("yolo", result, tmp_path / "link", images="link")
    exported("yolo", result, tmp_path / "none", images="none")
    assert tree(tmp_path / "copy") == tree(tmp_path / "link") | {
        name: data for name, data in tree(tmp_path / "copy").items() if name.startswith("_cvbatch")
    }
    for name in seen:
        source = tmp_path / "images" / name
        flat = re.sub("[ /]", "_", name)
        assert (tmp_path / "copy" / "images" / "train" / flat).read_bytes() == source.read_bytes()
        linked = tmp_path / "link" / "images" / "train" / flat
        assert linked.is_symlink()
        assert linked.resolve() == source.resolve()
    assert not (tmp_path / "none" / "images").exists()
    exported("yolo", result, tmp_path / "link", overwrite=True)
    assert (tmp_path / "images" / "set" / "i 00.png").is_file()  # what links led to stays


def test_no_link_leads_nowhere(tmp_path, result):
    (tmp_path / "images" / "set" / "i 03.png").unlink()
    report = exported("coco", result, tmp_path / "out", images="link")
    assert report["failures"] == {"decode, truncated": 2, "read, missing": 1}
    assert all(path.exists() for path in (tmp_path / "out" / "images").rglob("*"))


def test_images_in_containers_are_taken_out_of_them(tmp_path):
    files = {f"{n}.jpg": picture(*SIZE, seed=n) for n in range(5)}  # PNGs, whatever they are called
    jobs.write_parquet(tmp_path / "images" / "a.parquet", files)
    said = {f"a.parquet#{n}": saw(n) for n in range(5) if n != 2}
    predicted(tmp_path / "result", tmp_path / "images", said, format_="parquet")
    report = exported("coco", tmp_path / "result", tmp_path / "out")
    assert report["images"]["failed"] == 1
    found = {n: tmp_path / "out" / "images" / "train" / "a.parquet" / f"{n}.png" for n in range(5)}
    assert {n: path.read_bytes() for n, path in found.items() if path.exists()} == {
        n: files[f"{n}.jpg"] for n in (0, 1, 3, 4)
    }
    with pytest.raises(ConfigError, match="is not a file on this machine"):
        exported("coco", tmp_path / "result", tmp_path / "x", images="link")
    assert not (tmp_path / "x").exists()


def test_chunks_not_predicted_yet_are_told(tmp_path, result):
    sorted(result.glob("*.parquet"))[0].unlink()
    report = exported("coco", result, tmp_path / "out", images="none")
    assert report["images"]["not_predicted"] > 0
    assert sum(report["images"].values()) == 14


def test_a_chunk_planned_again_is_not_predicted_yet(tmp_path, result, seen):
    (tmp_path / "images" / "set" / "i 00.png").write_bytes(picture(*SIZE, seed=99) + b"more")
    plan = make_plan(Storage(), SourceConfig(uri=str(tmp_path / "images")), str(result), 4, 1 << 30)
    plan.commit()
    report = exported("coco", result, tmp_path / "out")
    assert report["images"]["not_predicted"] == 4
    assert sum(report["images"].values()) == 14
    assert b"i 00.png" not in tree(tmp_path / "out")["annotations/instances_train.json"]


def damage(result):
    """Break the last mask of the result; return how to mend it."""
    path = [ref for ref in sorted(result.glob("*.parquet")) if pq.read_table(ref).num_rows][-1]
    whole = path.read_bytes()
    file = pq.ParquetFile(path)
    rows = file.read().to_pylist()
    rows[-1] = {**row("last.png", "/x/last.png", saw(3)), "mask": {"bytes": b"no PNG"}}
    kind = pa.schema([(field.name, field.type) for field in file.schema_arrow])
    metadata = file.metadata.metadata[b"cvbatch"]
    chunk_id = path.stem.removeprefix("part-")
    writer.write_part(
        Storage(), str(result), chunk_id, [pa.Table.from_pylist(rows, kind)], kind, metadata
    )
    return lambda: path.write_bytes(whole)


@pytest.mark.parametrize("format_", ["coco", "voc", "fiftyone"])
def test_half_an_export_is_not_taken_for_one_and_begins_again(tmp_path, result, format_):
    exported(format_, result, tmp_path / "whole", images="none")
    mend = damage(result)
    with pytest.raises(CvbatchError, match=r"the mask of 'last\.png'") as stopped:
        exported(format_, result, tmp_path / "out", images="none")
    assert stopped.value.exit_status == 1  # files of the export are there
    mark = json.loads((tmp_path / "out" / "_cvbatch" / "export.json").read_text())
    assert mark["is_complete"] is False
    documents = {"detections.json", "annotations/instances_train.json", "ImageSets/Main/train.txt"}
    assert not documents & set(tree(tmp_path / "out"))
    mend()
    exported(format_, result, tmp_path / "out", images="none")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path, result):
    jobs.write_files(tmp_path / "full", {"mine.txt": b"mine"})
    for overwrite in (False, True):
        with pytest.raises(SinkError, match=r"contains 'mine\.txt', which no export wrote"):
            exported("coco", result, tmp_path / "full", overwrite=overwrite)
    assert tree(tmp_path / "full") == {"mine.txt": b"mine"}
    for place in (result, result / "below"):
        with pytest.raises(SinkError, match="would be inside the result"):
            exported("coco", result, place)
    exported("coco", result, tmp_path / "out")
    first = tree(tmp_path / "out")
    with pytest.raises(SinkError, match="contains an export; use another folder or --overwrite"):
        exported("voc", result, tmp_path / "out")
    assert tree(tmp_path / "out") == first
    jobs.write_files(tmp_path / "out", {"mine.txt": b"mine"})
    exported("voc", result, tmp_path / "out", overwrite=True)
    found = tree(tmp_path / "out")
    assert found.pop("mine.txt") == b"mine"
    assert not [name for name in found if name.startswith(("annotations", "images"))]
    exported("voc", result, tmp_path / "fresh")
    assert found == tree(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("format_", "tasks", "told"),
    [
        (
            "yolo",
            ("classification", "segmentation"),
            "yolo keeps boxes, and .* has labels and mask",
        ),
        ("voc", ("classification",), "voc keeps boxes and mask, and .* has labels"),
        ("coco", ("classification",), "coco keeps boxes and mask"),
    ],
)
def test_a_format_that_keeps_nothing_of_it_is_refused(tmp_path, format_, tasks, told):
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    kept = {"labels"} if tasks == ("classification",) else {"labels", "mask"}
    said = {key: value for key, value in saw(1).items() if key in kept | {"size"}}
    predicted(tmp_path / "result", tmp_path / "images", {"a.png": said}, tasks)
    with pytest.raises(ConfigError, match=told):
        exported(format_, tmp_path / "result", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    exported("fiftyone", tmp_path / "result", tmp_path / "out")


def rewritten(result, change):
    """Write the first part again with other metadata."""
    path = min(result.glob("*.parquet"))
    file = pq.ParquetFile(path)
    metadata = change(json.loads(file.metadata.metadata[b"cvbatch"]))
    table = file.read().replace_schema_metadata({})
    encoded = writer.encode_part([table], table.schema, json.dumps(metadata).encode())
    path.write_bytes(encoded)


def test_what_is_no_result_is_refused_in_a_sentence(tmp_path, result):
    for place in (tmp_path / "nothing", tmp_path / "images"):
        with pytest.raises(SourceError, match="holds no result of a prediction"):
            exported("coco", place, tmp_path / "out")
    rewritten(result, lambda said: {**said, "fingerprint": "other"})
    with pytest.raises(SourceError, match="is of another job than the rest"):
        exported("coco", result, tmp_path / "out")
    rewritten(result, lambda said: {**said, "schema_version": 9})
    with pytest.raises(SourceError, match="has schema version 9, and this cvbatch reads 1"):
        exported("coco", result, tmp_path / "out")
    min(result.glob("*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(RefusedError, match="is not a part of a prediction's result"):
        exported("coco", result, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_from_a_store_into_a_store_is_the_same(tmp_path, result, s3):
    shutil.copytree(result, s3.bucket / "exports" / "result")
    uri = f"{s3.bucket_uri}/exports"
    for format_ in EXPORTS:
        for sink_uri in (tmp_path / format_, f"{uri}/{format_}"):
            exported(format_, f"{uri}/result", sink_uri)
        assert tree(s3.bucket / "exports" / format_) == tree(tmp_path / format_)
    with pytest.raises(SinkError, match="contains an export"):
        exported("voc", f"{uri}/result", f"{uri}/coco")
    exported("voc", f"{uri}/result", f"{uri}/coco", overwrite=True)
    assert tree(s3.bucket / "exports" / "coco") == tree(tmp_path / "voc")
    with pytest.raises(ConfigError, match="is not on this machine"):
        exported("voc", f"{uri}/result", f"{uri}/x", images="link")


def test_the_command_tells_what_it_did(tmp_path, result):
    status, said, told = jobs.cvbatch("export", "yolo", result, tmp_path / "out")
    assert status == 0, told
    assert told.strip().endswith(f"cvbatch: done, 12 images into {tmp_path / 'out'}, 2 failed")
    assert said.splitlines()[0] == "images   12 written, 2 failed"
    words = ["voc", result, tmp_path / "json", "--json", "--split", "0.5,0.5,0", "--seed", 1]
    status, said, told = jobs.cvbatch("export", *words, "--images", "none", "--min-score", "0.5")
    assert status == 0, told
    assert json.loads(said)["failures"] == {"decode, truncated": 2}
    assert sum(json.loads(said)["splits"].values()) == 12


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["cvat", "result", "x"], "invalid choice: 'cvat'"),
        (["fiftyone", "result", "x", "--split", "1,0,0"], "unrecognized arguments"),
        (["coco", "images", "x"], "holds no result of a prediction"),
    ],
)
def test_wrong_words_are_status_2_in_a_sentence(tmp_path, words, fault):
    (tmp_path / "images").mkdir()
    status, said, told = jobs.cvbatch("export", *words, cwd=tmp_path)
    assert (status, said) == (2, "")
    assert fault in told
    assert "Traceback" not in told
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"min_score": 2.0}, "--min-score 2.0 must lie between 0 and 1"),
        ({"min_score": float("nan")}, "must lie between 0 and 1"),
        ({"split": "0,1,0"}, "three shares"),
    ],
)
def test_options_that_make_no_sense_are_refused(said, told):
    with pytest.raises(ConfigError, match=told):
        ExportOptions.of(said)
