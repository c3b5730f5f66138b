"""COCO's metrics by size use the area of the annotation, as pycocotools does."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cvbatch.evaluate.columns import score_rows
from cvbatch.evaluate.join import join, load_ground_truth, read_joined_part
from cvbatch.evaluate.scoring import EvaluationSpec
from cvbatch.results.result import Result
from cvbatch.storage.store import Storage
from tests.metrics.test_average_precision import COCO_METRICS
from tests.support.datasets import imported, picture, put
from tests.support.evaluations import write_result

CLASSES = {"boxes": ("cup", "hat")}
SIZE = (300, 400)
COLUMNS = ("boxes", "box_is_crowd", "box_area")


def random_case(seed, num_images=12):
    """Return a COCO document whose areas differ from its boxes, and predictions near the boxes."""
    rng = np.random.default_rng(seed)
    images, annotations, rows = [], [], {}
    for i in range(num_images):
        name = f"{i:02d}.png"
        images.append({"id": i + 1, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        boxes = []
        for _ in range(int(rng.integers(0, 6))):
            side = rng.choice([20, 33, 60, 97, 150], 2).astype(float)
            left, top = rng.integers(0, 100, 2).astype(float)
            class_id = int(rng.integers(2))
            area = float(rng.choice([0, 1, rng.uniform(0.05, 1)]) * side.prod())
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": i + 1, "category_id": class_id + 1,
                    "bbox": [left, top, *side.tolist()], "area": area,
                    "iscrowd": int(rng.random() < 0.1),
                }
            )  # fmt: skip
            shift = rng.integers(-6, 7, 4)
            corners = np.array([left, top, left + side[0], top + side[1]]) + shift
            score = float(np.float32(rng.random()))
            boxes.append((*corners.tolist(), int(rng.integers(2)), score))
        rows[name] = {"boxes": boxes}
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "hat"}]
    return {"images": images, "annotations": annotations, "categories": categories}, rows


def pycocotools_metrics(path, rows):
    truth = COCO(str(path))
    results = [
        {
            "image_id": image_id, "category_id": class_id + 1, "score": score,
            "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
        }
        for image_id, (_, values) in enumerate(sorted(rows.items()), 1)
        for x_min, y_min, x_max, y_max, class_id, score in values["boxes"]
    ]  # fmt: skip
    oracle = COCOeval(truth, truth.loadRes(results), "bbox")
    oracle.evaluate()
    oracle.accumulate()
    oracle.summarize()
    return dict(zip(COCO_METRICS, oracle.stats, strict=True))


def cvbatch_metrics(folder, truth_folder):
    result = Result(Storage(), str(folder / "predictions"))
    truth = load_ground_truth(Storage(), [str(truth_folder)], None)
    (part,) = join(result, truth, "name").parts
    predicted, true = read_joined_part(part, ["image_id", "status", "boxes"], COLUMNS)
    spec = EvaluationSpec(
        classes=CLASSES, class_of={"boxes": np.arange(2)}, ks=(), is_multi_label=True,
        ignored_class=None, score_threshold=0.3, iou_threshold=0.5, num_replicates=0, seed=0,
    )  # fmt: skip
    metrics = score_rows(spec, predicted, true, "rows").metrics["average_precision"].as_dict()
    return {name: -1 if metrics[name] is None else metrics[name] for name in COCO_METRICS}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("has_images", [True, False])
def test_metrics_by_size_equal_pycocotools(tmp_path, seed, has_images):
    document, rows = random_case(seed)
    source = put(tmp_path / "in", {"annotations/instances_val.json": json.dumps(document)})
    if has_images:
        put(source, {f"val/{name}": picture(*SIZE) for name in rows})
    write_result(tmp_path / "predictions", rows, CLASSES, part_images=100)
    imported("coco", source, tmp_path / "truth", has_images=has_images)
    expected = pycocotools_metrics(source / "annotations" / "instances_val.json", rows)
    actual = cvbatch_metrics(tmp_path, tmp_path / "truth")
    for name in COCO_METRICS:
        assert actual[name] == pytest.approx(expected[name], abs=1e-9), name
    without = json.loads(json.dumps(document))
    for annotation in without["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    put(tmp_path, {"boxes.json": json.dumps(without)})
    assert pycocotools_metrics(tmp_path / "boxes.json", rows) != expected  # the case tests areas


def test_labels_without_areas_are_evaluated_by_their_boxes(tmp_path):
    document, rows = random_case(7)
    for annotation in document["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    source = put(tmp_path / "in", {"annotations/instances_val.json": json.dumps(document)})
    write_result(tmp_path / "predictions", rows, CLASSES, part_images=100)
    imported("coco", source, tmp_path / "truth", has_images=False, shard_images=5)
    expected = pycocotools_metrics(source / "annotations" / "instances_val.json", rows)
    # Data sets of earlier versions have no such column; one of several shards is enough.
    for path in sorted((tmp_path / "truth").glob("*.parquet"))[:-1]:
        metadata = pq.read_metadata(path).metadata
        table = pq.read_table(path).drop_columns(["box_area"])
        pq.write_table(table.replace_schema_metadata(metadata), path)
    actual = cvbatch_metrics(tmp_path, tmp_path / "truth")
    for name in COCO_METRICS:
        assert actual[name] == pytest.approx(expected[name], abs=1e-9), name


def test_areas_are_stored_with_their_boxes(tmp_path):
    annotations = [
        {"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 3.25},
        {"image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 4], "area": 1.0},  # dropped
        {"image_id": 1, "category_id": 1, "bbox": [2, 1, 4, 4]},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cup"}],
    }
    source = put(tmp_path / "in", {"annotations/instances_val.json": json.dumps(content)})
    put(source, {"val/a.png": picture()})
    _, rows = imported("coco", source, tmp_path / "out")
    assert rows["val/a.png"]["box_area"] == [3.25, None]
    assert pa.types.is_float64(
        pq.read_schema(next((tmp_path / "out").glob("*.parquet"))).field("box_area").type.value_type
    )
