"""The reference metrics equal values by hand and pycocotools."""

import contextlib
import io

import numpy as np
import pytest

from tests.support.reference_metrics import ImageBoxes, average_precision, confusion, mean_iou


def image_boxes(rows: list[tuple[float, float, float, float, int, float]]) -> ImageBoxes:
    table = np.array(rows, np.float64).reshape(-1, 6)
    return ImageBoxes(table[:, :4], table[:, 4].astype(int), table[:, 5])


def test_no_detection_has_precision_0_and_the_ground_truth_1():
    truth = [image_boxes([(0, 0, 10, 10, 0, 1)]), image_boxes([])]

    assert average_precision(truth, [image_boxes([]), image_boxes([])], 1) == 0.0
    assert average_precision(truth, truth, 1) == 1.0
    assert average_precision(truth, truth, 2) == 1.0  # class 1 does not occur


def test_confusion_and_mean_iou_by_hand():
    truth = np.array([[0, 0, 1], [1, 1, 1]], np.uint8)
    predicted = np.array([[0, 1, 1], [1, 1, 0]], np.uint8)

    np.testing.assert_array_equal(confusion(truth, predicted, 2), [[1, 1], [1, 3]])
    assert mean_iou(confusion(truth, predicted, 2)) == pytest.approx((1 / 3 + 3 / 5) / 2)
    assert mean_iou(confusion(truth, truth, 5)) == 1.0  # classes 2 to 4 do not occur


def test_average_precision_equals_pycocotools():
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(0)
    truth, detections = [], []
    for _ in range(30):
        corner = rng.uniform(0, 200, (rng.integers(1, 5), 2))
        boxes = np.hstack([corner, corner + rng.uniform(20, 60, corner.shape)])
        class_id = rng.integers(0, 3, len(boxes))
        truth.append(ImageBoxes(boxes, class_id, np.ones(len(boxes))))
        moved = np.vstack([boxes + rng.normal(0, 5, boxes.shape), boxes + 40])
        wrong = np.where(rng.random(len(moved)) < 0.2, 0, np.tile(class_id, 2))
        detections.append(ImageBoxes(moved, wrong, rng.random(len(moved))))

    def rows(images: list[ImageBoxes]) -> list[dict[str, object]]:
        out: list[dict[str, object]] = []
        for i, image in enumerate(images):
            for box, k, s in zip(image.xyxy, image.class_id, image.score, strict=True):
                x, y, w, h = *box[:2], *(box[2:] - box[:2])
                out.append(
                    {"id": len(out) + 1, "image_id": i, "category_id": int(k), "iscrowd": 0}
                    | {"bbox": [x, y, w, h], "area": w * h, "score": float(s)}
                )
        return out

    with contextlib.redirect_stdout(io.StringIO()):
        real = coco.COCO()
        real.dataset = {
            "images": [{"id": i} for i in range(30)],
            "categories": [{"id": k} for k in range(3)],
            "annotations": rows(truth),
        }
        real.createIndex()
        evaluation = cocoeval.COCOeval(real, real.loadRes(rows(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    assert average_precision(truth, detections, 3) == pytest.approx(evaluation.stats[1], abs=1e-6)
