"""Import of predictions as pseudo-labels, over image files, Parquet and tar archives."""

import io
import re
import tarfile

import cv2
import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.config.predict import SourceConfig
from cvbatch.core.errors import SourceError
from cvbatch.core.types import (
    Boxes,
    Failure,
    Labels,
    ModelPredictions,
    ModelSpec,
    Predictions,
)
from cvbatch.images.masks import decode_png
from cvbatch.inference.postprocess_segmentation import encode_masks
from cvbatch.planning import part_files
from cvbatch.planning.plan import make_plan
from cvbatch.results import schema, writer
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.datasets import boxes_of, check_sums, imported, kinds

CLASSES = ("background", "cat", "dog")
TASKS = ("classification", "segmentation", "detection")


def write_result(source, out, tasks=TASKS, format_="images", **options):
    """Write a result of predictions over `source`; label 1 of image i has the score 0.3 + 0.2 i.

    The empty file fails; every other image has boxes with the scores 0.9 and 0.2.
    """
    configs = [{"task": task, "model": "m.keras", **options.get(task, {})} for task in tasks]
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": configs})
    models = [
        schema.ResultModel(model, ModelSpec("m", model.task, CLASSES, 4, 6, "stretch", "f" * 64))
        for model in job.models
    ]
    plan = make_plan(Storage(), SourceConfig(uri=str(source), format=format_), str(out), 3, 1 << 30)
    plan.commit()
    for ref in plan.chunks:
        images = list(
            ChunkReader(Storage(), plan.format, "image").read(plan.read_chunk(ref), 1 << 20)
        )
        table = schema.to_rows(predictions(images, tasks), models, schema.result_schema(models))
        metadata = schema.result_metadata(models, "abc", "1")
        writer.write_part(
            Storage(), str(out), ref.chunk_id, [table], schema.result_schema(models), metadata
        )
    return plan


def predictions(images, tasks):
    pixels = [cv2.imdecode(np.frombuffer(i.data, np.uint8), 1) if i.data else None for i in images]
    failures = {
        i: Failure("decode", "not_an_image", "no")
        for i, image in enumerate(pixels)
        if image is None
    }
    index = np.array([i for i, image in enumerate(pixels) if image is not None], np.int64)
    shapes = [(0, 0) if image is None else image.shape[:2] for image in pixels]
    number = np.array([_number(images[i].image_id) for i in index])
    score = (0.3 + 0.2 * number).astype(np.float32)
    twice = np.repeat(index, 2)
    class_id = np.tile(np.array([1, 2], np.int32), len(index))
    masks = [np.full(shapes[i], n % 3, np.uint8) for i, n in zip(index, number, strict=True)]
    height, width = (np.array([shape[axis] for shape in shapes], np.int32) for axis in (0, 1))
    boxes = np.tile(np.array([[1, 2, 5, 6], [0, 0, 2, 2]], np.float32), (len(index), 1))
    by_task = {
        "classification": ModelPredictions(
            labels=Labels(class_id, np.stack([score, score - 0.05], 1).reshape(-1), twice)
        ),
        "segmentation": ModelPredictions(masks=encode_masks(masks, index, 3)),
        "detection": ModelPredictions(
            boxes=Boxes(boxes, np.tile(np.float32([0.9, 0.2]), len(index)), class_id, twice)
        ),
    }  # fmt: skip
    return Predictions(
        "c", [i.image_id for i in images], [i.uri for i in images], width, height, failures,
        tuple(by_task[task] for task in tasks),
    )  # fmt: skip


def _number(image_id):
    return int(re.search(r"(\d+)(?:\.png)?$", image_id)[1])


def archive(folder, count=4):
    files = {f"i{i:03d}.png": jobs.encoded_image(3 * i) for i in range(count)}
    return jobs.write_files(folder, files | {"i999.png": b""})


def test_no_result_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(SourceError, match="holds no result of a prediction"):
        imported("predictions", tmp_path / "in", tmp_path / "out")
    write_result(archive(tmp_path / "images"), tmp_path / "result")
    for path in (tmp_path / "result").glob("*.parquet"):
        path.unlink()
    with pytest.raises(SourceError, match="no chunk of the prediction is done"):
        imported("predictions", tmp_path / "result", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predictions_with_the_minimum_score_are_labels(tmp_path):
    source = archive(tmp_path / "images")
    write_result(source, tmp_path / "result")
    report, rows = imported("predictions", tmp_path / "result", tmp_path / "out", min_score=0.5)
    assert sorted(rows) == [f"i{i:03d}.png" for i in range(4)]
    last = rows["i003.png"]
    assert last["image"]["bytes"] == (source / "i003.png").read_bytes()
    assert [(label["label"], round(label["score"], 4)) for label in last["labels"]] == [
        ("cat", 0.9)
    ]
    assert rows["i000.png"]["labels"] == []  # score 0.3; its boxes and mask are imported
    assert boxes_of(last) == [("cat", 1, 2, 5, 6)]
    assert last["boxes"][0]["score"] == np.float32(0.9)
    assert (decode_png(rows["i002.png"]["mask"]["bytes"]) == 2).all()
    assert kinds(report) == {"failed": 1}
    assert report.as_json()["classes"]["mask"] == {"background": 2, "cat": 1, "dog": 1}
    check_sums(report)


def test_images_below_the_minimum_score_are_dropped_in_classification(tmp_path):
    write_result(archive(tmp_path / "images"), tmp_path / "result", ("classification",))
    report, rows = imported("predictions", tmp_path / "result", tmp_path / "out", min_score=0.6)
    assert sorted(rows) == ["i002.png", "i003.png"]
    assert kinds(report) == {"failed": 1, "below_score": 2}
    check_sums(report)


def test_multi_label_images_can_have_several_labels_or_none(tmp_path):
    write_result(
        archive(tmp_path / "images"), tmp_path / "result", ("classification",),
        classification={"multi_label": True},
    )  # fmt: skip
    _, rows = imported("predictions", tmp_path / "result", tmp_path / "out", min_score=0.6)
    assert {name: len(row["labels"]) for name, row in rows.items()} == {
        "i000.png": 0, "i001.png": 0, "i002.png": 2, "i003.png": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("format_", "write", "name"),
    [
        ("parquet", jobs.write_parquet, "a.parquet#{}"),
        ("webdataset", jobs.write_tar, "a.tar#i00{}.png"),
    ],
)
def test_images_in_containers_are_read(tmp_path, format_, write, name):
    files = {f"i{i:03d}.png": jobs.encoded_image(3 * i) for i in range(5)}
    write(tmp_path / "images" / name.partition("#")[0], files)
    write_result(tmp_path / "images", tmp_path / "result", format_=format_)
    report, rows = imported("predictions", tmp_path / "result", tmp_path / "out")
    names = [name.format(i) for i in range(5)]
    assert sorted(rows) == names
    assert [rows[name]["image"]["bytes"] for name in names] == list(files.values())
    assert (decode_png(rows[names[4]]["mask"]["bytes"]) == 1).all()
    check_sums(report)


def test_masks_belong_to_their_images_in_any_order(tmp_path):
    files = {f"i{i:03d}.png": jobs.encoded_image(3 * i) for i in range(5)}
    tar = jobs.write_tar(tmp_path / "images" / "a.tar", files)
    write_result(tmp_path / "images", tmp_path / "result", format_="webdataset")
    _, before = imported("predictions", tmp_path / "result", tmp_path / "before")
    with tarfile.open(tar, "w") as reversed_tar:  # after the prediction
        for name, data in reversed(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            reversed_tar.addfile(member, io.BytesIO(data))
    _, after = imported("predictions", tmp_path / "result", tmp_path / "after")
    assert len(before) == 5 and before == after


def test_missing_chunks_are_counted(tmp_path):
    plan = write_result(archive(tmp_path / "images"), tmp_path / "result")
    missing = plan.chunks[0]
    (tmp_path / "result" / part_files.part_name(missing.chunk_id)).unlink()
    report, rows = imported("predictions", tmp_path / "result", tmp_path / "out")
    assert kinds(report)["annotation_missing"] == missing.num_images == 3
    assert len(rows) == 1
    check_sums(report)


def test_chunks_planned_again_after_the_prediction_are_counted(tmp_path):
    source = archive(tmp_path / "images")
    plan = write_result(source, tmp_path / "result")
    (source / "i000.png").write_bytes(jobs.encoded_image(1))  # its row belongs to the old bytes
    again = make_plan(
        Storage(), SourceConfig(uri=str(source)), str(tmp_path / "result"), 3, 1 << 30
    )
    again.commit()
    assert again.num_changed == 1
    report, rows = imported("predictions", tmp_path / "result", tmp_path / "out")
    assert kinds(report)["annotation_missing"] == plan.chunks[0].num_images == 3
    assert list(rows) == ["i003.png"]
    check_sums(report)


def test_changed_images_and_damaged_parts_are_refused(tmp_path):
    source = archive(tmp_path / "images")
    write_result(source, tmp_path / "result", segmentation={"mask_size": "model"})
    _, rows = imported("predictions", tmp_path / "result", tmp_path / "out")
    assert len(rows) == 4  # these masks have the size of the images
    (tmp_path / "images" / "i000.png").write_bytes(jobs.encoded_image(1))
    with pytest.raises(SourceError, match=r"such as .*i000\.png"):
        imported("predictions", tmp_path / "result", tmp_path / "x", {"declared-size": "refuse"})
    part = next((tmp_path / "result").glob("*.parquet"))
    part.write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="is not a part of a prediction's result"):
        imported("predictions", tmp_path / "result", tmp_path / "y")
