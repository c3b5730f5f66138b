"""Every worker takes as many steps as the others, however its share of the images turned out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from cvbatch.core.errors import TrainingError


class Batch(NamedTuple):
    """Images and what the network should say of them; the first rows are real, others padding."""

    pixels: np.ndarray  # (B, H, W, C) uint8, or floats where they are features
    targets: dict[str, np.ndarray]  # each (B, ...)
    num_real: int


# (epoch, first) → this worker's micro-batches of the epoch, both counted from 0, without the first
# ones: the same for the same numbers, so that a run that was resumed sees what it would have seen.
BatchSource = Callable[[int, int], Iterator[Batch]]


def pad_batch(batch: Batch, size: int) -> Batch:
    """Return the batch with `size` rows, its real ones repeated as padding.

    Repeats, not zeros: what normalises by the batch's statistics must see images. A batch
    without a real row repeats whatever it has.

    Raises:
        TrainingError: it has no rows to repeat, or more than `size`.
    """
    rows = len(batch.pixels)
    if rows == batch.num_real == size:
        return batch
    if rows == 0 or rows > size:
        raise TrainingError(
            f"a batch of {rows} images cannot be padded to {size}; give from 1 to {size}"
        )
    at = np.resize(np.arange(batch.num_real or rows), size)
    targets = {name: values[at] for name, values in batch.targets.items()}
    return Batch(batch.pixels[at], targets, batch.num_real)


class PaddedBatches:
    """Gives whole micro-batches for as long as it is asked: padding alone where images have ended.

    size: rows of a micro-batch. worker: the number of this one, for messages.
    """

    def __init__(self, feed: BatchSource, size: int, worker: int = 0) -> None:
        self._feed, self._size, self._worker = feed, size, worker
        self._batches: Iterator[Batch] = iter(())
        self._padding: Batch | None = None

    def begin(self, epoch: int, first: int) -> None:
        """Go to the micro-batch `first` of an epoch."""
        self._batches = self._feed(epoch, first)
        if first and self._padding is None:
            # A run resumed behind this worker's last image must still have one to repeat.
            self._keep(next(self._feed(epoch, 0), None))

    def take(self) -> Batch:
        """Return the next micro-batch; its rows are padding alone where there is none left.

        Raises:
            TrainingError: this worker has had no image at all.
        """
        batch = self._keep(next(self._batches, None))
        if batch is not None:
            return batch
        if self._padding is None:
            raise TrainingError(
                f"worker {self._worker} has no image to train on; give more images, or take fewer "
                "workers"
            )
        return self._padding

    def _keep(self, batch: Batch | None) -> Batch | None:
        if batch is None:
            return None
        whole = pad_batch(batch, self._size)
        self._padding = whole._replace(num_real=0)
        return whole
