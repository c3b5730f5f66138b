"""All readers of a result return the same rows, masks and images and refuse the same damage."""

import io
import json
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cvbatch
from cvbatch.config.predict import SourceConfig
from cvbatch.core.errors import SourceError
from cvbatch.core.progress import Listener
from cvbatch.evaluate.join import join, load_ground_truth, predictions_only, read_joined_part
from cvbatch.images.masks import decode_png
from cvbatch.planning.plan import make_plan
from cvbatch.report.statistics import collect_statistics
from cvbatch.results import writer
from cvbatch.results.result import Result
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.datasets import boxes_of, imported, picture
from tests.support.evaluations import write_truth
from tests.support.results import (
    CLASSES,
    SIZE,
    corners,
    exported,
    random_predictions,
    write_predictions,
)

FILES = {f"{name}{n}.png": picture(*SIZE, seed=n) for n, name in enumerate("aaaabbbbcc")}
FAILED_FILES = ("a2.png", "b5.png")


def write_images(folder):
    jobs.write_files(folder, FILES)
    return list(FILES), lambda: jobs.write_files(folder, {"c8.png": FILES["c8.png"] + b"more"})


def write_parquet(folder):
    ids = []
    for name in "abc":
        members = {key: data for key, data in FILES.items() if key.startswith(name)}
        path = jobs.write_parquet(folder / f"{name}.parquet", members)
        ids += [f"{path.name}#{row}" for row in range(len(members))]
    return ids, lambda: jobs.write_parquet(folder / "c.parquet", {"c8.png": FILES["c8.png"]})


def write_tars(folder):
    ids = []
    for name in "abc":
        members = {key: data for key, data in FILES.items() if key.startswith(name)}
        path = jobs.write_tar(folder / f"{name}.tar", members)
        ids += [f"{path.name}#{key}" for key in members]
    return ids, lambda: jobs.write_tar(folder / "c.tar", {"c8.png": FILES["c8.png"]})


SOURCES = {"images": write_images, "parquet": write_parquet, "webdataset": write_tars}


@pytest.fixture(params=SOURCES)
def case(request, tmp_path):
    """A result of 8 of 10 images, and their predictions: image id → as of `saw`; None: failed."""
    ids, change_last_chunk = SOURCES[request.param](tmp_path / "source")
    predictions = {
        image_id: None if name in FAILED_FILES else random_predictions(n)
        for n, (image_id, name) in enumerate(zip(ids, FILES, strict=True))
    }
    successful = {key: prediction for key, prediction in predictions.items() if prediction}
    out = write_predictions(
        tmp_path / "out", tmp_path / "source", successful, format_=request.param
    )
    change_last_chunk()
    source = SourceConfig(uri=str(tmp_path / "source"), format=request.param)
    make_plan(Storage(), source, str(out), 4, 1 << 30).commit()
    return out, dict(list(predictions.items())[:8])


def test_without_rows_all_readers_return_nothing(tmp_path):
    jobs.write_files(tmp_path / "source", FILES)
    out = tmp_path / "out"
    make_plan(Storage(), SourceConfig(uri=str(tmp_path / "source")), str(out), 4, 1 << 30).commit()
    result = Result(Storage(), str(out))
    assert (list(result), result.done, result.image_ids(), result.classes) == ([], [], [], {})
    assert len(result.missing) == 3
    assert collect_statistics(result, Listener()).num_rows == 0
    assert predictions_only(result).parts == []
    for read in (lambda: imported("predictions", out, tmp_path / "x"),
                 lambda: exported("coco", out, tmp_path / "x")):  # fmt: skip
        with pytest.raises(SourceError, match="no chunk of the prediction is done"):
            read()


def test_rows_are_read_with_masks_boxes_and_images(case):
    out, predictions = case
    result = cvbatch.read(out)
    rows = list(result)
    assert [row.image_id for row in rows] == list(predictions)
    assert [row.image_id for row in rows if row.error] == [
        key for key in predictions if not predictions[key]
    ]
    for row, data in zip(rows, FILES.values(), strict=False):
        if row.error is None:
            prediction = predictions[row.image_id]
            assert np.array_equal(row.xyxy, corners(prediction))
            assert np.array_equal(row.mask, decode_png(prediction["mask"]["bytes"]))
            assert np.array_equal(row.image(), Image.open(io.BytesIO(data)).convert("RGB"))
    assert [key for ids in result.image_ids() for key in ids.to_pylist()] == list(predictions)
    assert result.num_chunks_left == 1


def test_columns_and_minimum_scores_are_selected(case):
    out, predictions = case
    result = Result(Storage(), str(out))
    rows = [row for ref in result.done for row in result.rows(ref, ["boxes"], num_rows=3)]
    assert [row.image_id for row in rows] == list(predictions)
    for row in rows:
        assert row.labels is None and row.mask is None
        boxes = (predictions[row.image_id] or {"boxes": []})["boxes"]
        scores = [np.float32(box["score"]) for box in boxes]
        selected = row.with_min_score(0.5).boxes or []
        assert [box["score"] for box in selected] == [score for score in scores if score >= 0.5]


def test_an_export_has_the_same_rows(case, tmp_path):
    out, predictions = case
    exported("fiftyone", out, tmp_path / "export")
    lines = {
        name: [json.loads(line) for line in (tmp_path / "export" / "_cvbatch" / f"{name}.jsonl")
               .read_text().splitlines()]
        for name in ("images", "failed")
    }  # fmt: skip
    assert [line["image_id"] for line in lines["images"]] == [
        key for key in predictions if predictions[key]
    ]
    assert [line["image_id"] for line in lines["failed"]] == [
        key for key in predictions if not predictions[key]
    ]
    originals = dict(zip(predictions, FILES.values(), strict=False))
    detections = json.loads((tmp_path / "export" / "detections.json").read_text())["labels"]
    for line in lines["images"]:
        prediction, name = predictions[line["image_id"]], line["name"]
        assert (tmp_path / "export" / "data" / name).read_bytes() == originals[line["image_id"]]
        stem = name.rpartition(".")[0]
        mask = (tmp_path / "export" / "masks" / f"{stem}.png").read_bytes()
        assert np.array_equal(decode_png(mask), decode_png(prediction["mask"]["bytes"]))
        assert len(detections[stem]) == len(prediction["boxes"])


def test_an_import_has_the_same_rows(case, tmp_path):
    out, predictions = case
    report, rows = imported("predictions", out, tmp_path / "labels", min_score=0.0)
    assert set(rows) == {key for key in predictions if predictions[key]}
    assert report.issues["failed"].count == 2
    assert report.issues["annotation_missing"].count >= 1
    originals = dict(zip(predictions, FILES.values(), strict=False))
    for image_id, row in rows.items():
        prediction = predictions[image_id]
        assert row["image"]["bytes"] == originals[image_id]
        expected = decode_png(prediction["mask"]["bytes"])
        assert np.array_equal(decode_png(row["mask"]["bytes"]), expected)
        xyxy = np.array([box[1:] for box in boxes_of(row)], np.float32).reshape(-1, 4)
        assert np.array_equal(xyxy, corners(prediction))


def test_a_report_counts_the_same_rows(case):
    out, predictions = case
    statistics = collect_statistics(Result(Storage(), str(out)), Listener())
    ok = [prediction for prediction in predictions.values() if prediction]
    assert (statistics.num_rows, statistics.num_failed) == (
        len(predictions),
        len(predictions) - len(ok),
    )
    boxes = Counter(box["class_id"] for prediction in ok for box in prediction["boxes"])
    assert statistics.num_elements["boxes"] == boxes


def test_an_evaluation_joins_the_same_rows(case, tmp_path):
    out, predictions = case
    result = Result(Storage(), str(out))
    mask = np.zeros(SIZE, np.uint8)
    truth = {image_id: {"mask": mask} for image_id in reversed(predictions)}
    write_truth(tmp_path / "truth", truth, {"mask": CLASSES})
    joined = join(result, load_ground_truth(Storage(), [str(tmp_path / "truth")], None), None)
    assert (joined.num_images, len(joined.no_truth), len(joined.no_prediction)) == (8, 0, 0)
    for piece in joined.parts:
        predicted_rows, true_rows = read_joined_part(piece, ["image_id", "mask"], ["image_id"])
        assert predicted_rows["image_id"].to_pylist() == true_rows["image_id"].to_pylist()
        for row in predicted_rows.to_pylist():
            prediction = predictions[row["image_id"]]
            expected = prediction and prediction["mask"]["bytes"]
            assert (row["mask"] or {}).get("bytes") == expected


def change_metadata(path, **change):
    file = pq.ParquetFile(path)
    metadata = {**json.loads(file.metadata.metadata[b"cvbatch"]), **change}
    table = file.read()
    path.write_bytes(
        writer.encode_part([table], table.schema, json.dumps(metadata).encode()).to_pybytes()
    )


DAMAGES = {
    "is of another job than the rest": lambda path: change_metadata(path, fingerprint="other"),
    "has schema version 9": lambda path: change_metadata(path, schema_version=9),
    "metadata is incomplete": lambda path: change_metadata(path, models=None),
    "is not a part of a prediction's result": lambda path: path.write_bytes(b"PAR1"),
}
READERS = {
    "read": lambda out, to: list(cvbatch.read(out)),
    "export": lambda out, to: exported("coco", out, to),
    "import": lambda out, to: imported("predictions", out, to),
    "report": lambda out, to: collect_statistics(Result(Storage(), str(out)), Listener()),
    "evaluate": lambda out, to: predictions_only(Result(Storage(), str(out))),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_part_is_refused_by_every_reader(tmp_path, message, reader):
    jobs.write_files(tmp_path / "source", FILES)
    out = write_predictions(
        tmp_path / "out", tmp_path / "source", {"a0.png": random_predictions(0)}
    )
    READERS[reader](out, tmp_path / "intact")
    last = out / f"part-{Result(Storage(), str(out)).done[-1].chunk_id}.parquet"
    DAMAGES[message](last)
    with pytest.raises(SourceError, match=message) as refused:
        READERS[reader](out, tmp_path / "damaged")
    assert last.name in str(refused.value) and "\n" not in str(refused.value)


def test_all_readers_accept_a_chunk_without_images(tmp_path):
    jobs.write_tar(tmp_path / "source" / "a.tar", {})
    jobs.write_tar(tmp_path / "source" / "b.tar", {"0.png": b"broken"})
    out = write_predictions(tmp_path / "out", tmp_path / "source", {}, format_="webdataset")
    result = Result(Storage(), str(out))
    assert [len(ids) for ids in result.image_ids()] == [0, 1]
    assert [len(piece.part_row) for piece in predictions_only(result).parts] == [0, 1]
    (pick,) = collect_statistics(result, Listener()).random_rows()
    assert pick == (result.done[1], 0)
    shutil.copytree(out, tmp_path / "copy")
    assert exported("coco", tmp_path / "copy", tmp_path / "x")["images"]["failed"] == 1
