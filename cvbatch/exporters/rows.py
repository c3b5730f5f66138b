"""Reads a finished prediction for an export: what its files are of, then image after image.

All files are looked at before anything is written: the schema, the job, whether names collide.
Then rows come a few at a time, and where images are wanted their bytes beside them, in the same
order as the prediction read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvbatch.core.errors import ConfigError, CvbatchError, SourceError
from cvbatch.core.types import ChunkRef, EncodedImage, Failure
from cvbatch.images.decode import Limits
from cvbatch.planning import manifest
from cvbatch.results.parts import PartFooter, Parts, describe, mask_of, read_rows
from cvbatch.results.safe_names import digest_of, key_of, repeated, split_name
from cvbatch.storage import store

_ROWS_AT_ONCE = 64  # held with their masks
_COMMON = ("image_id", "uri", "width", "height", "status", "error")
_SIDES = ("x_min", "y_min", "x_max", "y_max")


@dataclass(frozen=True)
class Seen:
    """One image, and what the models said of it. Boxes are of `min_score` or more."""

    image_id: str
    uri: str
    height: int
    width: int
    xyxy: np.ndarray  # (M, 4) float64 half-open, pixels of the upright image
    class_id: np.ndarray  # (M,) int64
    score: np.ndarray  # (M,) float64
    labels: list[tuple[int, float]]  # (class, score), best first
    mask: np.ndarray | None  # (height, width) uint8
    data: bytes | None  # the encoded image, where it was asked for


@dataclass(frozen=True)
class Left:
    """An image that has no place in an export, and why."""

    image_id: str
    uri: str
    failure: Failure


@dataclass
class Survey:
    """What a look at all files found."""

    num_rows: int = 0
    taken_twice: frozenset[int] = frozenset()  # keys of names that several images would have


@dataclass(frozen=True)
class Result:
    """A prediction's sink: which chunks are there, and what they say of their job."""

    parts: Parts
    said: PartFooter  # by the first file
    classes: dict[str, tuple[str, ...]]  # of each column there is
    is_multi_label: bool

    @classmethod
    def open(cls, uri: str) -> Result:
        """Return a result as its manifest and its first file describe it.

        Raises:
            SourceError: there is none, it is not readable, or of another schema version.
        """
        parts = Parts.find(uri)
        if not parts.done:
            raise SourceError(
                f"{parts.uri} is no prediction's result: it has no _cvbatch/manifest with part "
                "files; name the sink of a finished `cvbatch predict`"
            )
        said = describe(parts.uri_of(parts.done[0]))
        is_multi_label = any(
            model["task"] == "classification" and bool(model["options"].get("multi_label"))
            for model in said.document["models"]
        )
        return cls(parts, said, said.classes, is_multi_label)

    @property
    def uri(self) -> str:
        """Return where the result is."""
        return self.parts.uri

    @property
    def reading(self) -> dict[str, str]:
        """Return how the source was read: format, image_column."""
        return self.parts.reading or {}

    @property
    def is_inside(self) -> bool:
        """Return whether the images lie in containers: Parquet files or tars."""
        return self.parts.reader.format.key != ""

    def survey(self, *, is_flat: bool, has_links: bool) -> Survey:
        """Return what all files hold; see `names` for `is_flat`.

        has_links: images will be linked to, and so must be files on this machine.

        Raises:
            SourceError: a file is of another job or schema, damaged, or an id is there twice.
            ConfigError: an image that cannot be linked to.
        """
        job = self.said.document["fingerprint"]
        found, stems, ids = Survey(), [], []
        for ref in self.parts.done:
            uri = self.parts.uri_of(ref)
            if describe(uri).document["fingerprint"] != job:
                raise SourceError(f"{uri} is of another job than the rest of {self.uri}")
            names = []
            for row in read_rows(uri, ("image_id", "uri"), 1 << 16):
                names.append(row["image_id"])
                if has_links and (self.is_inside or store.Location.of(row["uri"]).scheme != "file"):
                    raise ConfigError(
                        f"--images link: {row['image_id']!r} is no file on this machine; say "
                        "--images copy or none"
                    )
            split = [split_name(one, is_inside=self.is_inside, is_flat=is_flat) for one in names]
            stems.append(np.array([key_of(stem) for stem, _ in split], np.int64))
            ids.append(np.array([digest_of(one) for one in names], np.int64))
            found.num_rows += len(names)
        found.taken_twice = frozenset(repeated(stems))
        _check_once(ids, self.uri)
        return found

    def images(
        self, columns: tuple[str, ...], min_score: float, *, with_data: bool
    ) -> Iterator[Seen | Left]:
        """Yield every image of the chunks that are done; what failed, or cannot be read, is Left.

        columns: of "labels", "boxes" and "mask".
        """
        wanted = tuple(column for column in columns if column in self.classes)
        for ref in self.parts.done:
            rows = read_rows(self.parts.uri_of(ref), (*_COMMON, *wanted), _ROWS_AT_ONCE)
            if not with_data:
                yield from (self._seen(row, min_score, None) for row in rows)
                continue
            with closing(self._encoded(ref)) as encoded:
                for row in rows:
                    data = None if row["status"] == "failed" else _next(encoded, row)
                    yield self._seen(row, min_score, data)

    def _encoded(self, ref: ChunkRef) -> Any:
        return self.parts.reader.read(manifest.read_chunk(ref), Limits().max_bytes)

    def _seen(
        self, row: dict[str, Any], min_score: float, encoded: EncodedImage | Failure | None
    ) -> Seen | Left:
        if row["status"] == "failed":
            return Left(row["image_id"], row["uri"], Failure(**row["error"]))
        if isinstance(encoded, Failure):
            return Left(row["image_id"], row["uri"], encoded)
        boxes = [box for box in row.get("boxes") or [] if box["score"] >= min_score]
        corners = [[box[side] for side in _SIDES] for box in boxes]
        xyxy = np.array(corners, np.float64).reshape(-1, 4)
        if not np.isfinite(xyxy).all():
            raise CvbatchError(f"{self.uri}: a box of {row['image_id']!r} is no number")
        return Seen(
            row["image_id"],
            row["uri"],
            row["height"],
            row["width"],
            xyxy,
            np.array([box["class_id"] for box in boxes], np.int64),
            np.array([box["score"] for box in boxes], np.float64),
            [
                (one["class_id"], one["score"])
                for one in row.get("labels") or []
                if one["score"] >= min_score
            ],
            self._mask(row),
            encoded.data if encoded else None,
        )

    def _mask(self, row: dict[str, Any]) -> np.ndarray | None:  # (h, w) uint8
        """Return a mask at the size of its image, whatever size the job kept it in."""
        try:
            return mask_of(row, self.said.document["models"])
        except SourceError as error:  # the export has begun
            raise CvbatchError(f"{self.uri}: {error}") from None


def _next(encoded: Iterator[EncodedImage], row: dict[str, Any]) -> EncodedImage | Failure:
    """Return the image of a row: images come in the order of the rows, those that failed too."""
    for image in encoded:
        if image.image_id == row["image_id"]:
            return image.failure or image
    return Failure("read", "missing", "the source no longer holds it where it was")


def _check_once(ids: list[np.ndarray], uri: str) -> None:
    if next(repeated(ids), None) is not None:
        raise SourceError(
            f"{uri} holds an image_id twice, which no job writes: look for part files that were "
            "put there by hand, and take them out"
        )
