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
from cvbatch.geometry.resampling import Taps, bilinear_taps, interpolate
from cvbatch.geometry.resize import Placement, boxes_to_original
from cvbatch.images.rle import Window, compress_rle, encode_window

OUTSIDE = -0.5  # a probability of 0, of which 0.5 is subtracted
_PIXELS_AT_ONCE = 1 << 17  # they remain in the cache of the processor
_MAX_COORDINATE_PX = 2.0**30
_Axis = tuple[int, Taps]  # first pixel of the original, cells of the following ones
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
    return _window(padded, rows, columns)


def _pasted_axis(first: np.float32, last: np.float32, cells: int, side: int) -> _Axis:
    half = (last - first) * np.float32(0.5) * np.float32((cells + 2) / cells)
    centre = (last + first) * np.float32(0.5)
    start, end = int(centre - half), int(centre + half) + 1
    pixels = np.arange(max(start, 0), min(end, side))
    positions = (pixels - start + 0.5) * (cells + 2) / max(end - start, 1) - 0.5
    return max(start, 0), Taps.at(positions, cells + 2)


# ---------------------------------------------------------------- masks of the whole image


def _image_window(
    values: np.ndarray,  # (h, w) over the network's input
    box: np.ndarray,
    placement: Placement,
) -> Window:
    """Resample a mask, near its cells above 0; the box does not crop it."""
    top, rows, left, columns = bilinear_taps(placement, values.shape)
    is_inside = values > 0
    down, across = np.flatnonzero(is_inside.any(axis=1)), np.flatnonzero(is_inside.any(axis=0))
    return _window(values, _near((top, rows), down), _near((left, columns), across))


def _cropped_window(
    values: np.ndarray,  # (h, w) over the network's input
    box: np.ndarray,  # (4,) float32, pixels of the original
    placement: Placement,
) -> Window:
    """Resample a mask, and crop it to the pixels whose corner is in its box."""
    top, rows, left, columns = bilinear_taps(placement, values.shape)
    first = np.ceil(np.clip(box, 0, _MAX_COORDINATE_PX)).astype(np.int64)
    down, across = first[1::2] - top, first[::2] - left
    return _window(values, _part((top, rows), *down), _part((left, columns), *across))


def _near(axis: _Axis, cells: np.ndarray) -> _Axis:
    """Return the part of an axis that these cells, ascending, have an influence on."""
    if not len(cells):
        return _part(axis, 0, 0)
    taps = axis[1]
    stop = np.searchsorted(taps.low, cells[-1], "right")
    return _part(axis, np.searchsorted(taps.high, cells[0]), stop)


def _part(axis: _Axis, start: np.integer | int, stop: np.integer | int) -> _Axis:
    first, taps = axis
    start, stop = (min(max(int(end), 0), len(taps)) for end in (start, stop))
    return first + start, taps.part(slice(start, stop))


def _window(values: np.ndarray, row_axis: _Axis, column_axis: _Axis) -> Window:
    """Return the pixels where interpolated values are above 0."""
    (top, rows), (left, columns) = row_axis, column_axis
    region = np.zeros((len(rows), len(columns)), bool)
    if not region.size:
        return Window(top, left, region)
    values = interpolate(values[rows.cells, columns.cells], columns.from_first(), axis=1)
    rows = rows.from_first()
    step = max(1, _PIXELS_AT_ONCE // len(columns))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        region[part] = interpolate(values, rows.part(part), axis=0) > 0
    return Window(top, left, region)


_WINDOWS: dict[MaskKind, Callable[[np.ndarray, np.ndarray, Placement], Window]] = {
    "box": _box_window,
    "image": _image_window,
    "prototypes": _cropped_window,
}
