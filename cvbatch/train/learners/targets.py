"""Targets of training: labelled images → arrays of fixed shape (NumPy, without Keras).

The targets of a detector are the inverse of its box decoding: raw outputs made of the targets
decode to the true boxes. The targets of an image depend on that image only.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cvbatch.core.errors import SourceError
from cvbatch.core.types import VOID_CLASS, TrainingExample
from cvbatch.geometry.anchors import shape_iou

Targets = dict[str, np.ndarray]
IGNORED = -1.0  # objectness that is excluded from the loss


def single_labels(
    examples: Sequence[TrainingExample], num_classes: int
) -> np.ndarray:  # (B,) int32
    """Return the label of each image.

    Raises:
        SourceError: an image has no label or several, or a class id is unknown.
    """
    for row, example in enumerate(examples):
        if len(example.class_ids) != 1:
            raise SourceError(
                f"{_name(example, row)} has {len(example.class_ids)} labels, but exclusive classes "
                "require one label per image; remove such images, or set multi_label"
            )
        _check_classes(example.class_ids, num_classes, example, row)
    return np.array([example.class_ids[0] for example in examples], np.int32)


def multi_hot_labels(
    examples: Sequence[TrainingExample], num_classes: int
) -> np.ndarray:  # (B, C) float32
    """Return 1 for each class of an image and 0 for the others; an image may have no class.

    Raises:
        SourceError: a class id is unknown.
    """
    labels = np.zeros((len(examples), num_classes), np.float32)
    for row, example in enumerate(examples):
        _check_classes(example.class_ids, num_classes, example, row)
        labels[row, example.class_ids] = 1
    return labels


def masks(
    examples: Sequence[TrainingExample],
    mask_hw: tuple[int, int],
    num_classes: int,
    ignored: int | None = None,
) -> np.ndarray:  # (B, h, w) uint8
    """Return the class of every pixel; `VOID_CLASS` where it is unknown or `ignored`.

    Args:
        examples: images with masks of any size; each target pixel takes the class at its centre.
        mask_hw: (height, width) of the network's output.
        num_classes: number of classes.
        ignored: a class id that is treated as `VOID_CLASS`; None: none.

    Raises:
        SourceError: an image has no mask, or a class id is unknown.
    """
    targets = np.full((len(examples), *mask_hw), VOID_CLASS, np.uint8)
    for row, example in enumerate(examples):
        if example.mask is None:
            raise SourceError(
                f"{_name(example, row)} has no mask, which segmentation requires; import the data "
                "set with masks, or remove such images"
            )
        mask = example.mask
        if ignored is not None:
            mask = np.where(mask == ignored, np.uint8(VOID_CLASS), mask)
        _check_classes(mask[mask != VOID_CLASS], num_classes, example, row)
        height, width = mask_hw
        if mask.shape != mask_hw:
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        targets[row] = mask
    return targets


def single_boxes(
    examples: Sequence[TrainingExample], image_hw: tuple[int, int], num_classes: int
) -> Targets:
    """Return the targets of a localizer: "class_id" (B,) int32, "box" (B, 4) float32.

    A box is (centre y, centre x, √height, √width) as fractions of the image's height and width.

    Raises:
        SourceError: an image has no box or several, or a class id is unknown.
    """
    for row, example in enumerate(examples):
        if len(example.boxes_xyxy) != 1:
            raise SourceError(
                f"{_name(example, row)} has {len(example.boxes_xyxy)} boxes, but a localizer "
                "requires one per image; use a detector such as yolo, or remove such images"
            )
        _check_classes(example.box_class, num_classes, example, row)
    boxes = np.array([example.boxes_xyxy[0] for example in examples], np.float32).reshape(-1, 4)
    classes = np.array([example.box_class[0] for example in examples], np.int32)
    center, sides = _centers_and_sides(boxes)
    size = np.array(image_hw, np.float32)
    numbers = np.concatenate([center / size, np.sqrt(sides / size)], axis=1)
    return {"class_id": classes, "box": numbers.astype(np.float32)}


def window_targets(
    examples: Sequence[TrainingExample],
    grid_hw: tuple[int, int],
    window: tuple[int, int],
    stride: int,
    num_classes: int,
) -> Targets:
    """Return the targets of a sliding-window detector, for every window.

    "objectness" (B, gh, gw) float32: 1 in the window whose centre is nearest to an object's centre;
    `IGNORED` in its neighbours less than a stride from that centre along both axes, which show the
    object nearly as well; 0 elsewhere. "class_id" (B, gh, gw) int32 and "box" (B, gh, gw, 4)
    float32, (centre y, centre x, √height, √width) as fractions of the window, are defined where
    objectness is 1. Of two objects in one window, only the one nearer to its centre is a target.
    Boxes without an area are left out.

    Args:
        examples: images with boxes.
        grid_hw: number of windows along height and width.
        window: (height, width) of a window in pixels, as in `WindowDecode`.
        stride: pixels between two windows.
        num_classes: number of classes.

    Raises:
        SourceError: a class id is unknown.
    """
    count = len(examples)
    objectness = np.zeros((count, *grid_hw), np.float32)
    class_id = np.zeros((count, *grid_hw), np.int32)
    box = np.zeros((count, *grid_hw, 4), np.float32)
    window_hw = np.array(window, np.float64)
    for row, example in enumerate(examples):
        center, sides, classes = _objects(example, num_classes, row)
        position = (center - window_hw / 2) / stride  # (M, 2) y, x in steps from the first window
        cell = np.clip(np.rint(position), 0, np.array(grid_hw) - 1).astype(np.int64)
        distance = np.abs(position - cell).max(axis=1)
        for m in np.lexsort((classes, *sides.T, *center.T, distance))[::-1]:  # the nearest is last
            neighbours = _neighbours(position[m], grid_hw)
            values = objectness[row][neighbours]
            values[values == 0] = IGNORED
            objectness[row][neighbours] = values
            index = (row, *cell[m])
            objectness[index], class_id[index] = 1, classes[m]
            corner = cell[m] * stride
            box[index] = [*((center[m] - corner) / window_hw), *np.sqrt(sides[m] / window_hw)]
    return {"objectness": objectness, "class_id": class_id, "box": box}


def grid_targets(
    examples: Sequence[TrainingExample],
    grid_hw: tuple[int, int],
    stride: int,
    anchors: np.ndarray,  # (A, 2)
    num_classes: int,
    max_boxes: int = 100,
) -> Targets:
    """Return the targets of a grid detector with the layer `GridDecode`.

    A box belongs to the cell that contains its centre (or the nearest cell), and to the anchor with
    the highest shape IoU. If several boxes match one anchor, the best match takes it and the others
    take their best free anchor; boxes beyond the number of anchors, and boxes without an area, are
    left out.

    "numbers" (B, gh, gw, A, 5) float32: (offset y, offset x in cells, log h/anchor, log w/anchor,
    1); 0 without a box. "classes" (B, gh, gw, C) float32: fraction of a cell's boxes in each class;
    0 without a box. "boxes" (B, max_boxes, 4) float32: the largest true boxes in pixels, by area,
    padded with 0.

    Args:
        examples: images with boxes.
        grid_hw: number of cells along height and width.
        stride: pixels per cell.
        anchors: height and width of each anchor, as fractions of the image's.
        num_classes: number of classes.
        max_boxes: number of boxes in "boxes".

    Raises:
        SourceError: a class id is unknown.

    Source:
        Redmon and Farhadi, YOLO9000, 2017, section 2.
    """
    count = len(examples)
    targets = {
        "numbers": np.zeros((count, *grid_hw, len(anchors), 5), np.float32),
        "classes": np.zeros((count, *grid_hw, num_classes), np.float32),
        "boxes": np.zeros((count, max_boxes, 4), np.float32),
    }
    for row, example in enumerate(examples):
        center, sides, class_id = _objects(example, num_classes, row)
        if len(center):
            arrays = {name: values[row] for name, values in targets.items()}
            _fill_grid(arrays, center, sides, class_id, stride, anchors)
    classes = targets["classes"]
    classes /= np.maximum(classes.sum(axis=-1, keepdims=True), 1)
    return targets


def _fill_grid(
    targets: Targets,
    center: np.ndarray,  # (M, 2) y, x
    sides: np.ndarray,  # (M, 2) h, w
    class_id: np.ndarray,  # (M,)
    stride: int,
    anchors: np.ndarray,  # (A, 2)
) -> None:
    """Write the boxes of one image into its rows of `grid_targets`."""
    numbers, classes, boxes = targets["numbers"], targets["classes"], targets["boxes"]
    grid = np.array(numbers.shape[:2])
    cell = np.clip(center // stride, 0, grid - 1).astype(np.int64)
    offset = np.clip(center / stride - cell, 0, 1)
    relative = sides / (grid * stride)
    iou = shape_iou(relative, anchors)
    for m in np.lexsort((class_id, *sides.T, *center.T, -iou.max(axis=1))):
        cell_numbers = numbers[cell[m, 0], cell[m, 1]]  # (A, 5), a view
        is_free = cell_numbers[:, 4] == 0
        if is_free.any():
            best = int(np.where(is_free, iou[m], -1).argmax())
            cell_numbers[best] = [*offset[m], *np.log(relative[m] / anchors[best]), 1]
            classes[cell[m, 0], cell[m, 1], class_id[m]] += 1
    largest = np.lexsort((*center.T, *sides.T, -sides.prod(axis=1)))[: len(boxes)]
    half = sides[largest] / 2
    corners = [center[largest] - half, center[largest] + half]
    boxes[: len(largest)] = np.concatenate(corners, axis=1)[:, [1, 0, 3, 2]]


def _objects(
    example: TrainingExample, num_classes: int, row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # (M, 2) y, x; (M, 2) h, w; (M,)
    """Return the centres, sides and classes of the boxes with an area."""
    _check_classes(example.box_class, num_classes, example, row)
    center, sides = _centers_and_sides(example.boxes_xyxy.astype(np.float64))
    has_area = (sides > 0).all(axis=1)
    return center[has_area], sides[has_area], example.box_class[has_area]


def _centers_and_sides(xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (M, 2) y, x; h, w
    low, high = xyxy[:, [1, 0]], xyxy[:, [3, 2]]
    return (low + high) / 2, np.maximum(high - low, 0)


def _neighbours(position: np.ndarray, grid_hw: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Return the index of the windows less than a step from a position (y, x), at most four."""
    axes = [
        np.flatnonzero(np.abs(np.arange(length) - value) < 1)
        for value, length in zip(position, grid_hw, strict=True)
    ]
    return np.ix_(*axes)


def _check_classes(
    class_id: np.ndarray, num_classes: int, example: TrainingExample, row: int
) -> None:
    if class_id.size and (class_id.min() < 0 or class_id.max() >= num_classes):
        unknown = class_id.max() if class_id.max() >= num_classes else class_id.min()
        raise SourceError(
            f"{_name(example, row)} has class id {int(unknown)}, but the network has {num_classes} "
            f"classes, 0 to {num_classes - 1}; build it with all classes of the data"
        )


def _name(example: TrainingExample, row: int) -> str:
    return f"image {example.image_id!r}" if example.image_id else f"image {row} of the batch"
