"""The nouns of an import: what a data set says of its images, before anything was checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cvbatch.core.types import Item
from cvbatch.importers.import_report import Report
from cvbatch.sources.readers import ChunkReader

NO_BOXES = np.empty((0, 4), np.float64)
UNKNOWN_CLASS = -1  # of a name that is not in --classes

# "trainval" is divided by hash, as images of no list are divided into three.
OWN_SPLITS = ("train", "validation", "test", "trainval")


@dataclass(slots=True)
class Annotation:
    """What a data set says of one image."""

    image_id: str
    split: str | None = None  # one of OWN_SPLITS; None: by hash
    boxes: np.ndarray = field(default_factory=lambda: NO_BOXES)  # (M, 4) float64 half-open xyxy
    class_id: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))  # (M,), or −1
    score: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))  # (M,)
    is_crowd: np.ndarray = field(default_factory=lambda: np.empty(0, bool))  # (M,)
    labels: Sequence[tuple[int, float]] | None = None  # (class, score); None: those of the boxes
    declared_hw: tuple[int, int] | None = None  # the size its annotation says
    mask_at: str = ""  # where its mask lies; "" where it has none


class MaskFault(NamedTuple):
    """Why an image's mask cannot be used: a kind of oddity, and the details."""

    kind: str
    message: str


# (example, size of the frame its annotation refers to) → its mask: (h, w) uint8 in the same frame,
# or turned as the image is stored or upright; None where it has none.
MaskReader = Callable[[Annotation, tuple[int, int]], "np.ndarray | MaskFault | None"]


@dataclass(frozen=True)
class Batch:
    """Images that are read together, and what is said of them."""

    items: Sequence[Item]
    examples: Mapping[str, Annotation]  # by image_id; images that are not in it are passed over
    reader: ChunkReader


@dataclass(frozen=True)
class AnnotatedDataset:
    """What a data set says of all its images.

    `batches` may be called again and then gives the same; what is found and odd only on the way
    is counted in the report it is given.
    """

    columns: tuple[str, ...]  # of labels, boxes, box_is_crowd, mask
    classes: dict[str, tuple[str, ...]]  # for labels, boxes and mask
    is_multi_label: bool
    batches: Callable[[Report], Iterator[Batch]]
    read_mask: MaskReader | None = None
    is_upright: bool = False  # boxes and masks refer to upright pixels, whatever the flags say
