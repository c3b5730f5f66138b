"""What a network should have answered: labelled images as arrays of fixed shape, without Keras.

For a detector that is its decoding turned round: raw numbers made of the targets decode to the
true boxes. Each image's targets follow from that image alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cvbatch.core.errors import SourceError
from cvbatch.core.types import VOID_CLASS, TrainingExample
from cvbatch.geometry.anchors import shape_iou

Targets = dict[str, np.ndarray]
NOT_ASKED = -1.0  # neither object nor none: whatever is said there costs nothing


def single_labels(
    examples: Sequence[TrainingExample], num_classes: int
) -> np.ndarray:  # (B,) int32
    """Return the one label of each image.

    Raises:
        SourceError: an image has none or several, or a class is unknown.
    """
    for row, example in enumerate(examples):
        if len(example.class_ids) != 1:
            raise SourceError(
                f"{_name(example, row)} has {len(example.class_ids)} labels: classes that exclude "
                "each other want one an image; leave such images out, or say multi_label"
            )
        _check_classes(example.class_ids, num_classes, example, row)
    return np.array([example.class_ids[0] for example in examples], np.int32)


def many_labels(
    examples: Sequence[TrainingExample], num_classes: int
) -> np.ndarray:  # (B, C) float32
    """Return 1 for each class that an image has, 0 for the others; an image may have none.

    Raises:
        SourceError: a class is unknown.
    """
    holds = np.zeros((len(examples), num_classes), np.float32)
    for row, example in enumerate(examples):
        _check_classes(example.class_ids, num_classes, example, row)
        holds[row, example.class_ids] = 1
    return holds


def masks(
    examples: Sequence[TrainingExample],
    image_hw: tuple[int, int],  # of the network's answer
    num_classes: int,
    ignored: int | None = None,
) -> np.ndarray:  # (B, h, w) uint8
    """Return the class of every pixel; `VOID_CLASS` where it is unknown or `ignored`.

    A mask of another size is shrunk or grown: each pixel takes the class at its centre.

    Raises:
        SourceError: an image has no mask, or a class is unknown.
    """
    found = np.full((len(examples), *image_hw), VOID_CLASS, np.uint8)
    for row, example in enumerate(examples):
        if example.mask is None:
            raise SourceError(
                f"{_name(example, row)} has no mask: segmentation learns from masks alone; import "
                "the data set with them, or leave such images out"
            )
        mask = counted_mask(example.mask, ignored)
        _check_classes(mask[mask != VOID_CLASS], num_classes, example, row)
        height, width = image_hw
        if mask.shape != image_hw:
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        found[row] = mask
    return found


def counted_mask(mask: np.ndarray, ignored: int | None) -> np.ndarray:  # (H, W) uint8 → the same
    """Return the mask with `VOID_CLASS` in place of the ignored class."""
    return mask if ignored is None else np.where(mask == ignored, np.uint8(VOID_CLASS), mask)


def single_boxes(
    examples: Sequence[TrainingExample], image_hw: tuple[int, int], num_classes: int
) -> Targets:
    """Return what a localizer should answer: "class_id" (B,) int32, "box" (B, 4) float32.

    A box is (centre y, centre x, √height, √width) as parts of the image's height and width.

    Raises:
        SourceError: an image has no box or several, or a class is unknown.
    """
    for row, example in enumerate(examples):
        if len(example.boxes_xyxy) != 1:
            raise SourceError(
                f"{_name(example, row)} has {len(example.boxes_xyxy)} boxes: a localizer finds one "
                "object in every image; train a detector such as yolo, or leave such images out"
            )
        _check_classes(example.box_class, num_classes, example, row)
    boxes = np.array([example.boxes_xyxy[0] for example in examples], np.float32).reshape(-1, 4)
    classes = np.array([example.box_class[0] for example in examples], np.int32)
    center, sides = _centers_and_sides(boxes)
    relative = np.array(image_hw, np.float32)
    numbers = np.concatenate([center / relative, np.sqrt(sides / relative)], axis=1)
    return {"class_id": classes, "box": numbers.astype(np.float32)}


def window_targets(
    examples: Sequence[TrainingExample],
    grid_hw: tuple[int, int],
    window: tuple[int, int],
    stride: int,
    num_classes: int,
) -> Targets:
    """Return what a localizer slid over the image should answer in every window.

    "objectness" (B, gh, gw) float32: 1 in the window that an object is centred in best, the one
    whose centre is nearest to its own; `NOT_ASKED` in those next to it, less than a stride away
    along both axes, that see the object nearly as well; 0 elsewhere. "class_id" (B, gh, gw)
    int32 and "box" (B, gh, gw, 4) float32, (centre y, centre x, √height, √width) as parts of the
    window, count where objectness is 1. Of two objects in one window that with the nearer centre
    is its own; the other is not learnt. Boxes without an area are left out.

    window, stride: in pixels, as of `WindowDecode`.

    Raises:
        SourceError: a class is unknown.
    """
    count = len(examples)
    objectness = np.zeros((count, *grid_hw), np.float32)
    class_id = np.zeros((count, *grid_hw), np.int32)
    box = np.zeros((count, *grid_hw, 4), np.float32)
    window_hw = np.array(window, np.float64)
    for row, example in enumerate(examples):
        center, sides, classes = _objects(example, num_classes, row)
        place = (center - window_hw / 2) / stride  # (M, 2) y, x in steps; 0: the first window
        cell = np.clip(np.rint(place), 0, np.array(grid_hw) - 1).astype(np.int64)
        off = np.abs(place - cell).max(axis=1)
        for m in np.lexsort((classes, *sides.T, *center.T, off))[::-1]:  # the nearest comes last
            near = _next_to(place[m], grid_hw)
            around = objectness[row][near]
            around[around == 0] = NOT_ASKED
            objectness[row][near] = around
            at = (row, *cell[m])
            objectness[at], class_id[at] = 1, classes[m]
            corner = cell[m] * stride
            box[at] = [*((center[m] - corner) / window_hw), *np.sqrt(sides[m] / window_hw)]
    return {"objectness": objectness, "class_id": class_id, "box": box}


def grid_targets(
    examples: Sequence[TrainingExample],
    grid_hw: tuple[int, int],
    stride: int,
    anchors: np.ndarray,  # (A, 2) height, width as parts of the image's
    num_classes: int,
    max_boxes: int = 100,
) -> Targets:
    """Return what a grid detector should answer, as of `GridDecode`.

    A box belongs to the cell that holds its centre (the nearest, if none does) and there to the
    anchor most like it in shape (Redmon and Farhadi, YOLO9000, 2017, section 2). Where several
    boxes want one anchor, the one most like it has it and the next takes its next best that is
    free; more boxes in a cell than anchors are not learnt, nor are boxes without an area.

    "numbers" (B, gh, gw, A, 5) float32: (offset y, offset x in cells, log h/anchor, log w/anchor,
    1), all 0 where there is no box. "classes" (B, gh, gw, C) float32: the parts that the classes
    have in the boxes of a cell, all 0 where there is none. "boxes" (B, max_boxes, 4) float32: all
    true boxes in pixels, the largest first, then zeros; of more than `max_boxes` the smallest
    are not in it.

    Raises:
        SourceError: a class is unknown.
    """
    count, grid = len(examples), np.array(grid_hw)
    numbers = np.zeros((count, *grid_hw, len(anchors), 5), np.float32)
    classes = np.zeros((count, *grid_hw, num_classes), np.float32)
    boxes = np.zeros((count, max_boxes, 4), np.float32)
    for row, example in enumerate(examples):
        center, sides, class_id = _objects(example, num_classes, row)
        if not len(center):
            continue
        cell = np.clip(center // stride, 0, grid - 1).astype(np.int64)
        offset = np.clip(center / stride - cell, 0, 1)
        relative = sides / (grid * stride)
        likeness = shape_iou(relative, anchors)
        for m in np.lexsort((class_id, *sides.T, *center.T, -likeness.max(axis=1))):
            here = numbers[row, cell[m, 0], cell[m, 1]]  # (A, 5), a view
            is_free = here[:, 4] == 0
            if is_free.any():
                best = int(np.where(is_free, likeness[m], -1).argmax())
                here[best] = [*offset[m], *np.log(relative[m] / anchors[best]), 1]
                classes[row, cell[m, 0], cell[m, 1], class_id[m]] += 1
        largest = np.lexsort((*center.T, *sides.T, -sides.prod(axis=1)))[:max_boxes]
        half = sides[largest] / 2
        corners = [center[largest] - half, center[largest] + half]
        boxes[row, : len(largest)] = np.concatenate(corners, axis=1)[:, [1, 0, 3, 2]]
    classes /= np.maximum(classes.sum(axis=-1, keepdims=True), 1)
    return {"numbers": numbers, "classes": classes, "boxes": boxes}


def _objects(
    example: TrainingExample, num_classes: int, row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # (M, 2) y, x; (M, 2) h, w; (M,)
    """Return the centres, sides and classes of the boxes that have an area."""
    _check_classes(example.box_class, num_classes, example, row)
    center, sides = _centers_and_sides(example.boxes_xyxy.astype(np.float64))
    is_kept = (sides > 0).all(axis=1)
    return center[is_kept], sides[is_kept], example.box_class[is_kept]


def _centers_and_sides(xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (M, 2) y, x; h, w
    low, high = xyxy[:, [1, 0]], xyxy[:, [3, 2]]
    return (low + high) / 2, np.maximum(high - low, 0)


def _next_to(place: np.ndarray, grid_hw: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Return the index of the windows less than a step from a place (y, x), at most four."""
    axes = [
        np.flatnonzero(np.abs(np.arange(length) - at) < 1)
        for at, length in zip(place, grid_hw, strict=True)
    ]
    return np.ix_(*axes)


def _check_classes(
    class_id: np.ndarray, num_classes: int, example: TrainingExample, row: int
) -> None:
    if class_id.size and (class_id.min() < 0 or class_id.max() >= num_classes):
        wrong = class_id.max() if class_id.max() >= num_classes else class_id.min()
        raise SourceError(
            f"{_name(example, row)} has the class {int(wrong)}, but the network tells "
            f"{num_classes} apart, 0 to {num_classes - 1}; build it with all classes of the data"
        )


def _name(example: TrainingExample, row: int) -> str:
    return f"image {example.image_id!r}" if example.image_id else f"image {row} of the batch"
