"""The nouns: what passes from step to step, each array with its shape.

Ragged things are flat arrays with an `image_index`: row m belongs to image `image_index[m]`
of its batch, and rows of one image stand together, in the order of the images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from cvbatch.core.tasks import Task

ResizeMode = Literal["stretch", "letterbox", "crop"]
Examples = dict[str, list[list[str]]]  # "stage/kind" → a few [image_id, message]
MAX_MASK_CLASSES = 255
VOID_CLASS = 255  # in a mask: the network saw nothing there (outside a centre crop)


@dataclass(frozen=True)
class RetryPolicy:
    """How long one request to a store may take, and how much time its retries may take.

    A test passes another `sleep`, so that the waits between retries take no time.
    """

    request_timeout_s: float = 60.0  # without a byte from the store
    retry_budget_s: float = 60.0  # failed attempts and waits of one request, in all
    sleep: Callable[[float], None] = time.sleep  # seconds


@dataclass(frozen=True)
class Failure:
    """Why one image has no predictions.

    stage: "read" | "decode" | "predict". kind: a short stable word for GROUP BY, such as
    "missing", "not_an_image", "truncated", "too_large", "unsupported"; of stage "decode" also
    "crashed" and "timeout", for an image that takes down or holds up the process that decodes it.
    """

    stage: str
    kind: str
    message: str


class Tiling(NamedTuple):
    """How an image larger than a tile is cut, in pixels of the upright original."""

    tile_height: int
    tile_width: int
    overlap_height: int  # of neighbouring tiles, at least; less than the tile's side
    overlap_width: int


class InputKey(NamedTuple):
    """What a network is fed: models with equal keys share one resized image, or its tiles."""

    height: int
    width: int
    resize: ResizeMode
    tiling: Tiling | None = None  # None: whatever its size, an image is not cut


@dataclass(frozen=True)
class Item:
    """A run of images that lie together: one file, a slice of a Parquet row group, or a tar."""

    uri: str
    image_id: str  # of the image; of the container, for Parquet and tar
    size_bytes: int
    row_group: int = 0
    row_start: int = 0  # first row inside the row group
    num_rows: int = 1  # images in it; 0 where only reading tells (tar)
    first_row: int = 0  # number of that row in the whole Parquet file


@dataclass(frozen=True)
class ChunkRef:
    """A chunk by reference: its rows in the manifest. Small, whatever the chunk holds."""

    chunk_id: str
    manifest_uri: str
    row_group: int
    first_row: int  # inside the manifest's row group
    num_items: int
    num_images: int  # 0 where only reading tells (tar)
    size_bytes: int


@dataclass(frozen=True)
class Chunk:
    """The unit of work, of commit and of resume: a bounded, ordered list of images."""

    chunk_id: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class EncodedImage:
    """One image as it was stored, or why its bytes could not be had (data is then empty)."""

    image_id: str
    uri: str
    data: bytes
    failure: Failure | None = None


@dataclass(frozen=True)
class Decoded:
    """One image upright, RGB, resized for every network that wants it."""

    width: int  # of the upright original
    height: int
    pixels: dict[InputKey, np.ndarray]  # (H, W, 3) uint8; under a key with tiling (T, H, W, 3)


@dataclass(frozen=True)
class ImageBatch:
    """Consecutive images of a chunk; pixels hold only those that could be decoded.

    Under a key with tiling the tiles of one image follow those of the one before; how many there
    are and where they lie, `cvbatch.geometry.tiling.tile_placements` says from the image's size.
    """

    chunk_id: str
    image_id: list[str]  # N
    uri: list[str]  # N
    width: np.ndarray  # (N,) int32, 0 where not decoded
    height: np.ndarray  # (N,) int32
    failures: dict[int, Failure]  # position → why
    pixels: dict[InputKey, np.ndarray]  # (T, H, W, 3) uint8, of the K = N − failures others; T ≥ K

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def decoded(self) -> np.ndarray:  # (K,) int64: the positions that have pixels
        """Return the positions of the images that have pixels, ascending."""
        return np.array([i for i in range(len(self)) if i not in self.failures], np.int64)


@dataclass(frozen=True)
class Labels:
    """Classes given to images, best first within an image."""

    class_id: np.ndarray  # (M,) int32
    score: np.ndarray  # (M,) float32
    image_index: np.ndarray  # (M,) int64, ascending


@dataclass(frozen=True)
class Boxes:
    """Boxes found in images, half-open, best first within an image."""

    xyxy: np.ndarray  # (M, 4) float32, pixels of the upright original
    score: np.ndarray  # (M,) float32
    class_id: np.ndarray  # (M,) int32
    image_index: np.ndarray  # (M,) int64, ascending


@dataclass(frozen=True)
class Heatmaps:
    """Grad-CAM maps on the layer's own grid, each scaled so that its maximum is 1 (or all 0).

    Of an image that was cut, a map has cells of that grid's size over the whole original.
    """

    values: np.ndarray  # (V,) float32 in 0..1: map after map, each row by row
    height: np.ndarray  # (M,) int32
    width: np.ndarray  # (M,) int32
    class_id: np.ndarray  # (M,) int32
    score: np.ndarray  # (M,) float32
    image_index: np.ndarray  # (M,) int64, ascending


@dataclass(frozen=True)
class Masks:
    """A class for every pixel: at the network's own size, or the original's if that was cut."""

    class_id: np.ndarray  # (V,) uint8: mask after mask, each row by row
    height: np.ndarray  # (M,) int32
    width: np.ndarray  # (M,) int32
    image_index: np.ndarray  # (M,) int64, ascending


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model once it was built, and what a worker must know of it."""

    name: str
    task: Task
    classes: tuple[str, ...]
    input_height: int
    input_width: int
    resize: ResizeMode
    weights_sha256: str
    heatmap_layer: str = ""  # the path of the layer Grad-CAM looks at; "" where it is not asked for
    tile_height: int = 0  # as in `Tiling`; all 0 where images are not cut
    tile_width: int = 0
    overlap_height: int = 0
    overlap_width: int = 0

    @property
    def input_key(self) -> InputKey:
        """Return what this network is fed."""
        tiling = None
        if self.tile_height > 0:
            sides = (self.tile_height, self.tile_width, self.overlap_height, self.overlap_width)
            tiling = Tiling(*sides)
        return InputKey(self.input_height, self.input_width, self.resize, tiling)


@dataclass(frozen=True)
class ModelPredictions:
    """What one model said of the images of a batch; kinds its task does not give are None."""

    labels: Labels | None = None
    boxes: Boxes | None = None
    masks: Masks | None = None
    heatmaps: Heatmaps | None = None


@dataclass(frozen=True)
class Predictions:
    """What every model said of a batch of N images; `image_index` counts within the batch."""

    chunk_id: str
    image_id: list[str]  # N
    uri: list[str]  # N
    width: np.ndarray  # (N,) int32, 0 where not decoded
    height: np.ndarray  # (N,) int32
    failures: dict[int, Failure]  # position → why
    models: tuple[ModelPredictions, ...]  # in the order of the job

    def __len__(self) -> int:
        return len(self.image_id)


@dataclass(frozen=True)
class TrainingExample:
    """A labelled image laid into a network's input: what training sees of it."""

    pixels: np.ndarray  # (H, W, 3) uint8; (H, W, 1) for a network that takes grey
    class_ids: np.ndarray  # (K,) int32, the image's labels; empty where it has none
    boxes_xyxy: np.ndarray  # (M, 4) float32, pixels of the input
    box_class: np.ndarray  # (M,) int32
    mask: np.ndarray | None = None  # (H, W) uint8 class ids, VOID_CLASS where none is known
    image_id: str = ""  # scores of detections want all images to have different ones


def offsets_of(image_index: np.ndarray, num_images: int) -> np.ndarray:  # (M,) → (N + 1,)
    """Return offsets: the rows of image i are `offsets[i]:offsets[i + 1]`."""
    counts = np.bincount(image_index, minlength=num_images)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def unflatten(
    values: np.ndarray,  # (V,) picture after picture, each row by row
    height: np.ndarray,  # (M,)
    width: np.ndarray,  # (M,)
) -> Iterator[np.ndarray]:  # M of (h, w)
    """Yield views of pictures that differ in size and lie in one flat array."""
    start = 0
    for h, w in zip(height.tolist(), width.tolist(), strict=True):
        yield values[start : start + h * w].reshape(h, w)
        start += h * w


@dataclass(frozen=True)
class ChunkReport:
    """What became of one chunk."""

    chunk_id: str
    num_images: int
    failures: dict[str, int]  # "stage/kind" → images
    num_bytes: int  # of the file
    examples: Examples
    num_bytes_read: int = 0  # of encoded images
    seconds: dict[str, float] = field(default_factory=dict)  # by stage

    @property
    def num_failed(self) -> int:
        """Return how many of the images have no predictions."""
        return sum(self.failures.values())


def join_boxes(
    found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],  # K of (M, 4), (M,), (M,)
    image_index: np.ndarray,  # (K,)
) -> Boxes:
    """Return the boxes, scores and class ids found in K images as one."""
    counts = [len(score) for _, score, _ in found]
    empty = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    xyxy, score, class_id = (np.concatenate(part) for part in zip(empty, *found, strict=True))
    return Boxes(
        xyxy=xyxy.astype(np.float32),
        score=score.astype(np.float32),
        class_id=class_id.astype(np.int32),
        image_index=np.repeat(image_index, counts),
    )
