"""Faithfulness of heatmaps: insertion and deletion curves, pointing game and box IoU per image.

The network runs again on perturbed images. Each heatmap gives four curves of the score of its
class: pixels are inserted into the blurred image, or replaced by grey (deletion), in the order of
the heatmap, and of the same map mirrored and shifted at random. With ground truth, the maximum of
the map and a box around it are compared with boxes or masks of the class.
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
MAX_TILE_BYTES = 64 << 20  # of one image; evaluating it takes about twenty times that memory
ImageGroup = Sequence[JoinedPart]
_ROW = ("image_id", "width", "height", "heatmaps")
_SCORE_TOLERANCE = 0.002  # scores of different machines may differ by this


@dataclass(frozen=True)
class HeatmapSpec:
    """Options of a heatmap evaluation, and the network of the heatmaps."""

    reader: ChunkReader  # of the images of the result
    program: BuiltProgram
    keys: tuple[InputKey, ...]  # of all models of the job: they decide how large JPEGs are decoded
    source: SourceConfig
    timeout_s: float  # maximum to decode one image
    class_of: dict[str, np.ndarray]  # boxes, mask → (P,) true class of each predicted one; −1: none
    steps: int
    box_threshold: float
    seed: int


@dataclass(frozen=True)
class HeatmapScore:
    """Scores of one heatmap; in pairs, the second value is of the random map."""

    image_id: str
    class_id: int
    label: str
    score: float
    curves: np.ndarray  # (4, S + 1) float64, of CURVES
    is_hit: tuple[float, float]  # the maximum is on an object of the class: 1 or 0; NaN: no object
    box_iou: tuple[float, float]  # largest IoU with a box of the class; NaN: no box
    box_xyxy: np.ndarray  # (M, 4) float32, M is 0 or 1


@dataclass
class HeatmapScores:
    """Scores of the heatmaps of some images, and images that cannot be evaluated."""

    scores: list[HeatmapScore] = field(default_factory=list)
    excluded: dict[str, Failure] = field(default_factory=dict)  # by image id


class _Objects(NamedTuple):
    """Ground-truth objects of one class in one image."""

    boxes_xyxy: np.ndarray  # (K, 4)
    mask: np.ndarray | None  # (h, w) bool; None: no mask, or no pixel of the class

    @property
    def exist(self) -> bool:
        return len(self.boxes_xyxy) > 0 or self.mask is not None


def score_group(spec: HeatmapSpec, program: Program, group: ImageGroup) -> HeatmapScores:
    """Return the scores of the heatmaps of some images.

    An image that is missing, changed, not decodable or larger than `MAX_TILE_BYTES` of tiles is
    excluded.

    Args:
        spec: options and network.
        program: that of the spec, loaded.
        group: images of the result.

    Raises:
        SourceError: the result or the ground truth is damaged.
    """
    result = HeatmapScores()
    source = spec.source
    limits = Limits.from_source(source.model_dump(), max_tile_bytes=MAX_TILE_BYTES)
    with IsolatedDecoder(spec.timeout_s) as decode_one:
        for part in group:
            predicted, truth = read_joined_part(part, _ROW, list(spec.class_of))
            labels = truth.to_pylist() if truth.num_columns else [{}] * predicted.num_rows
            rows = {row["image_id"]: row for row in predicted.to_pylist()}
            labels_of = dict(zip(rows, labels, strict=True))
            result.excluded |= dict.fromkeys(rows, MISSING)
            for image in read_images(part.ref, spec.reader, limits.max_bytes, rows):
                image_id = image.image_id
                decoded = image.failure or decode_one(image.data, spec.keys, limits)
                scores = _score_image(spec, program, rows[image_id], labels_of[image_id], decoded)
                if isinstance(scores, Failure):
                    result.excluded[image_id] = scores
                else:
                    del result.excluded[image_id]
                    result.scores += scores
    return result


def _score_image(
    spec: HeatmapSpec,
    program: Program,
    row: dict[str, Any],
    labels: dict[str, Any],
    decoded: Decoded | Failure,
) -> list[HeatmapScore] | Failure:
    if isinstance(decoded, Failure):
        return decoded
    height, width = decoded.height, decoded.width
    if (height, width) != (row["height"], row["width"]):
        sizes = f"it is {width} x {height} pixels and was {row['width']} x {row['height']}"
        return Failure("read", "changed", sizes)
    key = spec.program.spec.input_key
    pixels = decoded.pixels[key]
    placements = tile_placements(height, width, key)
    tiles = pixels if key.tiling is not None else pixels[None]
    pairs, orders = _maps_and_orders(spec, row, placements)
    scores = _class_scores(spec, program, _variants(tiles, placements, orders, spec.steps))
    for heatmap in row["heatmaps"]:
        score, stored_score = float(scores[0, heatmap["class_id"]]), heatmap["score"]
        if not abs(score - stored_score) <= _SCORE_TOLERANCE:
            scores_differ = (
                f"its score for {heatmap['label']!r} is {score:.4f} and was {stored_score:.4f}"
            )
            return Failure("read", "changed", scores_differ)
    map_placement = placements[0]
    if len(placements) > 1:  # a heatmap of a tiled image covers the original
        map_placement = make_placement(height, width, key._replace(resize="stretch", tiling=None))
    curves = _curves(scores, len(orders), spec.steps).reshape(len(pairs), 4, spec.steps + 1, -1)
    return [
        _score_map(spec, row, m, pair, map_placement, labels, curves[m])
        for m, pair in enumerate(pairs)
    ]


def _maps_and_orders(
    spec: HeatmapSpec, row: dict[str, Any], placements: Sequence[Placement]
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """Return (heatmap, random map), (h, w) each, of each heatmap, and the pixel orders of all."""
    pairs, orders = [], []
    for heatmap in row["heatmaps"]:
        rng = seeded_rng(spec.seed, f"{heatmap['class_id']}/{row['image_id']}")
        values = _map_values(heatmap)
        pair = (values, mirror_and_shift(values, rng))
        pairs.append(pair)
        orders += [pixel_order(values, placements, rng) for values in pair]
    return pairs, orders


def _score_map(
    spec: HeatmapSpec,
    row: dict[str, Any],
    m: int,  # index in the heatmaps of the row
    pair: tuple[np.ndarray, np.ndarray],  # heatmap, random map
    placement: Placement,
    labels: dict[str, Any],
    curves: np.ndarray,  # (4, S + 1, C)
) -> HeatmapScore:
    heatmap, size = row["heatmaps"][m], (row["height"], row["width"])
    objects = _objects(spec, labels, heatmap["class_id"], size)
    box, random_box = (
        boxes_from_heatmap(heatmap_to_original(values, placement), *size, spec.box_threshold)
        for values in pair
    )
    return HeatmapScore(
        image_id=row["image_id"],
        class_id=heatmap["class_id"],
        label=heatmap["label"],
        score=heatmap["score"],
        curves=curves[..., heatmap["class_id"]].astype(np.float64),
        is_hit=(
            _hit(peak_in_original(pair[0], placement), objects),
            _hit(peak_in_original(pair[1], placement), objects),
        ),
        box_iou=(_best_iou(box, objects), _best_iou(random_box, objects)),
        box_xyxy=box,
    )


def _map_values(heatmap: dict[str, Any]) -> np.ndarray:  # (h, w) float32
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
    """Yield the original, blurred and grey image, then the steps between them for each order."""
    blurred, grey = blur(tiles, placements), grey_like(tiles)
    yield from (tiles, blurred, grey)
    for order in orders:
        yield from replace_pixels(blurred, tiles, order, steps)
        yield from replace_pixels(tiles, grey, order, steps)


def _curves(
    scores: np.ndarray,  # (3 + N · 2 · (S − 1), C), of `_variants`
    num_orders: int,
    steps: int,
) -> np.ndarray:  # (N, 2, S + 1, C): insertion, deletion
    original, blurred, grey = scores[:3]
    between = scores[3:].reshape(num_orders, 2, steps - 1, scores.shape[1])
    curves = np.empty((num_orders, 2, steps + 1, scores.shape[1]), scores.dtype)
    curves[:, :, 1:-1] = between
    curves[:, 0, 0], curves[:, 0, -1] = blurred, original
    curves[:, 1, 0], curves[:, 1, -1] = original, grey
    return curves


def _class_scores(
    spec: HeatmapSpec, program: Program, variants: Iterable[np.ndarray]
) -> np.ndarray:  # (V, C)
    """Return the class scores of V variants of an image: the maximum over its tiles.

    Every image starts a new batch, so its scores do not depend on other images.
    """
    size, key = spec.program.batch_size, spec.program.spec.input_key
    rows, num_variants = [], 0

    def iterate_tiles() -> Iterator[np.ndarray]:
        nonlocal num_variants
        for variant in variants:
            num_variants += 1
            yield from variant

    tiles = iterate_tiles()
    while batch := list(islice(tiles, size)):
        pixels = np.zeros((size, key.height, key.width, 3), np.uint8)
        pixels[: len(batch)] = batch
        rows.append(program(pixels)["scores"][: len(batch)].copy())
    scores = np.concatenate(rows)
    best: np.ndarray = scores.reshape(num_variants, -1, scores.shape[1]).max(axis=1)
    return best


def _objects(
    spec: HeatmapSpec, labels: dict[str, Any], class_id: int, size: tuple[int, int]
) -> _Objects:
    """Return the objects of the ground-truth class that a predicted class matches."""
    boxes, mask = np.zeros((0, 4)), None
    for column, classes in spec.class_of.items():
        true_class, label = int(classes[class_id]), labels.get(column)
        if true_class < 0 or label is None:
            continue
        if column == "boxes":
            boxes = box_corners([box for box in label if box["class_id"] == true_class])
        elif label["bytes"] is not None:
            is_class = _decode_mask(label["bytes"]) == true_class
            mask = is_class if is_class.any() and is_class.shape == size else None
    return _Objects(boxes, mask)


def _decode_mask(png: bytes) -> np.ndarray:  # (h, w) uint8
    try:
        return decode_png(png)
    except ValueError as error:
        raise SourceError(f"a mask of the truth is damaged: {error}") from None


def _hit(point: tuple[float, float] | None, objects: _Objects) -> float:
    """Return 1 if the point is in a box of the class, or, without boxes, on its mask; else 0.

    NaN if the image has no object of the class.
    """
    if not objects.exist:
        return float("nan")
    if point is None:
        return 0.0
    x, y = point
    if len(objects.boxes_xyxy):
        left, top, right, bottom = objects.boxes_xyxy.T
        return float(((left <= x) & (x < right) & (top <= y) & (y < bottom)).any())
    return float(objects.mask is not None and objects.mask[int(y), int(x)])


def _best_iou(box: np.ndarray, objects: _Objects) -> float:  # (M, 4), M is 0 or 1
    if not len(objects.boxes_xyxy):
        return float("nan")
    return float(iou(box, objects.boxes_xyxy).max(initial=0))
