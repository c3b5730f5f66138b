"""File names, failures, interrupted exports, object stores and refused exports."""

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
from tests.support.results import SIZE, exported, random_predictions, row, tree, write_predictions

pytestmark = pytest.mark.process


@pytest.mark.parametrize("format_", EXPORTS)
def test_a_failed_image_is_only_listed_in_failed_jsonl(tmp_path, result, predictions, format_):
    (tmp_path / "images" / "set" / "i 03.png").unlink()  # since the prediction
    report = exported(format_, result, tmp_path / "out")
    assert report["images"] == {"written": 11, "failed": 3, "not_predicted": 0}
    files = tree(tmp_path / "out")
    listed = [json.loads(line) for line in files["_cvbatch/failed.jsonl"].splitlines()]
    assert {line["image_id"]: line["kind"] for line in listed} == {
        **dict.fromkeys(jobs.BROKEN, "truncated"), "set/i 03.png": "missing",
    }  # fmt: skip
    exported_ids = [
        json.loads(line)["image_id"] for line in files["_cvbatch/images.jsonl"].splitlines()
    ]
    assert set(exported_ids) == set(predictions) - {"set/i 03.png"}
    for name, data in files.items():
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
    # the name that "a.jpg" gets, because other ids have the same stem
    f"a-{hashlib.sha256(b'a.jpg').hexdigest()[:16]}.jpg",
]  # fmt: skip


@pytest.mark.parametrize("format_", EXPORTS)
def test_untrusted_names_stay_in_the_folder_and_unique(tmp_path, result, predictions, format_):
    part = sorted(result.glob("*.parquet"))
    for path in part[1:]:
        path.unlink()
    file = pq.ParquetFile(part[0])
    rows = [row(name, f"/nowhere/{n}", random_predictions(n + 6)) for n, name in enumerate(HOSTILE)]
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
    files = tree(tmp_path / "out" / "in")
    lines = [json.loads(line) for line in files["_cvbatch/images.jsonl"].splitlines()]
    assert [line["image_id"] for line in lines] == HOSTILE
    patterns = {
        "voc": "Annotations/.*xml",
        "yolo": "labels/.*txt",
        "yolo-segment": "labels/.*txt",
        "fiftyone": "masks/.*png",
    }
    if format_ == "coco":
        coco = json.loads(files["annotations/instances_train.json"])
        names = [unicodedata.normalize("NFC", image["file_name"]) for image in coco["images"]]
        assert len({name.casefold() for name in names}) == len(HOSTILE)
    else:
        count = sum(bool(re.fullmatch(patterns[format_], name)) for name in files)
        assert count == len(HOSTILE)
    if format_ == "voc":
        listed = files["ImageSets/Main/train.txt"].decode().splitlines()
        assert {f"Annotations/{stem}.xml" for stem in listed} == {
            name for name in files if name.endswith(".xml")
        }
        for name in listed:
            assert len(name.split()) == 1
            ET.fromstring(files[f"Annotations/{name}.xml"])


@example(image_id="#", is_inside=False, is_flat=True)
@given(image_id=st.text(min_size=1, max_size=250), is_inside=st.booleans(), is_flat=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_image_id_gives_a_path_below_the_folder(image_id, is_inside, is_flat):
    stem, suffix = split_name(image_id, is_inside=is_inside, is_flat=is_flat)
    for name in (f"{stem}{suffix}", unique_stem(stem, image_id, frozenset())):
        path = PurePosixPath(name)
        assert name == str(path)
        assert not path.is_absolute()
        assert all(part.isprintable() and len(part.encode()) <= 255 for part in path.parts)
        assert not any(part[0] in "._ " for part in path.parts)
        assert not set("\\\0\n") & set(name)
        assert not is_flat or (len(path.parts) == 1 and len(name.split()) == 1)


def test_valid_names_are_kept():
    for name in ("a.jpg", "2026/11/21T10:00:00.jpeg", "tür & tor/größe 2.PNG", "a.b.c.tif"):
        assert "".join(split_name(name, is_inside=False, is_flat=False)) == name
    assert split_name("x.tar#a/b.jpg", is_inside=True, is_flat=False) == ("x.tar/a/b", ".jpg")
    assert split_name("a/b c.jpg", is_inside=False, is_flat=True) == ("a_b_c", ".jpg")


def test_images_are_copied_linked_or_left_out(tmp_path, result, predictions):
    exported("yolo", result, tmp_path / "copy")
    exported("yolo", result, tmp_path / "link", images="link")
    exported("yolo", result, tmp_path / "none", images="none")
    assert tree(tmp_path / "copy") == tree(tmp_path / "link") | {
        name: data for name, data in tree(tmp_path / "copy").items() if name.startswith("_cvbatch")
    }
    for name in predictions:
        source = tmp_path / "images" / name
        flat = re.sub("[ /]", "_", name)
        assert (tmp_path / "copy" / "images" / "train" / flat).read_bytes() == source.read_bytes()
        linked = tmp_path / "link" / "images" / "train" / flat
        assert linked.is_symlink()
        assert linked.resolve() == source.resolve()
    assert not (tmp_path / "none" / "images").exists()
    exported("yolo", result, tmp_path / "link", overwrite=True)
    assert (tmp_path / "images" / "set" / "i 00.png").is_file()  # the linked images are not removed


def test_missing_images_are_not_linked(tmp_path, result):
    (tmp_path / "images" / "set" / "i 03.png").unlink()
    report = exported("coco", result, tmp_path / "out", images="link")
    assert report["failures"] == {"decode, truncated": 2, "read, missing": 1}
    assert all(path.exists() for path in (tmp_path / "out" / "images").rglob("*"))


def test_images_in_containers_are_extracted(tmp_path):
    files = {f"{n}.jpg": picture(*SIZE, seed=n) for n in range(5)}  # PNG data, despite the suffix
    jobs.write_parquet(tmp_path / "images" / "a.parquet", files)
    predictions = {f"a.parquet#{n}": random_predictions(n) for n in range(5) if n != 2}
    write_predictions(tmp_path / "result", tmp_path / "images", predictions, format_="parquet")
    report = exported("coco", tmp_path / "result", tmp_path / "out")
    assert report["images"]["failed"] == 1
    paths = {n: tmp_path / "out" / "images" / "train" / "a.parquet" / f"{n}.png" for n in range(5)}
    assert {n: path.read_bytes() for n, path in paths.items() if path.exists()} == {
        n: files[f"{n}.jpg"] for n in (0, 1, 3, 4)
    }
    with pytest.raises(ConfigError, match="is not a local file"):
        exported("coco", tmp_path / "result", tmp_path / "x", images="link")
    assert not (tmp_path / "x").exists()


def test_pending_chunks_are_counted(tmp_path, result):
    sorted(result.glob("*.parquet"))[0].unlink()
    report = exported("coco", result, tmp_path / "out", images="none")
    assert report["images"]["not_predicted"] > 0
    assert sum(report["images"].values()) == 14


def test_a_replanned_chunk_is_pending(tmp_path, result, predictions):
    (tmp_path / "images" / "set" / "i 00.png").write_bytes(picture(*SIZE, seed=99) + b"more")
    plan = make_plan(Storage(), SourceConfig(uri=str(tmp_path / "images")), str(result), 4, 1 << 30)
    plan.commit()
    report = exported("coco", result, tmp_path / "out")
    assert report["images"]["not_predicted"] == 4
    assert sum(report["images"].values()) == 14
    assert b"i 00.png" not in tree(tmp_path / "out")["annotations/instances_train.json"]


def damage(result):
    """Damage the last mask of the result; return a function that restores it."""
    path = [ref for ref in sorted(result.glob("*.parquet")) if pq.read_table(ref).num_rows][-1]
    original = path.read_bytes()
    file = pq.ParquetFile(path)
    rows = file.read().to_pylist()
    rows[-1] = {
        **row("last.png", "/x/last.png", random_predictions(3)),
        "mask": {"bytes": b"no PNG"},
    }
    kind = pa.schema([(field.name, field.type) for field in file.schema_arrow])
    metadata = file.metadata.metadata[b"cvbatch"]
    chunk_id = path.stem.removeprefix("part-")
    writer.write_part(
        Storage(), str(result), chunk_id, [pa.Table.from_pylist(rows, kind)], kind, metadata
    )
    return lambda: path.write_bytes(original)


@pytest.mark.parametrize("format_", ["coco", "voc", "fiftyone"])
def test_an_interrupted_export_is_incomplete_and_starts_again(tmp_path, result, format_):
    exported(format_, result, tmp_path / "complete", images="none")
    restore = damage(result)
    with pytest.raises(CvbatchError, match=r"the mask of 'last\.png'") as error:
        exported(format_, result, tmp_path / "out", images="none")
    assert error.value.exit_status == 1  # files were written
    state = json.loads((tmp_path / "out" / "_cvbatch" / "export.json").read_text())
    assert state["is_complete"] is False
    documents = {"detections.json", "annotations/instances_train.json", "ImageSets/Main/train.txt"}
    assert not documents & set(tree(tmp_path / "out"))
    restore()
    exported(format_, result, tmp_path / "out", images="none")
    assert tree(tmp_path / "out") == tree(tmp_path / "complete")


def test_other_files_in_the_folder_are_never_changed(tmp_path, result):
    jobs.write_files(tmp_path / "full", {"mine.txt": b"mine"})
    for overwrite in (False, True):
        with pytest.raises(
            SinkError, match=r"contains 'mine\.txt', which is not part of an export"
        ):
            exported("coco", result, tmp_path / "full", overwrite=overwrite)
    assert tree(tmp_path / "full") == {"mine.txt": b"mine"}
    for folder in (result, result / "below"):
        with pytest.raises(SinkError, match="would be inside the result"):
            exported("coco", result, folder)
    exported("coco", result, tmp_path / "out")
    first = tree(tmp_path / "out")
    with pytest.raises(SinkError, match="contains an export; use another folder or --overwrite"):
        exported("voc", result, tmp_path / "out")
    assert tree(tmp_path / "out") == first
    jobs.write_files(tmp_path / "out", {"mine.txt": b"mine"})
    exported("voc", result, tmp_path / "out", overwrite=True)
    files = tree(tmp_path / "out")
    assert files.pop("mine.txt") == b"mine"
    assert not [name for name in files if name.startswith(("annotations", "images"))]
    exported("voc", result, tmp_path / "fresh")
    assert files == tree(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("format_", "tasks", "message"),
    [
        (
            "yolo",
            ("classification", "segmentation"),
            "yolo stores boxes, but .* has labels and mask",
        ),
        ("voc", ("classification",), "voc stores boxes and mask, but .* has labels"),
        ("coco", ("classification",), "coco stores boxes and box_masks and mask"),
    ],
)
def test_a_format_that_stores_no_column_of_the_result_is_refused(tmp_path, format_, tasks, message):
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    columns = {"labels"} if tasks == ("classification",) else {"labels", "mask"}
    prediction = {
        key: value for key, value in random_predictions(1).items() if key in columns | {"size"}
    }
    write_predictions(tmp_path / "result", tmp_path / "images", {"a.png": prediction}, tasks)
    with pytest.raises(ConfigError, match=message):
        exported(format_, tmp_path / "result", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    exported("fiftyone", tmp_path / "result", tmp_path / "out")


def change_metadata(result, change):
    """Rewrite the first part file with other metadata."""
    path = min(result.glob("*.parquet"))
    file = pq.ParquetFile(path)
    metadata = change(json.loads(file.metadata.metadata[b"cvbatch"]))
    table = file.read().replace_schema_metadata({})
    encoded = writer.encode_part([table], table.schema, json.dumps(metadata).encode())
    path.write_bytes(encoded)


def test_a_folder_without_a_valid_result_is_refused(tmp_path, result):
    folders = {"nothing": "does not exist", "images": "holds no result of a prediction"}
    for name, message in folders.items():
        with pytest.raises(SourceError, match=message):
            exported("coco", tmp_path / name, tmp_path / "out")
    change_metadata(result, lambda metadata: {**metadata, "fingerprint": "other"})
    with pytest.raises(SourceError, match="is of another job than the rest"):
        exported("coco", result, tmp_path / "out")
    change_metadata(result, lambda metadata: {**metadata, "schema_version": 9})
    with pytest.raises(SourceError, match="has schema version 9, and this cvbatch reads 1"):
        exported("coco", result, tmp_path / "out")
    min(result.glob("*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(RefusedError, match="is not a part of a prediction's result"):
        exported("coco", result, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_s3_and_local_folders_give_the_same_files(tmp_path, result, s3):
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
    with pytest.raises(ConfigError, match="is not a local folder"):
        exported("voc", f"{uri}/result", f"{uri}/x", images="link")


def test_the_command_prints_its_report(tmp_path, result):
    status, stdout, stderr = jobs.cvbatch("export", "yolo", result, tmp_path / "out")
    assert status == 0, stderr
    done = f"cvbatch: done, 12 images into {tmp_path / 'out'}, 2 failed ("
    assert stderr.strip().splitlines()[-1].startswith(done)
    assert stdout.splitlines()[0] == "images   12 written, 2 failed"
    arguments = ["voc", result, tmp_path / "json", "--json", "--split", "0.5,0.5,0", "--seed", 1]
    status, stdout, stderr = jobs.cvbatch(
        "export", *arguments, "--images", "none", "--min-score", "0.5"
    )
    assert status == 0, stderr
    assert json.loads(stdout)["failures"] == {"decode, truncated": 2}
    assert sum(json.loads(stdout)["splits"].values()) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cvat", "result", "x"], "'cvat' is unknown"),
        (["fiftyone", "result", "x", "--split", "1,0,0"], "--split is no option of"),
        (["coco", "images", "x"], "holds no result of a prediction"),
    ],
)
def test_wrong_arguments_are_status_2_without_a_traceback(tmp_path, arguments, message):
    (tmp_path / "images").mkdir()
    status, stdout, stderr = jobs.cvbatch("export", *arguments, cwd=tmp_path)
    assert (status, stdout) == (2, "")
    assert message in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_score": 2.0}, "--min-score 2.0 must be between 0 and 1"),
        ({"min_score": float("nan")}, "must be between 0 and 1"),
        ({"split": "0,1,0"}, "three shares"),
    ],
)
def test_options_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ExportOptions.of(arguments)
