"""Average precision of masks equals pycocotools with iouType segm, crowds and areas included."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cvbatch.core.types import Boxes
from cvbatch.images.rle import encode_rle
from cvbatch.metrics import mask_overlap
from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.box_matching import GroundTruthBoxes, MaskPair
from cvbatch.metrics.mask_overlap import RunMasks, intersections

COCO_METRICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)
SIZE = (110, 120)
NUM_IMAGES, NUM_CLASSES = 12, 3


def run_masks(regions):
    return RunMasks.of([encode_rle(np.asarray(region, bool)) for region in regions])


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(0, 4), st.sampled_from([1, 3, 99]))
@settings(max_examples=60, deadline=None)
def test_intersections_are_those_of_the_pixels(seed, num_a, num_b, at_once):
    rng = np.random.default_rng(seed)
    a, b = (rng.random((count, 5, 7)) < rng.random((count, 1, 1)) for count in (num_a, num_b))
    pairs = np.indices((num_a, num_b)).reshape(2, -1)
    expected = (a[pairs[0]] & b[pairs[1]]).sum(axis=(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_overlap, "_EDGES_AT_ONCE", at_once)
        found = intersections(run_masks(a), run_masks(b), *pairs)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(run_masks(a).areas, a.sum(axis=(1, 2)))


def random_objects(rng):
    """Regions (N, H, W) with class, image, crowd and area; detections of them, and others."""
    truth, detections = [], []
    for image in range(NUM_IMAGES):
        for _ in range(rng.integers(0, 6)):
            class_id = int(rng.integers(NUM_CLASSES))
            region = ellipse(rng, rng.uniform(4, 60))
            truth.append((region, class_id, image, rng.random() < 0.2, float(region.sum()) + 0.5))
            for _ in range(rng.integers(0, 4)):
                shifted = np.roll(region, rng.integers(-4, 5, 2), (0, 1))
                detections.append((shifted, class_id, image, round(rng.random(), 1)))
        for _ in range(rng.integers(0, 3)):
            region = ellipse(rng, rng.uniform(0, 40))
            detections.append((region, int(rng.integers(NUM_CLASSES)), image, rng.random()))
    return truth, detections


def ellipse(rng, radius):
    y, x = np.indices(SIZE)
    centre, stretch = rng.uniform(0, 110, 2), rng.uniform(0.4, 1)
    return ((y - centre[0]) ** 2 + ((x - centre[1]) * stretch) ** 2) < radius**2


def with_pycocotools(truth, detections):
    def annotation(n, region, class_id, image, **more):
        rle = coco_masks.encode(np.asfortranarray(region.astype(np.uint8)))
        row = {"id": n + 1, "image_id": image, "category_id": class_id, "segmentation": rle}
        return {**row, "iscrowd": 0, "area": float(region.sum()), **more}

    true_rows = [
        annotation(n, *row[:3], iscrowd=int(row[3]), area=row[4]) for n, row in enumerate(truth)
    ]
    detected_rows = [
        annotation(n, *row[:3], score=float(row[3])) for n, row in enumerate(detections)
    ]
    datasets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for rows in (true_rows, detected_rows):
            dataset = COCO()
            dataset.dataset = {
                "images": [
                    {"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(NUM_IMAGES)
                ],
                "categories": [{"id": k} for k in range(NUM_CLASSES)],
                "annotations": rows,
            }
            dataset.createIndex()
            datasets.append(dataset)
        evaluation = COCOeval(*datasets, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_of_masks_equals_pycocotools(seed):
    truth, detections = random_objects(np.random.default_rng(seed))
    regions, class_id, image, is_crowd, area = zip(*truth, strict=True)
    no_boxes = np.zeros((len(truth), 4))  # boxes have no influence
    true_boxes = GroundTruthBoxes(
        no_boxes, np.array(class_id), np.array(image), np.array(is_crowd), np.array(area)
    )
    found, found_class, found_image, score = zip(*detections, strict=True)
    boxes = Boxes(
        np.zeros((len(found), 4)), np.array(score), np.array(found_class), np.array(found_image)
    )
    precision = AveragePrecision.empty(NUM_CLASSES).add(
        [f"{i:02}" for i in range(NUM_IMAGES)],
        boxes,
        true_boxes,
        MaskPair(run_masks(found), run_masks(regions)),
    )
    values = precision.as_dict()
    expected = with_pycocotools(truth, detections)
    assert 0.05 < values["ap"] < 0.95
    for metric, value in zip(COCO_METRICS, expected, strict=True):
        assert (values[metric] is None) == (value == -1), metric
        if value != -1:
            assert values[metric] == pytest.approx(value, abs=1e-9), metric
