"""Data types that the steps of a job exchange, with the shape of every array.

Ragged data are flat arrays with an `image_index`: row m belongs to image `image_index[m]` of its
batch. The rows of one image are adjacent, and images are in batch order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from cvbatch.core.tasks import Task

ResizeMode = Literal["stretch", "letterbox", "crop"]
Interpolation = Literal["area", "bilinear", "bicubic", "lanczos", "nearest"]
Log = Callable[[str], None]  # receives one line of text about the progress of a job
Examples = dict[str, list[list[str]]]  # "stage/kind" → a few [image_id, message]
MAX_MASK_CLASSES = 255
VOID_CLASS = 255  # in a mask: no prediction for this pixel (outside a centre crop)


@dataclass(frozen=True)
class RetryPolicy:
    """Time limits of one storage request and of its retries.

    Tests pass another `sleep`, so that the waits between retries take no time.
    """

    request_timeout_s: float = 60.0  # maximum time without a received byte
    retry_budget_s: float = 60.0  # maximum total time of failed attempts and waits of one request
    sleep: Callable[[float], None] = time.sleep  # seconds


@dataclass(frozen=True)
class Failure:
    """Why one image has no predictions.

    Args:
        stage: "read", "decode" or "predict".
        kind: a short stable identifier for GROUP BY, such as "missing", "not_an_image",
            "truncated", "too_large", "unsupported"; in stage "decode" also "crashed" and "timeout",
            for an image that crashes or blocks the decoding process.
        message: details for people.
    """

    stage: str
    kind: str
    message: str


class Tiling(NamedTuple):
    """How images larger than one tile are cut, in pixels of the upright original."""

    tile_height: int
    tile_width: int
    overlap_height: int  # minimum overlap of neighbouring tiles; less than the tile's side
    overlap_width: int


class InputKey(NamedTuple):
    """Input of a network: models with equal keys share one resized image, or its tiles."""

    height: int
    width: int
    resize: ResizeMode
    tiling: Tiling | None = None  # None: images are not cut into tiles
    fraction: float | None = None  # central part that is used; see `make_placement`
    interpolation: Interpolation = "area"
    antialias: bool = True


@dataclass(frozen=True)
class Item:
    """Images that are stored together: one file, a slice of a Parquet row group, or a tar."""

    uri: str
    image_id: str  # id of the image; for Parquet and tar, of the container
    size_bytes: int
    row_group: int = 0
    row_start: int = 0  # first row inside the row group
    num_rows: int = 1  # number of images; 0 if unknown before reading (tar)
    first_row: int = 0  # index of the first row in the whole Parquet file


BitDepthName = Literal["high_byte", "percentile"]  # how deep samples become 8 bits
ColorMode = Literal["convert", "ignore"]  # what is done with a colour profile


class SourceOptions(NamedTuple):
    """Options of a source that choose its images; the defaults choose all."""

    members: tuple[str, ...] = ()  # suffixes of the images of tars and zips; () is all
    id_column: str | None = None  # of Parquet files: its values are the keys of the images' ids
    keep_columns: tuple[str, ...] = ()  # of Parquet files, for the result
    unreadable: Literal["skip", "fail"] = "skip"  # pictures of formats that are not read


@dataclass(frozen=True)
class ChunkRef:
    """Reference to a chunk: its rows in the manifest. Its size does not grow with the chunk."""

    chunk_id: str
    manifest_uri: str
    row_group: int
    first_row: int  # inside the manifest's row group
    num_items: int
    num_images: int  # 0 if unknown before reading (tar)
    size_bytes: int


@dataclass(frozen=True)
class Chunk:
    """The unit of work, of commit and of resume: a bounded, ordered list of images."""

    chunk_id: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class EncodedImage:
    """The stored bytes of one image; if they could not be read, `failure` and empty `data`."""

    image_id: str
    uri: str
    data: bytes
    failure: Failure | None = None


@dataclass(frozen=True)
class Decoded:
    """One upright RGB image, resized for every network input."""

    width: int  # of the upright original
    height: int
    pixels: dict[InputKey, np.ndarray]  # (H, W, 3) uint8; under a key with tiling (T, H, W, 3)


@dataclass(frozen=True)
class ImageBatch:
    """Consecutive images of a chunk; `pixels` contains only the decoded ones.

    Under a key with tiling, the tiles of image i are followed by those of image i + 1.
    `cvbatch.geometry.tiling.tile_placements` computes their number and position from the size of
    the image.
    """

    chunk_id: str
    image_id: list[str]  # N
    uri: list[str]  # N
    width: np.ndarray  # (N,) int32, 0 where not decoded
    height: np.ndarray  # (N,) int32
    failures: dict[int, Failure]  # position → failure
    pixels: dict[InputKey, np.ndarray]  # (T, H, W, 3) uint8 of the K decoded images; T ≥ K

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def decoded(self) -> np.ndarray:  # (K,) int64
        """Return the positions of the images that were decoded, ascending."""
        return np.array([i for i in range(len(self)) if i not in self.failures], np.int64)


@dataclass(frozen=True)
class Labels:
    """Class labels of images, highest score first within an image."""

    class_id: np.ndarray  # (M,) int32
    score: np.ndarray  # (M,) float32
    image_index: np.ndarray  # (M,) int64, ascending


@dataclass(frozen=True)
class Boxes:
    """Detected boxes, half-open, highest score first within an image."""

    xyxy: np.ndarray  # (M, 4) float32, pixels of the upright original
    score: np.ndarray  # (M,) float32
    class_id: np.ndarray  # (M,) int32
    image_index: np.ndarray  # (M,) int64, ascending


@dataclass(frozen=True)
class BoxMasks:
    """The mask of every box, in the order of `Boxes`, as COCO's compressed RLE."""

    counts: np.ndarray  # (V,) uint8: the strings of all masks, ASCII
    length: np.ndarray  # (M,) int32, of each string
    height: np.ndarray  # (M,) int32, of the upright original
    width: np.ndarray  # (M,) int32
    image_index: np.ndarray  # (M,) int64, ascending


@dataclass(frozen=True)
class Heatmaps:
    """Grad-CAM maps at the resolution of the layer, each scaled to a maximum of 1 (or all 0).

    The map of a tiled image covers the whole original, with cells of the same size.
    """

    values: np.ndarray  # (V,) float32 in [0, 1]: all maps, each in row-major order
    height: np.ndarray  # (M,) int32
    width: np.ndarray  # (M,) int32
    class_id: np.ndarray  # (M,) int32
    score: np.ndarray  # (M,) float32
    image_index: np.ndarray  # (M,) int64, ascending

    @property
    def num_empty(self) -> int:
        """Return the number of maps that are 0 everywhere."""
        maps = unflatten(self.values, self.height, self.width)
        return sum(not values.any() for values in maps)


@dataclass(frozen=True)
class Masks:
    """A class id per pixel as PNG, because masks of originals are large."""

    png: np.ndarray  # (V,) uint8: all files
    num_bytes: np.ndarray  # (M,) int64, of each file
    area: np.ndarray  # (M, C) int64, pixels of each class
    image_index: np.ndarray  # (M,) int64, ascending


@dataclass(frozen=True)
class Vectors:
    """One vector per image: an embedding, or the values of a regression."""

    values: np.ndarray  # (M, D) float32
    image_index: np.ndarray  # (M,) int64, ascending, each image once


@dataclass(frozen=True)
class ModelSpec:
    """Properties of a built model that workers need."""

    name: str
    task: Task
    classes: tuple[str, ...]  # of a regression: the names of its values
    input_height: int
    input_width: int
    resize: ResizeMode
    weights_sha256: str
    heatmap_layer: str = ""  # path of the layer for Grad-CAM; "" if no heatmaps are requested
    tile_height: int = 0  # as in `Tiling`; all 0 without tiling
    tile_width: int = 0
    overlap_height: int = 0
    overlap_width: int = 0
    dimension: int = 0  # numbers of an embedding or a regression; 0 for other tasks
    fraction: float | None = None  # as in `InputKey`
    interpolation: Interpolation = "area"
    antialias: bool = True

    @property
    def input_key(self) -> InputKey:
        """Return the input of this network."""
        tiling = None
        if self.tile_height > 0:
            sides = (self.tile_height, self.tile_width, self.overlap_height, self.overlap_width)
            tiling = Tiling(*sides)
        return InputKey(
            self.input_height,
            self.input_width,
            self.resize,
            tiling,
            self.fraction,
            self.interpolation,
            self.antialias,
        )


@dataclass(frozen=True)
class ModelPredictions:
    """Predictions of one model for a batch; None for kinds that its task does not produce."""

    labels: Labels | None = None
    boxes: Boxes | None = None
    masks: Masks | None = None
    heatmaps: Heatmaps | None = None
    embedding: Vectors | None = None
    values: Vectors | None = None
    box_masks: BoxMasks | None = None


@dataclass(frozen=True)
class Predictions:
    """Predictions of all models for a batch of N images; `image_index` refers to the batch."""

    chunk_id: str
    image_id: list[str]  # N
    uri: list[str]  # N
    width: np.ndarray  # (N,) int32, 0 where not decoded
    height: np.ndarray  # (N,) int32
    failures: dict[int, Failure]  # position → failure
    models: tuple[ModelPredictions, ...]  # in the order of the job

    def __len__(self) -> int:
        return len(self.image_id)


@dataclass(frozen=True)
class TrainingExample:
    """A labelled image resized to a network's input, with its labels in input coordinates."""

    pixels: np.ndarray  # (H, W, 3) uint8; (H, W, 1) for a network with greyscale input
    class_ids: np.ndarray  # (K,) int32, labels of the image; may be empty
    boxes_xyxy: np.ndarray  # (M, 4) float32, pixels of the input
    box_class: np.ndarray  # (M,) int32
    mask: np.ndarray | None = None  # (H, W) uint8 class ids, VOID_CLASS if unknown
    image_id: str = ""  # must be unique for detection metrics


def offsets_of(image_index: np.ndarray, num_images: int) -> np.ndarray:  # (M,) → (N + 1,)
    """Return int32 offsets: the rows of image i are `offsets[i]:offsets[i + 1]`."""
    counts = np.bincount(image_index, minlength=num_images)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def unflatten(
    values: np.ndarray,  # (V,) all arrays, each in row-major order
    height: np.ndarray,  # (M,)
    width: np.ndarray,  # (M,)
) -> Iterator[np.ndarray]:  # M of (h, w)
    """Yield 2-D views of arrays of different sizes that are stored in one flat array."""
    start = 0
    for h, w in zip(height.tolist(), width.tolist(), strict=True):
        yield values[start : start + h * w].reshape(h, w)
        start += h * w


@dataclass(frozen=True)
class ChunkReport:
    """Result of processing one chunk."""

    chunk_id: str
    num_images: int
    failures: dict[str, int]  # "stage/kind" → images
    num_bytes: int  # of the written file
    examples: Examples
    num_bytes_read: int = 0  # of encoded images
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    ignored: dict[str, int] = field(default_factory=dict)  # kind → members of tars and zips
    ignored_examples: dict[str, list[str]] = field(default_factory=dict)  # kind → a few names
    num_heatmaps: int = 0
    num_empty_heatmaps: int = 0  # 0 everywhere

    @property
    def num_failed(self) -> int:
        """Return the number of images without predictions."""
        return sum(self.failures.values())


def join_boxes(
    boxes: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],  # K of (M, 4), (M,), (M,)
    image_index: np.ndarray,  # (K,)
) -> Boxes:
    """Concatenate the boxes (xyxy, score, class_id) of K images."""
    counts = [len(score) for _, score, _ in boxes]
    empty = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    xyxy, score, class_id = (np.concatenate(part) for part in zip(empty, *boxes, strict=True))
    return Boxes(
        xyxy=xyxy.astype(np.float32),
        score=score.astype(np.float32),
        class_id=class_id.astype(np.int32),
        image_index=np.repeat(image_index, counts),
    )
