"""How faithful heatmaps are is judged here, image by image, by asking their network again.

Of a heatmap four curves are drawn: its class's score while pixels come into the blurred image in
the map's order (insertion) or give way to grey (deletion), and both for the same map misplaced at
random. Where there is a truth, the map's maximum and a box round it are held against that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from cvbatch.config.predict import SourceConfig
from cvbatch.core.errors import SourceError
from cvbatch.core.types import Decoded, Failure, InputKey
from cvbatch.evaluate.join import JoinedPart, read_joined_part
from cvbatch.evaluate.perturbation import (
    blur,
    grey_like,
    mirror_and_shift,
    pixel_order,
    replace_pixels,
    seeded_rng,
)
from cvbatch.geometry.boxes import iou
from cvbatch.geometry.resampling import heatmap_to_original, peak_in_original
from cvbatch.geometry.resize import Placement, make_placement
from cvbatch.geometry.tiling import tile_placements
from cvbatch.images.decode import Limits
from cvbatch.images.heatmaps import boxes_from_heatmap
from cvbatch.images.isolated_decode import IsolatedDecoder
from cvbatch.images.masks import decode_png
from cvbatch.inference.engines import Program
from cvbatch.inference.programs import BuiltProgram
from cvbatch.results.parts import MISSING, box_corners, read_images
from cvbatch.sources.readers import ChunkReader

CURVES = ("insertion", "deletion", "random_insertion", "random_deletion")
MAX_TILE_BYTES = 64 << 20  # of one image; while it is judged twenty times that are held
ImageGroup = Sequence[JoinedPart]
_ROW = ("image_id", "width", "height", "heatmaps")
_SAME_SCORE = 0.002  # within which machines may differ


@dataclass(frozen=True)
class HeatmapSpec:
    """What is asked of heatmaps, and the network that they are of."""

    reader: ChunkReader  # of the images of the result
    program: BuiltProgram
    keys: tuple[InputKey, ...]  # of all models of the job: large JPEGs are read to suit them all
    source: SourceConfig
    timeout_s: float  # that decoding one image may take
    class_of: dict[str, np.ndarray]  # boxes, mask → (P,) true class of each predicted one; −1: none
    steps: int
    box_threshold: float
    seed: int


@dataclass(frozen=True)
class HeatmapScore:
    """What one heatmap came to; in pairs the second is of the map misplaced at random."""

    image_id: str
    class_id: int
    label: str
    score: float
    curves: np.ndarray  # (4, S + 1) float64, of CURVES
    is_hit: tuple[float, float]  # the maximum is on the object: 1 or 0; NaN: there is none
    box_iou: tuple[float, float]  # with the object's box it fits best; NaN: there is none
    box_xyxy: np.ndarray  # (M, 4) float32, M is 0 or 1


@dataclass
class HeatmapScores:
    """What the heatmaps of some images came to, and which images could not be judged."""

    judged: list[HeatmapScore] = field(default_factory=list)
    left_out: dict[str, Failure] = field(default_factory=dict)  # by image id


class _Truth(NamedTuple):
    """Where the objects of one class are in one image."""

    boxes_xyxy: np.ndarray  # (K, 4)
    mask: np.ndarray | None  # (h, w) bool; None: not known, or none is there

    @property
    def has_object(self) -> bool:
        return len(self.boxes_xyxy) > 0 or self.mask is not None


def score_group(order: HeatmapSpec, program: Program, share: ImageGroup) -> HeatmapScores:
    """Return what the heatmaps of some images of the result come to.

    program: of the order, loaded. An image that is gone, changed, cannot be decoded any more or
    comes to more than `MAX_TILE_BYTES` of tiles is left out and named.

    Raises:
        SourceError: the result or the truth is damaged.
    """
    found = HeatmapScores()
    source = order.source
    limits = Limits(source.max_bytes, source.max_pixels, source.reduced_jpeg, MAX_TILE_BYTES)
    with IsolatedDecoder(order.timeout_s) as decode_one:
        for piece in share:
            said, truth = read_joined_part(piece, _ROW, list(order.class_of))
            truths = truth.to_pylist() if truth.num_columns else [{}] * said.num_rows
            rows = {row["image_id"]: row for row in said.to_pylist()}
            known = dict(zip(rows, truths, strict=True))
            found.left_out |= dict.fromkeys(rows, MISSING)
            for image in read_images(piece.ref, order.reader, limits.max_bytes, rows):
                row = rows[image.image_id]
                decoded = image.failure or decode_one(image.data, order.keys, limits)
                judged = _judge(order, program, row, known[image.image_id], decoded)
                if isinstance(judged, Failure):
                    found.left_out[image.image_id] = judged
                else:
                    del found.left_out[image.image_id]
                    found.judged += judged
    return found


def _judge(
    order: HeatmapSpec,
    program: Program,
    row: dict[str, Any],
    truth: dict[str, Any],
    decoded: Decoded | Failure,
) -> list[HeatmapScore] | Failure:
    if isinstance(decoded, Failure):
        return decoded
    height, width = decoded.height, decoded.width
    if (height, width) != (row["height"], row["width"]):
        was = f"it is {width} x {height} pixels and was {row['width']} x {row['height']}"
        return Failure("read", "changed", was)
    key = order.program.spec.input_key
    pixels = decoded.pixels[key]
    placements = tile_placements(height, width, key)
    tiles = pixels if key.tiling is not None else pixels[None]
    maps = [_values(one) for one in row["heatmaps"]]
    drawn = [
        seeded_rng(order.seed, f"{one['class_id']}/{row['image_id']}") for one in row["heatmaps"]
    ]
    pairs = [(own, mirror_and_shift(own, rng)) for own, rng in zip(maps, drawn, strict=True)]
    orders = [
        pixel_order(values, placements, rng)
        for pair, rng in zip(pairs, drawn, strict=True)
        for values in pair
    ]
    scores = _scores(order, program, _variants(tiles, placements, orders, order.steps))
    for one in row["heatmaps"]:
        now, was = float(scores[0, one["class_id"]]), one["score"]
        if not abs(now - was) <= _SAME_SCORE:
            told = f"its score for {one['label']!r} is {now:.4f} and was {was:.4f}"
            return Failure("read", "changed", told)
    seen = placements[0]
    if len(placements) > 1:  # its maps are over the whole original
        seen = make_placement(height, width, key._replace(resize="stretch", tiling=None))
    curves = _curves(scores, len(orders), order.steps).reshape(len(pairs), 4, order.steps + 1, -1)
    return [_judge_map(order, row, m, pair, seen, truth, curves[m]) for m, pair in enumerate(pairs)]


def _judge_map(
    order: HeatmapSpec,
    row: dict[str, Any],
    m: int,  # which of the row's heatmaps
    pair: tuple[np.ndarray, np.ndarray],  # the map, and misplaced
    seen: Placement,
    truth: dict[str, Any],
    curves: np.ndarray,  # (4, S + 1, C)
) -> HeatmapScore:
    said, size = row["heatmaps"][m], (row["height"], row["width"])
    there = _truth_of(order, truth, said["class_id"], size)
    own, other = (
        boxes_from_heatmap(heatmap_to_original(values, seen), *size, order.box_threshold)
        for values in pair
    )
    return HeatmapScore(
        image_id=row["image_id"],
        class_id=said["class_id"],
        label=said["label"],
        score=said["score"],
        curves=curves[..., said["class_id"]].astype(np.float64),
        is_hit=(
            _hit(peak_in_original(pair[0], seen), there),
            _hit(peak_in_original(pair[1], seen), there),
        ),
        box_iou=(_best_iou(own, there), _best_iou(other, there)),
        box_xyxy=own,
    )


def _values(heatmap: dict[str, Any]) -> np.ndarray:  # (h, w) float32
    try:
        return np.array(heatmap["values"], np.float32).reshape(heatmap["height"], heatmap["width"])
    except ValueError as error:
        raise SourceError(f"a heatmap of the result is damaged: {error}") from None


def _variants(
    tiles: np.ndarray,  # (T, H, W, 3) uint8
    placements: Sequence[Placement],
    orders: Sequence[np.ndarray],  # each (P,)
    steps: int,
) -> Iterator[np.ndarray]:  # of (T, H, W, 3) uint8
    """Yield the image, the blurred and the grey one; then for each order what is between them."""
    vague, grey = blur(tiles, placements), grey_like(tiles)
    yield from (tiles, vague, grey)
    for order in orders:
        yield from replace_pixels(vague, tiles, order, steps)
        yield from replace_pixels(tiles, grey, order, steps)


def _curves(
    scores: np.ndarray,  # (3 + N · 2 · (S − 1), C), of `_variants`
    num_orders: int,
    steps: int,
) -> np.ndarray:  # (N, 2, S + 1, C): insertion, deletion
    whole, vague, grey = scores[:3]
    between = scores[3:].reshape(num_orders, 2, steps - 1, scores.shape[1])
    curves = np.empty((num_orders, 2, steps + 1, scores.shape[1]), scores.dtype)
    curves[:, :, 1:-1] = between
    curves[:, 0, 0], curves[:, 0, -1] = vague, whole
    curves[:, 1, 0], curves[:, 1, -1] = whole, grey
    return curves


def _scores(
    order: HeatmapSpec, program: Program, variants: Iterable[np.ndarray]
) -> np.ndarray:  # (V, C)
    """Return the class scores of V variants of an image; each the best of its tiles'.

    An image begins a batch of its own, so its scores do not depend on what is judged before it.
    """
    size, key = order.program.batch_size, order.program.spec.input_key
    rows, num_variants = [], 0

    def tiles() -> Iterator[np.ndarray]:
        nonlocal num_variants
        for variant in variants:
            num_variants += 1
            yield from variant

    flow = tiles()
    while batch := list(islice(flow, size)):
        pixels = np.zeros((size, key.height, key.width, 3), np.uint8)
        pixels[: len(batch)] = batch
        rows.append(program(pixels)["scores"][: len(batch)].copy())
    scores = np.concatenate(rows)
    best: np.ndarray = scores.reshape(num_variants, -1, scores.shape[1]).max(axis=1)
    return best


def _truth_of(
    order: HeatmapSpec, truth: dict[str, Any], class_id: int, size: tuple[int, int]
) -> _Truth:
    """Return the objects of the true class that a predicted one stands for."""
    boxes, mask = np.zeros((0, 4)), None
    for column, classes in order.class_of.items():
        true_class, found = int(classes[class_id]), truth.get(column)
        if true_class < 0 or found is None:
            continue
        if column == "boxes":
            boxes = box_corners([box for box in found if box["class_id"] == true_class])
        elif found["bytes"] is not None:
            is_there = _mask(found["bytes"]) == true_class
            mask = is_there if is_there.any() and is_there.shape == size else None
    return _Truth(boxes, mask)


def _mask(png: bytes) -> np.ndarray:  # (h, w) uint8
    try:
        return decode_png(png)
    except ValueError as error:
        raise SourceError(f"a mask of the truth is damaged: {error}") from None


def _hit(point: tuple[float, float] | None, truth: _Truth) -> float:
    """Return 1 where the point is in a box of the class, or on its mask if it has no box; else 0.

    NaN where the class is not there.
    """
    if not truth.has_object:
        return float("nan")
    if point is None:
        return 0.0
    x, y = point
    if len(truth.boxes_xyxy):
        left, top, right, bottom = truth.boxes_xyxy.T
        return float(((left <= x) & (x < right) & (top <= y) & (y < bottom)).any())
    return float(truth.mask is not None and truth.mask[int(y), int(x)])


def _best_iou(box: np.ndarray, truth: _Truth) -> float:  # (M, 4), M is 0 or 1
    if not len(truth.boxes_xyxy):
        return float("nan")
    return float(iou(box, truth.boxes_xyxy).max(initial=0))
