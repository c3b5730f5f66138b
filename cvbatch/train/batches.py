"""Pad batches so that all training workers run the same number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from cvbatch.core.errors import TrainingError


class Batch(NamedTuple):
    """Images with their targets; the first `num_real` rows are images, the others padding."""

    pixels: np.ndarray  # (B, H, W, C) uint8; float32 if they are features
    targets: dict[str, np.ndarray]  # each (B, ...)
    num_real: int


# (epoch, first_batch), both counted from 0 → this worker's micro-batches of the epoch from
# `first_batch` on. Equal arguments give equal batches, so a resumed run sees the same images.
BatchSource = Callable[[int, int], Iterator[Batch]]


def pad_batch(batch: Batch, size: int) -> Batch:
    """Return the batch with `size` rows: its real rows are repeated as padding.

    Rows are repeated, not filled with zeros, because batch normalisation must see images. A batch
    without real rows repeats its padding.

    Raises:
        TrainingError: the batch has no rows, or more than `size`.
    """
    rows = len(batch.pixels)
    if rows == batch.num_real == size:
        return batch
    if rows == 0 or rows > size:
        raise TrainingError(
            f"a batch of {rows} images cannot be padded to {size}; it must have 1 to {size} images"
        )
    indices = np.resize(np.arange(batch.num_real or rows), size)
    targets = {name: values[indices] for name, values in batch.targets.items()}
    return Batch(batch.pixels[indices], targets, batch.num_real)


class PaddedBatches:
    """Endless micro-batches of equal size: after the epoch's images, padding only.

    Args:
        source: this worker's batches of an epoch.
        size: rows of a micro-batch.
        worker: number of this worker, for messages.

    Attributes:
        first: the first micro-batches of the epoch, as many as `start_epoch` requests.
    """

    def __init__(self, source: BatchSource, size: int, worker: int = 0) -> None:
        self._source, self._size, self._worker = source, size, worker
        self._batches: Iterator[Batch] = iter(())
        self._padding: Batch | None = None
        self.first: list[Batch] = []
        self._num_first = 0

    def start_epoch(self, epoch: int, first_batch: int, num_images: int = 0) -> None:
        """Continue with micro-batch `first_batch` of an epoch, both counted from 0.

        Args:
            num_images: keep so many images of the epoch in `first`, in whole micro-batches.
        """
        self._batches = self._source(epoch, first_batch)
        self.first, self._num_first = [], -(-num_images // self._size)
        if first_batch:
            # A run may resume after this worker's last image; padding still needs one.
            num_missed = max(1, min(first_batch, self._num_first))
            missed = [self._pad(b) for b in islice(self._source(epoch, 0), num_missed)]
            self.first = missed[: self._num_first]

    def next_batch(self) -> Batch:
        """Return the next micro-batch; only padding once the images are used up.

        Raises:
            TrainingError: this worker has no image at all.
        """
        if (batch := next(self._batches, None)) is not None:
            padded = self._pad(batch)
            if len(self.first) < self._num_first:
                self.first.append(padded)
            return padded
        if self._padding is None:
            raise TrainingError(
                f"worker {self._worker} has no image to train on; add images or use fewer workers"
            )
        return self._padding

    def _pad(self, batch: Batch) -> Batch:
        """Return the padded batch, and store a copy without real rows as padding."""
        padded = pad_batch(batch, self._size)
        self._padding = padded._replace(num_real=0)
        return padded
