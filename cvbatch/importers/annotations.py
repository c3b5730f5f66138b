"""Annotations of a data set as its format declares them, before validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from cvbatch.core.types import Item
from cvbatch.importers.dataset_files import in_hash_order
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.polygons import Outline
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage

NO_BOXES = np.empty((0, 4), np.float64)
UNKNOWN_CLASS = -1  # class id of a name that is not in the class table


@dataclass(slots=True)
class Annotation:
    """The annotations of one image: boxes, labels and where its mask is."""

    image_id: str
    # "train", "validation", "test", or "trainval" (divided by hash); None: split by hash
    split: str | None = None
    boxes: np.ndarray = field(default_factory=lambda: NO_BOXES)  # (M, 4) float64 half-open xyxy
    # boxes and polygons are in shares of the image's width and height, see `in_pixels`
    is_relative: bool = False
    class_id: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))  # (M,), or −1
    score: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))  # (M,)
    is_crowd: np.ndarray = field(default_factory=lambda: np.empty(0, bool))  # (M,)
    area: np.ndarray | None = None  # (M,) float64 pixels² of the outlines; NaN: not known
    outlines: Sequence[Outline | None] = ()  # M, if masks are drawn from them
    labels: Sequence[tuple[int, float]] | None = None  # (class id, score); None: those of the boxes
    declared_hw: tuple[int, int] | None = None  # image size in the annotation; None: not declared
    mask_uri: str = ""  # "": no mask

    def in_pixels(self, size: tuple[int, int]) -> Annotation:
        """Return the annotation in pixels of an image of a size (h, w)."""
        if not self.is_relative:
            return self
        sides = np.array(size[::-1], np.float64)
        outlines = [
            [polygon * sides for polygon in outline] if isinstance(outline, list) else outline
            for outline in self.outlines
        ]
        boxes = self.boxes * [*sides, *sides]
        return replace(self, boxes=boxes, outlines=outlines, is_relative=False)


class MaskIssue(NamedTuple):
    """Why the mask of an image cannot be used."""

    kind: str  # a key of ISSUE_KINDS
    message: str


# (annotation in pixels, size (h, w) of the frame that it refers to) → mask (h, w) uint8 of that
# frame, or of the image as stored or upright; None if the image has no mask.
MaskReader = Callable[[Annotation, tuple[int, int]], "np.ndarray | MaskIssue | None"]


@dataclass(frozen=True)
class AnnotatedBatch:
    """Images that are read together, and their annotations."""

    items: Sequence[Item]
    annotations: Mapping[str, Annotation]  # by image_id; images without an entry are skipped
    reader: ChunkReader


Batches = Callable[[ImportReport], Iterator[AnnotatedBatch]]


@dataclass(frozen=True)
class OneBatch:
    """`AnnotatedDataset.batches` of image files, whose annotations are all in memory."""

    batch: AnnotatedBatch

    def __call__(self, report: ImportReport) -> Iterator[AnnotatedBatch]:
        """Yield the batch."""
        yield self.batch


def one_batch(
    storage: Storage, items: Iterable[Item], annotations: Mapping[str, Annotation]
) -> Batches:
    """Return `AnnotatedDataset.batches` of image files, whose annotations are all in memory."""
    reader = ChunkReader(storage, "images", "image")
    return OneBatch(AnnotatedBatch(in_hash_order(items), annotations, reader))


@dataclass(frozen=True)
class AnnotatedDataset:
    """The annotations of a data set.

    Args:
        columns: some of labels, boxes, box_is_crowd, box_area, box_masks and mask.
        classes: class names of labels, boxes and mask, by class id.
        is_multi_label: an image may have several labels.
        batches: yields all images. It can be called again and then yields the same. It counts
            images and issues that appear only during the iteration in the given report.
        read_mask: reads the mask of one image; None if the data set has no masks.
        is_upright: boxes and masks refer to upright pixels, whatever `--orientation` is.
        has_images: False: labels alone are imported.
        unknown_label_kind: the kind of issue of an image whose label is not in the class table.
    """

    columns: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]
    is_multi_label: bool
    batches: Batches
    read_mask: MaskReader | None = None
    is_upright: bool = False
    has_images: bool = True
    unknown_label_kind: str = "folder_unknown"

    @property
    def num_images(self) -> int:
        """Number of images; 0 if only reading can count them."""
        return len(self.batches.batch.items) if isinstance(self.batches, OneBatch) else 0
