"""Average precision of masks of boxes, of imported outlines, equals that of pycocotools."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cvbatch.core.errors import SourceError
from cvbatch.evaluate.boxes import bootstrap_average_precision, bootstrap_input
from cvbatch.evaluate.columns import metric_rows, score_part
from cvbatch.evaluate.join import join, load_ground_truth
from cvbatch.evaluate.scoring import EvaluationSpec, merge_scores
from cvbatch.results.result import Result
from cvbatch.storage.store import Storage
from tests.metrics.test_average_precision import COCO_METRICS
from tests.support.datasets import imported, put
from tests.support.evaluations import write_result

CLASSES = {"boxes": ("cup", "hat")}
SIZE = (100, 120)


def random_polygon(rng):
    """Flat x, y of a star around a random centre; some corners leave the image."""
    angle = np.linspace(0, 2 * np.pi, 9, endpoint=False)
    radius = rng.uniform(4, 45) * rng.uniform(0.5, 1, 9)
    x, y = rng.uniform(0, SIZE[1]), rng.uniform(0, SIZE[0])
    corners = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)
    return corners.reshape(-1).round(2)


def encoded(polygon):
    (rle,) = coco_masks.frPyObjects([polygon.tolist()], *SIZE)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def random_case(seed, num_images=14):
    """Return a COCO document with polygons and RLE, and predictions near them."""
    rng = np.random.default_rng(seed)
    images, annotations, rows = [], [], {}
    for i in range(num_images):
        images.append(
            {"id": i + 1, "file_name": f"{i:02d}.png", "height": SIZE[0], "width": SIZE[1]}
        )
        boxes, masks = [], []
        for _ in range(int(rng.integers(0, 6))):
            polygon, class_id = random_polygon(rng), int(rng.integers(2))
            is_crowd = int(rng.random() < 0.2)
            rle = encoded(polygon)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": i + 1, "category_id": class_id + 1,
                    "bbox": [1.0, 2.0, 90.0, 80.0], "iscrowd": is_crowd,
                    "area": float(coco_masks.area(rle)) + 0.5,
                    "segmentation": rle if is_crowd else [polygon.tolist()],
                }
            )  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                moved = polygon + np.tile(rng.uniform(-6, 6, 2), 9)
                boxes.append((1, 2, 91, 82, int(rng.integers(2)), float(np.float32(rng.random()))))
                masks.append(encoded(moved))
        rows[f"{i:02d}.png"] = {"boxes": boxes, "box_masks": masks}
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "hat"}]
    return {"images": images, "annotations": annotations, "categories": categories}, rows


def with_pycocotools(path, rows):
    truth = COCO(str(path))
    results = [
        {"image_id": image_id, "category_id": box[4] + 1, "score": box[5], "segmentation": rle}
        for image_id, (_, values) in enumerate(sorted(rows.items()), 1)
        for box, rle in zip(values["boxes"], values["box_masks"], strict=True)
    ]
    oracle = COCOeval(truth, truth.loadRes(results), "segm")
    oracle.evaluate()
    oracle.accumulate()
    oracle.summarize()
    return dict(zip(COCO_METRICS, oracle.stats, strict=True))


def evaluated(folder, document, rows, has_box_masks=True, num_replicates=0):
    """Return counts, and metric → row of all classes together."""
    source = put(folder / "in", {"annotations/instances_val.json": json.dumps(document)})
    imported(
        "coco", source, folder / "truth",
        has_images=False, has_box_masks=has_box_masks, shard_images=5,
    )  # fmt: skip
    write_result(folder / "predictions", rows, CLASSES, part_images=4)
    spec = EvaluationSpec(
        classes=CLASSES, class_of={"boxes": np.arange(2)}, ks=(), is_multi_label=True,
        ignored_class=None, score_threshold=0.3, iou_threshold=0.5, num_replicates=num_replicates,
        seed=0,
    )  # fmt: skip
    joined = join(
        Result(Storage(), str(folder / "predictions")),
        load_ground_truth(Storage(), [str(folder / "truth")], None),
        "name",
    )
    scores = merge_scores(score_part(spec, part) for part in joined.parts)
    data = bootstrap_input(spec, scores)
    replicates = bootstrap_average_precision(data, range(1, num_replicates + 1)) if data else {}
    return scores.counts, {
        row.metric: row for row in metric_rows(spec, scores, replicates) if row.class_name is None
    }


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_those_of_pycocotools(tmp_path, seed):
    document, rows = random_case(seed)
    counts, metrics = evaluated(tmp_path, document, rows, num_replicates=3)
    expected = with_pycocotools(tmp_path / "in" / "annotations" / "instances_val.json", rows)
    assert 0.02 < expected["ap"] < 0.9
    for name in COCO_METRICS:
        value = metrics[f"segm_{name}"].value
        assert (-1 if value is None else value) == pytest.approx(expected[name], abs=1e-9), name
    assert metrics["segm_ap"].value != metrics["ap"].value
    assert metrics["segm_ap"].low <= metrics["segm_ap"].high
    assert counts["detection_without_masks"] == 0


def test_images_with_a_box_without_an_outline_are_left_out_and_counted(tmp_path):
    document, rows = random_case(5)
    annotated = {annotation["image_id"] for annotation in document["annotations"]}
    incomplete = sorted(annotated)[:3]
    for image_id in incomplete:
        own = [a for a in document["annotations"] if a["image_id"] == image_id]
        own[-1]["segmentation"] = []
    counts, metrics = evaluated(tmp_path, document, rows)
    assert counts["detection_without_masks"] == 3
    kept = [a for a in document["annotations"] if a["image_id"] not in incomplete]
    (tmp_path / "kept.json").write_text(json.dumps({**document, "annotations": kept}))
    left_out = {f"{image_id - 1:02d}.png" for image_id in incomplete}
    none = {"boxes": [], "box_masks": []}
    rest = {name: none if name in left_out else values for name, values in rows.items()}
    expected = with_pycocotools(tmp_path / "kept.json", rest)
    assert metrics["segm_ap"].value == pytest.approx(expected["ap"], abs=1e-9)


def test_labels_without_masks_have_no_metrics_of_masks(tmp_path):
    document, rows = random_case(6)
    counts, metrics = evaluated(tmp_path, document, rows, has_box_masks=False)
    assert not [name for name in metrics if name.startswith("segm")]
    assert counts["detection_without_masks"] == len(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [9, 9]}, "masks of one image are of|do not sum"),
        ({"counts": "11"}, "do not sum"),
        ({"counts": None}, "lacks its size or its counts"),
        ({"size": None}, "lacks its size or its counts"),
        (None, "a box has no mask"),
    ],
)
def test_damaged_masks_are_refused(tmp_path, change, message):
    document, rows = random_case(7)
    values = next(values for values in rows.values() if values["boxes"])
    values["box_masks"][0:1] = [] if change is None else [{**values["box_masks"][0], **change}]
    with pytest.raises(SourceError, match=message):
        evaluated(tmp_path, document, rows)
