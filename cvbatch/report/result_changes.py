"""Compare two results image by image: changed classes, gained and lost boxes, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import ConfigError
from cvbatch.core.progress import Listener
from cvbatch.core.types import VOID_CLASS, Boxes, ChunkRef
from cvbatch.evaluate.scoring import EvaluationSpec
from cvbatch.images.masks import decode_png, encode_png
from cvbatch.metrics.box_matching import GroundTruthBoxes, match_boxes
from cvbatch.report.columns import BOX_SCORE
from cvbatch.report.outcomes import Cell, LabelComparison, compare_image
from cvbatch.report.statistics import RowRef, damage_reported, equally_spaced
from cvbatch.results.parts import box_corners, take_rows
from cvbatch.results.result import Result
from cvbatch.results.schema import COLUMN_TYPES

MAX_COMPARED = 100_000  # images; of larger results a sample of the part files is compared
MASK_CHANGE = 0.01  # share of the pixels by which the areas of the classes must differ
_COLUMNS = ("image_id", "status", "width", "height", "labels", "boxes", "mask_areas")
# Kind of a change → title.
CHANGES = {
    "class": "Class changed",
    "gained": "Boxes gained",
    "lost": "Boxes lost",
    "mask": "Mask changed",
    "failed-a": "Failed in A only",
    "failed-b": "Failed in B only",
}


class Pair(NamedTuple):
    """An image that is in both results."""

    a: RowRef
    b: RowRef


class ImageChange(NamedTuple):
    """How the predictions of an image differ."""

    kinds: tuple[str, ...]  # keys of CHANGES
    labels: tuple[str, str] | None = None  # best label in A and in B, if they differ
    gained: int = 0  # boxes
    lost: int = 0


@dataclass
class Changes:
    """Differences between the results A and B.

    Attributes:
        a: the first result.
        b: the second result.
        num_common: images that are in both.
        num_compared: of these, those that were compared.
        only_a: ids of images that are only in A.
        only_b: ids of images that are only in B.
        images: changed images, in the order of B.
    """

    a: Result
    b: Result
    num_common: int
    only_a: pa.Array
    only_b: pa.Array
    num_compared: int = 0
    images: dict[Pair, ImageChange] = field(default_factory=dict)

    def counts(self) -> Counter[str]:
        """Return the number of images with each kind of change."""
        return Counter(kind for change in self.images.values() for kind in change.kinds)

    def class_changes(self) -> Counter[tuple[str, str]]:
        """Return the number of images by best label in A and in B."""
        changed = (change.labels for change in self.images.values())
        return Counter(labels for labels in changed if labels)


def find_changes(a: Result, b: Result, listener: Listener) -> Changes:
    """Compare two results. Boxes count from a score of `BOX_SCORE`, and match from an IoU of 0.5.

    Args:
        a: the first result.
        b: the second result.
        listener: receives the number of compared images.

    Raises:
        SourceError: a part file is damaged.
        ConfigError: the results have no image in common.
    """
    ids_a, ids_b = (_Index.of(result) for result in (a, b))
    index = pc.fill_null(pc.index_in(ids_b.image_id, value_set=ids_a.image_id), -1).to_numpy()
    is_common = pc.is_in(ids_a.image_id, value_set=ids_b.image_id).to_numpy(zero_copy_only=False)
    if not is_common.any():
        raise ConfigError(
            f"{a.uri} and {b.uri} have no image in common; compare two results of one source"
        )
    changes = Changes(
        a,
        b,
        int(is_common.sum()),
        ids_a.image_id.filter(pa.array(~is_common)),
        ids_b.image_id.filter(pa.array(index < 0)),
    )
    listener.phase("comparing", min(changes.num_common, MAX_COMPARED), "images")
    for pairs in _batches(ids_a, ids_b, index, changes.num_common):
        changes.num_compared += len(pairs)
        found = _compare(a, b, pairs)
        changes.images |= {pair: change for pair, change in found if change.kinds}
        listener.advanced(changes.num_compared)
    return changes


class _Index(NamedTuple):
    """Location of every image of a result."""

    image_id: pa.Array  # N
    refs: list[ChunkRef]
    ends: np.ndarray  # (chunks,) int64 images up to the end of each chunk

    @classmethod
    def of(cls, result: Result) -> _Index:
        ids = result.image_ids()
        merged = pa.chunked_array(ids, pa.large_string()).combine_chunks()
        return cls(merged, result.done, np.cumsum([len(part) for part in ids]))

    def row_ref(self, number: int) -> RowRef:
        chunk = int(np.searchsorted(self.ends, number, "right"))
        first = int(self.ends[chunk - 1]) if chunk else 0
        return RowRef(self.refs[chunk], number - first)


def _batches(
    a: _Index,
    b: _Index,
    index: np.ndarray,  # (N,) image of A of each image of B; −1: none
    num_common: int,
) -> Iterator[list[Pair]]:
    """Yield the common images chunk by chunk of B; of many a sample of the chunks."""
    count = max(1, len(b.refs) * MAX_COMPARED // num_common)
    for chunk in equally_spaced(len(b.refs), count):
        first, end = int(b.ends[chunk - 1]) if chunk else 0, int(b.ends[chunk])
        numbers = first + np.flatnonzero(index[first:end] >= 0)
        if len(numbers):
            yield [Pair(a.row_ref(int(index[i])), b.row_ref(i)) for i in numbers.tolist()]


def _compare(a: Result, b: Result, pairs: Sequence[Pair]) -> list[tuple[Pair, ImageChange]]:
    """Return how the predictions of images differ."""
    rows_a = _read(a, [pair.a for pair in pairs], _COLUMNS).to_pylist()
    rows_b = _read(b, [pair.b for pair in pairs], _COLUMNS).to_pylist()
    boxes = [[_counted(row.get("boxes") or []) for row in rows] for rows in (rows_a, rows_b)]
    with damage_reported(b, pairs[0].b.ref):
        gained, lost = _unmatched(*boxes)
    return [
        (pair, _change(row_a, row_b, num_gained, num_lost))
        for pair, row_a, row_b, num_gained, num_lost in zip(
            pairs, rows_a, rows_b, gained, lost, strict=True
        )
    ]


def _read(result: Result, row_refs: Sequence[RowRef], columns: Sequence[str]) -> pa.Table:
    """Return columns of rows, in the order of the references."""
    by_chunk: dict[ChunkRef, list[int]] = {}
    for position, row_ref in enumerate(row_refs):
        by_chunk.setdefault(row_ref.ref, []).append(position)
    tables = []
    for ref, positions in by_chunk.items():
        numbers = np.array([row_refs[position].row for position in positions])
        tables.append(take_rows(result.storage, result.uri_of(ref), numbers, columns))
    order = np.argsort(np.concatenate(list(by_chunk.values())))
    return pa.concat_tables(tables).take(pa.array(order))


def _counted(boxes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the finite boxes of an image whose score is high enough."""
    is_finite = np.isfinite(box_corners(boxes)).all(axis=1).tolist()
    return [
        box
        for box, finite in zip(boxes, is_finite, strict=True)
        if finite and box["score"] >= BOX_SCORE
    ]


def _unmatched(
    boxes_a: Sequence[Sequence[Mapping[str, Any]]], boxes_b: Sequence[Sequence[Mapping[str, Any]]]
) -> tuple[list[int], list[int]]:
    """Return for each image the boxes of B without a match in A, and those of A without one."""
    numbers: dict[str, int] = {}
    sides = []
    for images in (boxes_a, boxes_b):
        flat = [box for boxes in images for box in boxes]
        class_id = [numbers.setdefault(box["label"], len(numbers)) for box in flat]
        sides.append(
            Boxes(
                box_corners(flat).astype(np.float32),
                np.array([box["score"] for box in flat], np.float32),
                np.array(class_id, np.int64),
                np.repeat(np.arange(len(images)), [len(boxes) for boxes in images]),
            )
        )
    truth = GroundTruthBoxes(sides[0].xyxy, sides[0].class_id, sides[0].image_index)
    match = match_boxes(sides[1], truth)
    kept = match.match[:, 0]  # IoU 0.5, all areas
    kept_a = np.bincount(truth.image_index[kept[kept >= 0]], minlength=len(boxes_a))
    num_a, num_b = (np.array([len(boxes) for boxes in side]) for side in (boxes_a, boxes_b))
    return (num_b - kept_a).tolist(), (num_a - kept_a).tolist()


def _change(a: Mapping[str, Any], b: Mapping[str, Any], gained: int, lost: int) -> ImageChange:
    """Return how the predictions of an image differ."""
    failed = [row["status"] != "ok" for row in (a, b)]
    if any(failed):
        return ImageChange(() if all(failed) else ("failed-a" if failed[0] else "failed-b",))
    shared = {name for name in _COLUMNS if a.get(name) is not None and b.get(name) is not None}
    best_a, best_b = (row["labels"][0]["label"] if row.get("labels") else "" for row in (a, b))
    labels = (best_a, best_b) if "labels" in shared and best_a != best_b else None
    gained, lost = (gained, lost) if "boxes" in shared else (0, 0)
    is_present = {
        "class": labels is not None,
        "gained": gained > 0,
        "lost": lost > 0,
        "mask": "mask_areas" in shared and _area_change(a, b) > MASK_CHANGE,
    }
    kinds = tuple(kind for kind, present in is_present.items() if present)
    return ImageChange(kinds, labels, gained, lost)


def _area_change(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Return the share of pixels by which the areas of the classes differ."""
    areas = [{area["label"]: area["area"] for area in row["mask_areas"]} for row in (a, b)]
    num_pixels = max(sum(areas[0].values()), sum(areas[1].values()), 1)
    names = areas[0].keys() | areas[1].keys()
    difference = sum(abs(areas[0].get(name, 0) - areas[1].get(name, 0)) for name in names)
    return float(difference / 2 / num_pixels)


def _spec(a: Result, b: Result) -> EvaluationSpec:
    """Return how the result B is compared with A as if A were the ground truth."""
    columns = [name for name in b.classes if name in a.classes]
    classes = {name: tuple(dict.fromkeys([*b.classes[name], *a.classes[name]])) for name in columns}
    if "mask" in classes and not _masks_compare(a, b, classes["mask"]):
        del classes["mask"]
    return EvaluationSpec(
        classes=classes,
        class_of={
            name: np.array([names.index(label) for label in b.classes[name]], np.int64)
            for name, names in classes.items()
        },
        ks=(1,),
        is_multi_label=a.is_multi_label or b.is_multi_label,
        ignored_class=None,
        score_threshold=BOX_SCORE,
        iou_threshold=0.5,
        num_replicates=0,
        seed=0,
    )


def _masks_compare(a: Result, b: Result, names: Sequence[str]) -> bool:
    """Return whether the masks have the size of their images, and few enough classes."""
    sizes = [result.models["mask"].get("options", {}).get("mask_size") for result in (a, b)]
    return "model" not in sizes and len(names) < VOID_CLASS


def compare_pairs(changes: Changes, pairs: Sequence[Pair]) -> dict[RowRef, LabelComparison]:
    """Compare changed images of B with those of A, whose predictions stand for the labels.

    The best labels are a cell of the confusion matrix, also of independent labels.

    Raises:
        SourceError: a part file is damaged.
    """
    if not pairs:
        return {}
    a, b = changes.a, changes.b
    spec = _spec(a, b)
    columns = ["image_id", "status", *spec.classes]
    labels = [
        {name: _as_label(spec, a, name, row.get(name)) for name in spec.classes}
        for row in _read(a, [pair.a for pair in pairs], columns).to_pylist()
    ]
    schema = pa.schema([(name, COLUMN_TYPES[name]) for name in spec.classes])
    sides = _read(b, [pair.b for pair in pairs], columns), pa.Table.from_pylist(labels, schema)
    comparisons = {}
    for i, pair in enumerate(pairs):
        predicted, labelled = (side.slice(i, 1) for side in sides)
        comparison = compare_image(spec, predicted, labelled, b.uri_of(pair.b.ref))
        cells, best = comparison.cells, changes.images[pair].labels
        if best:
            cells = tuple(dict.fromkeys([*cells, Cell("labels", *best)]))
        comparisons[pair.b] = replace(comparison, loss=None, cells=cells)
    return comparisons


def _as_label(spec: EvaluationSpec, a: Result, column: str, value: Any) -> Any:
    """Return predictions of A as labels with the classes of the spec."""
    if value is None:
        return None
    names = spec.classes[column]
    numbers = [names.index(label) for label in a.classes[column]]
    if column == "mask":
        lut = np.full(256, VOID_CLASS, np.uint8)
        lut[: len(numbers)] = numbers
        return {"bytes": encode_png(lut[decode_png(value["bytes"])]), "path": None}
    if column == "labels" and not spec.is_multi_label:
        chosen = value[:1]
    elif column == "boxes":
        chosen = _counted(value)
    else:
        chosen = [label for label in value if label["score"] >= BOX_SCORE]
    return [{**element, "class_id": numbers[element["class_id"]]} for element in chosen]
