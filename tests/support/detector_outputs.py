"""Seeded random outputs of detectors, as their networks give them; NumPy only."""

from __future__ import annotations

import numpy as np

SIZE = (96, 128)  # height and width of the network's input
CLASSES = 3
IMAGES = 2
SCORE_THRESHOLD, IOU_THRESHOLD = 0.3, 0.5
LETTERBOX_BOX = [200.25, 210.5, 431.75, 402.125]  # in an input of 640 × 640


def num_cells(strides=(8, 16, 32)):
    return sum(-(-SIZE[0] // stride) * -(-SIZE[1] // stride) for stride in strides)


def objects(count, rng):
    """Boxes (IMAGES, count, 4) cxcywh in fractions: several around each of a few objects."""
    centers = rng.uniform(0.2, 0.8, (IMAGES, 12, 4))
    centers[..., 2:] = rng.uniform(0.1, 0.35, (IMAGES, 12, 2))
    chosen = rng.integers(0, 12, count)
    boxes = centers[:, chosen] + rng.normal(0, 0.02, (IMAGES, count, 4))
    return np.clip(boxes, 0.02, 0.98).astype(np.float32)


def pixels(boxes):
    return boxes * np.array([SIZE[1], SIZE[0]] * 2, np.float32)


def logits(shape, rng, mean=-3.0):
    return rng.normal(mean, 2.0, shape).astype(np.float32)


def sigmoid(values):
    return (1 / (1 + np.exp(-values.astype(np.float64)))).astype(np.float32)


def yolo_v8():
    rng = np.random.default_rng(8)
    boxes, scores = pixels(objects(num_cells(), rng)), logits((IMAGES, num_cells(), CLASSES), rng)
    return {"output0": np.concatenate([boxes, sigmoid(scores)], axis=2).transpose(0, 2, 1).copy()}


def yolo_v5():
    rng = np.random.default_rng(5)
    count = 3 * num_cells()
    scores = sigmoid(logits((IMAGES, count, 1 + CLASSES), rng, -1.0))
    return {"output0": np.concatenate([pixels(objects(count, rng)), scores], axis=2)}


def yolo_end_to_end():
    """Boxes xyxy by falling score, as the head of YOLOv10 and YOLO26 sorts them."""
    rng = np.random.default_rng(10)
    boxes = pixels(objects(300, rng))
    half = boxes[..., 2:] / 2
    corners = np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=2)
    scores = -np.sort(-sigmoid(logits((IMAGES, 300, 1), rng, -2.0)), axis=1)
    classes = rng.integers(0, CLASSES, (IMAGES, 300, 1)).astype(np.float32)
    return {"output0": np.concatenate([corners, scores, classes], axis=2)}


def detr():
    rng = np.random.default_rng(1)
    scores = logits((IMAGES, 100, CLASSES + 1), rng, 0.0)
    return {"logits": scores, "pred_boxes": objects(100, rng)}


def rt_detr():
    rng = np.random.default_rng(2)
    return {"logits": logits((IMAGES, 60, CLASSES), rng), "pred_boxes": objects(60, rng)}


def retinanet():
    """Deltas of all anchors; only anchors inside the image have scores over the threshold."""
    rng = np.random.default_rng(3)
    count = 9 * num_cells((8, 16, 32, 64, 128))
    deltas = rng.normal(0, 0.2, (IMAGES, count, 4)).astype(np.float32)
    return {"bbox_regression": deltas, "cls_logits": logits((IMAGES, count, CLASSES), rng, -5.0)}


def ssd_priors():
    """Priors (N, 4) center_xywh in pixels."""
    return pixels(objects(200, np.random.default_rng(4)))[0]


def ssd():
    rng = np.random.default_rng(6)
    deltas = rng.normal(0, 0.5, (IMAGES, 200, 4)).astype(np.float32)
    return {"bbox_regression": deltas, "cls_logits": logits((IMAGES, 200, CLASSES + 1), rng, 0.0)}


def letterbox_sizes():
    """Odd sizes of originals, some of which halve a pixel at 640 × 640."""
    rng = np.random.default_rng(7)
    random = [tuple(int(side) for side in rng.integers(20, 4000, 2)) for _ in range(60)]
    return [*random, (721, 1280), (723, 1280), (1280, 427), (33, 256), (1, 640), (5, 3999)]
