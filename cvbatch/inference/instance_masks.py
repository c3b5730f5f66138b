"""Masks of detected boxes: resample a network's masks to the original, as COCO's RLE.

The graph (`cvbatch.inference.outputs_masks`) gives numbers that are above 0 inside an object. They
are interpolated linearly between the centres of their cells, at the centres of the pixels of the
original; only the pixels that may be inside are computed.

Source: torchvision.models.detection.roi_heads.paste_masks_in_image (masks of boxes);
ultralytics.utils.ops.process_mask_native (prototypes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cvbatch.config.models import MaskKind
from cvbatch.core.types import BoxMasks
from cvbatch.geometry.resize import Placement, boxes_to_original
from cvbatch.images.rle import Window, compress_rle, encode_window

OUTSIDE = -0.5  # a probability of 0, of which 0.5 is subtracted
_PIXELS_AT_ONCE = 1 << 20
_MAX_COORDINATE_PX = 2.0**30
_Axis = tuple[int, np.ndarray]  # first pixel of the original, (n,) position of each in cells
Outputs = Mapping[str, np.ndarray]


def has_class_axis(outputs: Outputs) -> bool:
    """Return whether one image's outputs have a mask of each class for every box."""
    return "masks" in outputs and outputs["masks"].ndim == 4


def encode_masks(
    kind: MaskKind,
    outputs: Outputs,
    rows: np.ndarray,  # (M,) of the boxes
    class_id: np.ndarray,  # (M,)
    xyxy: np.ndarray,  # (M, 4) float32, pixels of the network's input
    placement: Placement,
) -> list[bytes]:  # M
    """Return the masks of some boxes of one image, or of one tile, as compressed RLE.

    Args:
        kind: what a mask covers.
        outputs: of the image: masks (N, h, w) or (N, C, h, w); or coefficients (N, P) and
            prototypes (h, w, P).
        rows: which of the N boxes.
        class_id: the mask of this class is used, if there is one of each class.
        xyxy: of these boxes.
        placement: of the image or tile; the masks have the size of the original.
    """
    original = boxes_to_original(xyxy, placement, clip=False)
    size = placement.height, placement.width
    encoded = []
    for row, k, box in zip(rows.tolist(), class_id.tolist(), original, strict=True):
        values = _values_of(outputs, row, k)
        window = _WINDOWS[kind](values, box, placement)
        encoded.append(compress_rle(encode_window(window, size)).encode())
    return encoded


def join_masks(
    masks: Sequence[Sequence[bytes]],  # K
    placements: Sequence[Placement],  # K
    image_index: np.ndarray,  # (K,)
) -> BoxMasks:
    """Concatenate the masks of K images."""
    counts = [len(part) for part in masks]
    sizes = np.array([(p.height, p.width) for p in placements], np.int32).reshape(-1, 2)
    strings = [string for part in masks for string in part]
    return BoxMasks(
        counts=np.frombuffer(b"".join(strings), np.uint8),
        length=np.array([len(string) for string in strings], np.int32),
        height=np.repeat(sizes[:, 0], counts),
        width=np.repeat(sizes[:, 1], counts),
        image_index=np.repeat(image_index, counts),
    )


def _values_of(outputs: Outputs, row: int, class_id: int) -> np.ndarray:  # (h, w) float32
    if "prototypes" in outputs:
        values: np.ndarray = outputs["prototypes"] @ outputs["coefficients"][row]
        return values
    masks = outputs["masks"][row]
    mask: np.ndarray = masks[class_id] if has_class_axis(outputs) else masks
    return mask


# ---------------------------------------------------------------- masks of boxes


def _box_window(
    values: np.ndarray,  # (h, w) over the box
    box: np.ndarray,  # (4,) float32, pixels of the original, not clipped
    placement: Placement,
) -> Window:
    """Paste a mask into its box as torchvision does.

    Mask and box grow by a border of one cell outside the object; the corners of the grown box are
    truncated to whole pixels, and both are inside.
    """
    padded = np.pad(values, 1, constant_values=OUTSIDE)
    clipped = np.clip(box, -_MAX_COORDINATE_PX, _MAX_COORDINATE_PX)
    sides = (placement.height, placement.width)
    rows, columns = (
        _pasted_axis(clipped[axis], clipped[axis + 2], values.shape[1 - axis], sides[1 - axis])
        for axis in (1, 0)
    )
    return _inside(padded, rows, columns)


def _pasted_axis(first: np.float32, last: np.float32, cells: int, side: int) -> _Axis:
    half = (last - first) * np.float32(0.5) * np.float32((cells + 2) / cells)
    centre = (last + first) * np.float32(0.5)
    start, end = int(centre - half), int(centre + half) + 1
    pixels = np.arange(max(start, 0), min(end, side))
    return max(start, 0), (pixels - start + 0.5) * (cells + 2) / max(end - start, 1)


# ---------------------------------------------------------------- masks of the whole image


def _image_window(
    values: np.ndarray,  # (h, w) over the network's input
    box: np.ndarray,
    placement: Placement,
) -> Window:
    """Resample a mask; the box does not crop it."""
    rows, columns = _image_axes(values, placement)
    is_inside = values > 0
    if not is_inside.any():
        return _inside(values, (0, np.zeros(0)), (0, np.zeros(0)))
    return _inside(
        values,
        _near_cells(rows, np.flatnonzero(is_inside.any(axis=1))),
        _near_cells(columns, np.flatnonzero(is_inside.any(axis=0))),
    )


def _cropped_window(
    values: np.ndarray,  # (h, w) over the network's input
    box: np.ndarray,  # (4,) float32, pixels of the original
    placement: Placement,
) -> Window:
    """Resample a mask, and crop it to the pixels whose corner is in its box."""
    rows, columns = _image_axes(values, placement)
    first = np.ceil(np.clip(box, 0, _MAX_COORDINATE_PX)).astype(np.int64).tolist()
    return _inside(values, _cropped(rows, first[1::2]), _cropped(columns, first[::2]))


def _image_axes(values: np.ndarray, placement: Placement) -> tuple[_Axis, _Axis]:
    (top, left, height, width), target = placement.source, placement.target
    return (
        _resized_axis(
            (top, height), (target.top, target.height), len(values), placement.input_height
        ),
        _resized_axis(
            (left, width), (target.left, target.width), values.shape[1], placement.input_width
        ),
    )


def _resized_axis(
    source: tuple[int, int], target: tuple[int, int], cells: int, input_side: int
) -> _Axis:
    """Return the pixels in the input; cells of the padding have no influence on them."""
    centres = (np.arange(source[1]) + 0.5) * (target[1] / source[1]) + target[0]
    start, stop = np.searchsorted(centres, (0, input_side)).tolist()
    scale = cells / input_side
    first, end = max(0, target[0]) * scale, min(input_side, sum(target)) * scale
    positions = np.clip(centres[start:stop] * scale, min(first + 0.5, end), max(end - 0.5, first))
    return source[0] + start, positions


def _near_cells(axis: _Axis, cells: np.ndarray) -> _Axis:
    """Return the part of an axis that these cells have an influence on."""
    start, positions = axis
    first, end = np.searchsorted(positions, (cells[0] - 0.5, cells[-1] + 1.5)).tolist()
    return start + first, positions[first:end]


def _cropped(axis: _Axis, bounds: Sequence[int]) -> _Axis:
    start, positions = axis
    first, end = (min(max(bound - start, 0), len(positions)) for bound in bounds)
    return start + first, positions[first:end]


def _inside(values: np.ndarray, rows: _Axis, columns: _Axis) -> Window:
    region = np.zeros((len(rows[1]), len(columns[1])), bool)
    if region.size:
        top, bottom = _cells_used(rows[1], values.shape[0])
        left, right = _cells_used(columns[1], values.shape[1])
        values = values[top:bottom, left:right]
    step = max(1, _PIXELS_AT_ONCE // max(1, region.shape[1]))
    for start in range(0, len(region) if region.size else 0, step):
        part = slice(start, start + step)
        region[part] = _interpolated(values, rows[1][part] - top, columns[1] - left) > 0
    return Window(rows[0], columns[0], region)


def _interpolated(
    values: np.ndarray,  # (h, w)
    rows: np.ndarray,  # (R,) positions in cells; the centre of the first cell is at 0.5
    columns: np.ndarray,  # (C,)
) -> np.ndarray:  # (R, C) float32
    """Interpolate linearly, by two neighbours along each axis.

    `cvbatch.geometry.resampling.sample_bilinear` does the same with products of matrices, which
    take ten times as long on many pixels.
    """
    (above, below, y), (left, right, x) = (
        _neighbours(positions, count)
        for positions, count in zip((rows, columns), values.shape, strict=True)
    )
    values = values.astype(np.float32, copy=False)
    lines = values[above] + (values[below] - values[above]) * y[:, None]
    sampled: np.ndarray = lines.take(left, axis=1)
    sampled += (lines.take(right, axis=1) - sampled) * x
    return sampled


def _neighbours(
    positions: np.ndarray,  # (n,)
    count: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # (n,) int64, (n,) int64, (n,) float32
    """Return the cells before and after positions, and the weight of the cell after."""
    inside = np.clip(positions - 0.5, 0, count - 1)
    before = inside.astype(np.int64)
    return before, np.minimum(before + 1, count - 1), (inside - before).astype(np.float32)


def _cells_used(positions: np.ndarray, count: int) -> tuple[int, int]:
    """Return the first cell, and the one after the last, that positions lie between."""
    first, last = (int(np.floor(positions[i] - 0.5)) for i in (0, -1))
    return min(max(first, 0), count - 1), min(max(last, 0) + 2, count)


_WINDOWS: dict[MaskKind, Callable[[np.ndarray, np.ndarray, Placement], Window]] = {
    "box": _box_window,
    "image": _image_window,
    "prototypes": _cropped_window,
}
