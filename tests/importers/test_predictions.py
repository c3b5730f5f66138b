"""What one model said is another's truth: certain labels, boxes and masks, wherever images lay."""

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
    Masks,
    ModelPredictions,
    ModelSpec,
    Predictions,
)
from cvbatch.images.masks import decode_png
from cvbatch.planning import part_files
from cvbatch.planning.plan import make_plan
from cvbatch.results import schema, writer
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.datasets import boxes_of, check_sums, imported, kinds

CLASSES = ("background", "cat", "dog")
TASKS = ("classification", "segmentation", "detection")


def result(source, out, tasks=TASKS, format_="images", **options):
    """Write a prediction's result over `source`: of image i, label 1 has the score 0.3 + 0.2 i.

    The image that is no image fails; every image has the boxes of scores 0.9 and 0.2.
    """
    configs = [{"task": task, "model": "m.keras", **options.get(task, {})} for task in tasks]
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": configs})
    models = [
        schema.ResultModel(one, ModelSpec("m", one.task, CLASSES, 4, 6, "stretch", "f" * 64))
        for one in job.models
    ]
    plan = make_plan(Storage(), SourceConfig(uri=str(source), format=format_), str(out), 3, 1 << 30)
    plan.commit()
    for ref in plan.chunks:
        images = list(
            ChunkReader(Storage(), plan.format, "image").read(plan.read_chunk(ref), 1 << 20)
        )
        table = schema.to_rows(said(images, tasks), models, schema.result_schema(models))
        metadata = schema.result_metadata(models, "abc", "1")
        writer.write_part(
            Storage(), str(out), ref.chunk_id, [table], schema.result_schema(models), metadata
        )
    return plan


def said(images, tasks):
    pixels = [cv2.imdecode(np.frombuffer(i.data, np.uint8), 1) if i.data else None for i in images]
    failures = {
        i: Failure("decode", "not_an_image", "no") for i, one in enumerate(pixels) if one is None
    }
    index = np.array([i for i, one in enumerate(pixels) if one is not None], np.int64)
    shapes = [(0, 0) if one is None else one.shape[:2] for one in pixels]
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
        "segmentation": ModelPredictions(
            masks=Masks(
                np.concatenate([np.zeros(0, np.uint8), *[mask.reshape(-1) for mask in masks]]),
                height[index], width[index], index,
            )
        ),
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
    result(archive(tmp_path / "images"), tmp_path / "result")
    for path in (tmp_path / "result").glob("*.parquet"):
        path.unlink()
    with pytest.raises(SourceError, match="no chunk of the prediction is done"):
        imported("predictions", tmp_path / "result", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_certain_is_the_label(tmp_path):
    source = archive(tmp_path / "images")
    result(source, tmp_path / "result")
    report, rows = imported("predictions", tmp_path / "result", tmp_path / "out", min_score=0.5)
    assert sorted(rows) == [f"i{i:03d}.png" for i in range(4)]
    last = rows["i003.png"]
    assert last["image"]["bytes"] == (source / "i003.png").read_bytes()
    assert [(one["label"], round(one["score"], 4)) for one in last["labels"]] == [("cat", 0.9)]
    assert rows["i000.png"]["labels"] == []  # 0.3: not certain, but its boxes and mask are
    assert boxes_of(last) == [("cat", 1, 2, 5, 6)]
    assert last["boxes"][0]["score"] == np.float32(0.9)
    assert (decode_png(rows["i002.png"]["mask"]["bytes"]) == 2).all()
    assert kinds(report) == {"failed": 1}
    assert report.as_json()["classes"]["mask"] == {"background": 2, "cat": 1, "dog": 1}
    check_sums(report)


def test_a_classifiers_doubt_is_no_label(tmp_path):
    result(archive(tmp_path / "images"), tmp_path / "result", ("classification",))
    report, rows = imported("predictions", tmp_path / "result", tmp_path / "out", min_score=0.6)
    assert sorted(rows) == ["i002.png", "i003.png"]
    assert kinds(report) == {"failed": 1, "below_score": 2}
    check_sums(report)


def test_many_labels_or_none_are_a_label_where_they_do_not_exclude_each_other(tmp_path):
    result(
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
def test_images_inside_containers_are_found_again(tmp_path, format_, write, name):
    files = {f"i{i:03d}.png": jobs.encoded_image(3 * i) for i in range(5)}
    write(tmp_path / "images" / name.partition("#")[0], files)
    result(tmp_path / "images", tmp_path / "result", format_=format_)
    report, rows = imported("predictions", tmp_path / "result", tmp_path / "out")
    names = [name.format(i) for i in range(5)]
    assert sorted(rows) == names
    assert [rows[one]["image"]["bytes"] for one in names] == list(files.values())
    assert (decode_png(rows[names[4]]["mask"]["bytes"]) == 1).all()
    check_sums(report)


def test_masks_are_those_of_their_images_in_any_order(tmp_path):
    files = {f"i{i:03d}.png": jobs.encoded_image(3 * i) for i in range(5)}
    tar = jobs.write_tar(tmp_path / "images" / "a.tar", files)
    result(tmp_path / "images", tmp_path / "result", format_="webdataset")
    _, before = imported("predictions", tmp_path / "result", tmp_path / "before")
    with tarfile.open(tar, "w") as turned:  # since the prediction
        for name, data in reversed(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            turned.addfile(member, io.BytesIO(data))
    _, after = imported("predictions", tmp_path / "result", tmp_path / "after")
    assert len(before) == 5 and before == after


def test_chunks_not_done_are_told(tmp_path):
    plan = result(archive(tmp_path / "images"), tmp_path / "result")
    gone = plan.chunks[0]
    (tmp_path / "result" / part_files.part_name(gone.chunk_id)).unlink()
    report, rows = imported("predictions", tmp_path / "result", tmp_path / "out")
    assert kinds(report)["annotation_missing"] == gone.num_images == 3
    assert len(rows) == 1
    check_sums(report)


def test_chunks_that_were_planned_again_since_are_told_too(tmp_path):
    source = archive(tmp_path / "images")
    plan = result(source, tmp_path / "result")
    (source / "i000.png").write_bytes(jobs.encoded_image(1))  # its rows are of other pixels
    again = make_plan(
        Storage(), SourceConfig(uri=str(source)), str(tmp_path / "result"), 3, 1 << 30
    )
    again.commit()
    assert again.num_changed == 1
    report, rows = imported("predictions", tmp_path / "result", tmp_path / "out")
    assert kinds(report)["annotation_missing"] == plan.chunks[0].num_images == 3
    assert list(rows) == ["i003.png"]
    check_sums(report)


def test_masks_of_the_networks_size_are_told_and_a_part_of_another_job_refused(tmp_path):
    source = archive(tmp_path / "images")
    result(source, tmp_path / "result", segmentation={"mask_size": "model"})
    _, rows = imported("predictions", tmp_path / "result", tmp_path / "out")
    assert len(rows) == 4  # these masks have the images' size all the same
    (tmp_path / "images" / "i000.png").write_bytes(jobs.encoded_image(1))
    with pytest.raises(SourceError, match=r"such as .*i000\.png"):
        imported("predictions", tmp_path / "result", tmp_path / "x", {"declared-size": "refuse"})
    part = next((tmp_path / "result").glob("*.parquet"))
    part.write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="is not a part of a prediction's result"):
        imported("predictions", tmp_path / "result", tmp_path / "y")
