"""Input pipeline of a training worker: its shard of the images, decoded ahead of the step.

Ray Data is not used: it assigns blocks to workers as they become free, so the images of a step, and
thus the weights, would depend on timing and on the number of workers, and a run could not resume
inside an epoch. Here all workers share one order per epoch (`cvbatch.datasets.examples.shuffled`).
Each global micro-batch of it is cut into one part per worker, so two workers with batches of 8
process the same images in every step as one worker with batches of 16. The cost: every worker reads
the encoded bytes of all images; each image is decoded by one worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np

from cvbatch.core.errors import TrainingError
from cvbatch.core.types import Failure, InputKey, TrainingExample
from cvbatch.datasets.examples import LabelledRow, decode_example, in_order, read_rows, shuffled
from cvbatch.datasets.reader import LabelSpec, Split
from cvbatch.images.decode import Limits
from cvbatch.storage.store import Storage
from cvbatch.train.augmentation import Augmentation, resized_examples, size_of_step
from cvbatch.train.batches import Batch

T = TypeVar("T")
Augment = Callable[[TrainingExample, int], TrainingExample]  # with its position in the epoch
_PREFETCH = 2  # batches
_MAX_FAILURE_EXAMPLES = 5
_PARALLEL_READS = 8  # row groups that are read at the same time


class Shard(NamedTuple):
    """Which part of every step belongs to this worker."""

    worker: int  # its number, from 0
    num_workers: int
    batch_size: int  # images of a micro-batch on each worker


@dataclass(frozen=True)
class DecodeSpec:
    """How rows are read and decoded into training examples."""

    storage: Storage
    label_spec: LabelSpec
    key: InputKey
    limits: Limits
    channels: int = 3  # 1: greyscale
    threads: int = 1


class ExampleReader:
    """Read and decode a worker's images.

    Attributes:
        failures: image_id → failure, of all images so far that cannot be used.
    """

    def __init__(self, split: Split, spec: DecodeSpec, shard: Shard) -> None:
        self.failures: dict[str, Failure] = {}
        self.split, self.shard = split, shard
        self._spec = spec

    def batches(
        self, order: Iterable[np.ndarray], first_batch: int, augment: Augment | None
    ) -> Iterator[list[TrainingExample]]:
        """Yield this worker's micro-batches.

        Images that cannot be used are left out, so a batch may have fewer images, or none. Some
        workers may get one batch less than others.

        Args:
            order: pools (P, 2) of row group and row, all images of the split.
            first_batch: number of the micro-batch to start with.
            augment: applied to every example; None: no augmentation.
        """
        with ThreadPoolExecutor(self._spec.threads) as pool:
            pending: list[tuple[int, LabelledRow]] = []
            number = first_batch
            for position, row in self._rows(order, first_batch):
                if self._batch_number(position) != number and pending:
                    yield self._examples(pool, pending, augment)
                    pending = []
                number = self._batch_number(position)
                pending.append((position, row))
            if pending:
                yield self._examples(pool, pending, augment)

    def _batch_number(self, position: int) -> int:
        return position // (self.shard.batch_size * self.shard.num_workers)

    def _rows(
        self, order: Iterable[np.ndarray], first_batch: int
    ) -> Iterator[tuple[int, LabelledRow]]:
        """Yield this worker's rows with their positions in the order; reads a pool at a time."""
        size, workers = self.shard.batch_size, self.shard.num_workers
        start = 0
        for pool in order:
            positions = np.arange(start, start + len(pool))
            start += len(pool)
            is_mine = (positions // size % workers == self.shard.worker) & (
                positions // (size * workers) >= first_batch
            )
            rows = self._read(pool[is_mine])
            for i, position in enumerate(positions[is_mine].tolist()):
                yield position, rows.pop(i)

    def _read(self, pool: np.ndarray) -> dict[int, LabelledRow]:  # (P, 2) → by index in the pool
        """Return the rows of a pool; its row groups are read in parallel."""

        def rows_of(group: int) -> list[tuple[int, LabelledRow]]:
            indices = np.flatnonzero(pool[:, 0] == group)
            indices = indices[np.argsort(pool[indices, 1], kind="stable")]
            column = self._spec.label_spec.column
            row_group, rows = self.split.groups[group], pool[indices, 1].tolist()
            labelled = read_rows(self._spec.storage, row_group, rows, column)
            return list(zip(indices.tolist(), labelled, strict=True))

        with ThreadPoolExecutor(_PARALLEL_READS) as threads:
            groups = np.unique(pool[:, 0]).tolist()
            return dict(chain.from_iterable(threads.map(rows_of, groups)))

    def _examples(
        self,
        pool: ThreadPoolExecutor,
        rows: Sequence[tuple[int, LabelledRow]],
        augment: Augment | None,
    ) -> list[TrainingExample]:
        def to_example(item: tuple[int, LabelledRow]) -> TrainingExample | Failure:
            position, row = item
            example = self._decode(row)
            if isinstance(example, Failure):
                return example
            augmented = example if augment is None else augment(example, position)
            return _to_grey(augmented) if self._spec.channels == 1 else augmented

        examples = []
        for (_, row), result in zip(rows, pool.map(to_example, rows), strict=True):
            if isinstance(result, Failure):
                self.failures[row.image_id] = result
            else:
                examples.append(result)
        return examples

    def _decode(self, row: LabelledRow) -> TrainingExample | Failure:
        label_spec = self._spec.label_spec
        example = decode_example(row, self._spec.key, self._spec.limits)
        if isinstance(example, Failure):
            return example
        if label_spec.is_single and label_spec.column == "boxes" and len(example.boxes_xyxy) != 1:
            return Failure("decode", "box", f"{len(example.boxes_xyxy)} visible boxes, must be one")
        return example


class SizeSchedule(NamedTuple):
    """Multi-scale training: the input size of every step, the same on all workers."""

    sizes: tuple[tuple[int, int], ...]  # (height, width)
    seed: int
    accumulate: int  # micro-batches of a step
    steps_per_epoch: int

    def size_of(self, epoch: int, batch: int) -> tuple[int, int]:
        """Return the (height, width) of a micro-batch of an epoch, both counted from 0."""
        step = epoch * self.steps_per_epoch + batch // self.accumulate
        return size_of_step(self.sizes, step, seed=self.seed)


class TrainingBatches:
    """A worker's micro-batches of every epoch: a `cvbatch.train.batches.BatchSource`.

    Args:
        reader: this worker's images.
        targets: examples → target arrays, each (B, ...).
        augmentation: applied to every example; None: no augmentation.
        seed: of the order.
        pool_images: number of images that are shuffled together.
        sizes: the input size of every step, for multi-scale training; None: the reader's size.
    """

    def __init__(
        self,
        reader: ExampleReader,
        targets: Callable[[Sequence[TrainingExample]], dict[str, np.ndarray]],
        augmentation: Augmentation | None,
        seed: int,
        pool_images: int,
        sizes: SizeSchedule | None = None,
    ) -> None:
        self._reader, self._targets, self._augmentation = reader, targets, augmentation
        self._seed, self._pool_images, self._sizes = seed, pool_images, sizes
        self._padding: TrainingExample | None = None  # for batches without a usable image

    def __call__(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """Yield this worker's micro-batches of an epoch, from number `first_batch` on."""
        order = shuffled(self._reader.split, self._seed, epoch, self._pool_images)
        augmentation = self._augmentation

        def augment(example: TrainingExample, position: int) -> TrainingExample:
            # The position in the epoch, not in the shard: independent of the number of workers.
            return (
                example
                if augmentation is None
                else augmentation.apply([example], epoch, position)[0]
            )

        examples = self._reader.batches(order, first_batch, augment)
        return prefetch(self._to_batches(examples, epoch, first_batch))

    def _to_batches(
        self, batches: Iterable[list[TrainingExample]], epoch: int, first_batch: int
    ) -> Iterator[Batch]:
        number = first_batch
        for examples in batches:
            if examples:
                self._padding = examples[0]
            elif self._padding is None:
                raise TrainingError(
                    f"none of the first {self._reader.shard.batch_size} images can be used, for "
                    f"example {_first_failure(self._reader.failures)}; fix the data"
                )
            yield self._to_batch(examples, epoch, number)
            number += 1
        if self._sizes is not None:
            # Padding must have its step's size too: workers that compile other shapes than the
            # rest would wait forever.
            for i in range(number, self._sizes.steps_per_epoch * self._sizes.accumulate):
                yield self._to_batch([], epoch, i)

    def _to_batch(self, examples: list[TrainingExample], epoch: int, number: int) -> Batch:
        """Return the examples as a batch; without any, one example as padding."""
        rows = examples or [self._padding_example()]
        if self._sizes is not None:
            rows = resized_examples(rows, self._sizes.size_of(epoch, number))
        pixels = np.stack([example.pixels for example in rows])
        return Batch(pixels, self._targets(rows), len(examples))

    def _padding_example(self) -> TrainingExample:
        """Return one of this worker's images; if it had none, `_to_batches` raised before."""
        if self._padding is None:  # the run resumed after this worker's last image
            order = shuffled(self._reader.split, self._seed, 0, self._pool_images)
            self._padding = next(filter(None, self._reader.batches(order, 0, None)))[0]
        return self._padding


def validation_batches(
    reader: ExampleReader,
) -> Iterator[tuple[np.ndarray, Sequence[TrainingExample]]]:  # pixels (B, H, W, C)
    """Yield this worker's shard of a split in file order, as pixels and examples."""
    for examples in prefetch(reader.batches(in_order(reader.split), 0, None)):
        if examples:
            yield np.stack([example.pixels for example in examples]), examples


def prefetch(values: Iterator[T]) -> Iterator[T]:
    """Yield the values; the next ones are computed in another thread meanwhile."""
    end = object()
    pool = ThreadPoolExecutor(1)
    try:
        pending = [pool.submit(next, values, end) for _ in range(_PREFETCH)]
        while (value := pending.pop(0).result()) is not end:
            pending.append(pool.submit(next, values, end))
            yield value  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)


def _to_grey(example: TrainingExample) -> TrainingExample:
    """Return the example in greyscale, with the luma weights of ITU-R BT.601."""
    return replace(example, pixels=cv2.cvtColor(example.pixels, cv2.COLOR_RGB2GRAY)[..., None])


def _first_failure(failures: dict[str, Failure]) -> str:
    return next((f"{name} ({failure.message})" for name, failure in failures.items()), "one")


def summarize_failures(failures: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Return the number of images that cannot be used, by kind, and examples with reasons.

    Args:
        failures: image id → kind and message.
    """
    first = sorted(failures.items())[:_MAX_FAILURE_EXAMPLES]
    return {
        "count": len(failures),
        "kinds": dict(sorted(Counter(kind for kind, _ in failures.values()).items())),
        "such_as": {name: f"{kind}: {message}" for name, (kind, message) in first},
    }
