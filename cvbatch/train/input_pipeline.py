"""A worker's share of the labelled images, decoded ahead of the step that wants them.

Not Ray Data, which deals blocks to workers as they come free: which images a step sees, and so the
weights, would then differ from run to run and with the number of workers, and a run that was
stopped could not go on in the middle of an epoch. Here the order of an epoch is one for all
workers (`cvbatch.datasets.examples.shuffled`). Of each stretch of it that makes one micro-batch for
every worker, each takes its own part, so that two workers with batches of 8 see in every step what
one with 16 does. The price: every worker reads the encoded bytes of all images; each is decoded
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple, TypeVar

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
Vary = Callable[[TrainingExample, int], TrainingExample]  # with the image's place in the order
_AHEAD = 2  # batches that are ready before they are asked for
_READING = 8  # row groups that are asked of the store at once


class Share(NamedTuple):
    """Which part of every step is this worker's."""

    worker: int
    num_workers: int
    batch_size: int  # of each worker


@dataclass(frozen=True)
class Laying:
    """How rows become examples."""

    storage: Storage
    wanted: LabelSpec
    key: InputKey
    limits: Limits
    channels: int = 3
    threads: int = 1


class Reader:
    """Reads and decodes a worker's images; notes those that cannot be used.

    failures: image_id → why, of all images this worker met so far.
    """

    def __init__(self, split: Split, laying: Laying, share: Share) -> None:
        self.failures: dict[str, Failure] = {}
        self.split, self.share = split, share
        self._laying = laying

    def batches(
        self, order: Iterable[np.ndarray], first: int, augmentation: Vary | None
    ) -> Iterator[list[TrainingExample]]:
        """Yield this worker's micro-batches of an order from the number `first` on.

        Images that cannot be used are left out, so that a batch may have fewer, or none. A
        split's last batch may not exist for some workers.
        """
        with ThreadPoolExecutor(self._laying.threads) as pool:
            growing: list[tuple[int, LabelledRow]] = []
            number = first
            for place, row in self._rows(order, first):
                if self._number(place) != number and growing:
                    yield self._examples(pool, growing, augmentation)
                    growing = []
                number = self._number(place)
                growing.append((place, row))
            if growing:
                yield self._examples(pool, growing, augmentation)

    def _number(self, place: int) -> int:
        return place // (self.share.batch_size * self.share.num_workers)

    def _rows(self, order: Iterable[np.ndarray], first: int) -> Iterator[tuple[int, LabelledRow]]:
        """Yield this worker's rows with their places in the order, each (P, 2) pool read whole."""
        batch, workers = self.share.batch_size, self.share.num_workers
        start = 0
        for pool in order:
            places = np.arange(start, start + len(pool))
            start += len(pool)
            is_own = (places // batch % workers == self.share.worker) & (
                places // (batch * workers) >= first
            )
            own, places = pool[is_own], places[is_own]
            held = self._read(own)
            for i, place in enumerate(places.tolist()):
                yield place, held.pop(i)

    def _read(self, own: np.ndarray) -> dict[int, LabelledRow]:  # (P, 2) → by position
        """Return the rows at the places of a pool, its groups read side by side."""

        def rows_of(group: int) -> list[tuple[int, LabelledRow]]:
            at = np.flatnonzero(own[:, 0] == group)
            at = at[np.argsort(own[at, 1], kind="stable")]
            column = self._laying.wanted.column
            found = read_rows(
                self._laying.storage, self.split.groups[group], own[at, 1].tolist(), column
            )
            return list(zip(at.tolist(), found, strict=True))

        with ThreadPoolExecutor(_READING) as pool:
            groups = np.unique(own[:, 0]).tolist()
            return dict(chain.from_iterable(pool.map(rows_of, groups)))

    def _examples(
        self,
        pool: ThreadPoolExecutor,
        rows: Sequence[tuple[int, LabelledRow]],
        augmentation: Vary | None,
    ) -> list[TrainingExample]:
        def laid(placed: tuple[int, LabelledRow]) -> TrainingExample | Failure:
            place, row = placed
            example = self._laid(row)
            if isinstance(example, Failure):
                return example
            varied = example if augmentation is None else augmentation(example, place)
            return _grey(varied) if self._laying.channels == 1 else varied

        examples = []
        for (_, row), result in zip(rows, pool.map(laid, rows), strict=True):
            if isinstance(result, Failure):
                self.failures[row.image_id] = result
            else:
                examples.append(result)
        return examples

    def _laid(self, row: LabelledRow) -> TrainingExample | Failure:
        wanted = self._laying.wanted
        example = decode_example(row, self._laying.key, self._laying.limits)
        if isinstance(example, Failure):
            return example
        if wanted.is_single and wanted.column == "boxes" and len(example.boxes_xyxy) != 1:
            return Failure("decode", "box", f"{len(example.boxes_xyxy)} boxes in view, not one")
        return example


class Scales(NamedTuple):
    """The sizes that the input takes in turn; a step's is the same on every worker."""

    sizes: tuple[tuple[int, int], ...]  # (height, width)
    seed: int
    accumulate: int  # micro-batches that make a step
    steps_per_epoch: int

    def of(self, epoch: int, number: int) -> tuple[int, int]:
        """Return the size of a micro-batch of an epoch, both counted from 0."""
        step = epoch * self.steps_per_epoch + number // self.accumulate
        return size_of_step(self.sizes, step, seed=self.seed)


class TrainingBatches:
    """A worker's micro-batches of every epoch: a `cvbatch.train.batches.BatchSource`.

    scales: the sizes that the examples are stretched to; None leaves them as they are.
    """

    def __init__(
        self,
        reader: Reader,
        targets: Callable[[Sequence[TrainingExample]], dict[str, np.ndarray]],
        augmentation: Augmentation | None,
        seed: int,
        pool_images: int,
        scales: Scales | None = None,
    ) -> None:
        self._reader, self._targets, self._augmentation = reader, targets, augmentation
        self._seed, self._pool_images, self._scales = seed, pool_images, scales
        self._spare: TrainingExample | None = (
            None  # stands in where all images of a batch are broken
        )

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield this worker's micro-batches of an epoch from the number `first` on."""
        order = shuffled(self._reader.split, self._seed, epoch, self._pool_images)

        augmentation = self._augmentation
        if augmentation is None:
            return ahead(self._made(self._reader.batches(order, first, None), epoch, first))

        def varied(example: TrainingExample, place: int) -> TrainingExample:
            # The place in the epoch's order, not in the worker's: the split changes no image.
            return augmentation.apply([example], epoch, place)[0]

        return ahead(self._made(self._reader.batches(order, first, varied), epoch, first))

    def _made(
        self, batches: Iterable[list[TrainingExample]], epoch: int, first: int
    ) -> Iterator[Batch]:
        number = first
        for examples in batches:
            if examples:
                self._spare = examples[0]
            elif self._spare is None:
                raise TrainingError(
                    f"none of the first {self._reader.share.batch_size} images can be used, such "
                    f"as {_told(self._reader.failures)}; mend the data"
                )
            yield self._batch(examples, epoch, number)
            number += 1
        if self._scales is not None:
            # Padding too must have the size of its step: workers compile alike, or wait for ever.
            for rest in range(number, self._scales.steps_per_epoch * self._scales.accumulate):
                yield self._batch([], epoch, rest)

    def _batch(self, examples: list[TrainingExample], epoch: int, number: int) -> Batch:
        """Return the examples as a batch; the spare one as padding where there are none."""
        shown = examples or [self._spare_example()]
        if self._scales is not None:
            shown = resized_examples(shown, self._scales.of(epoch, number))
        pixels = np.stack([example.pixels for example in shown])
        return Batch(pixels, self._targets(shown), len(examples))

    def _spare_example(self) -> TrainingExample:
        """Return an image of this worker's; it has one, or `_made` would have raised."""
        if self._spare is None:  # resumed behind its last image
            order = shuffled(self._reader.split, self._seed, 0, self._pool_images)
            self._spare = next(filter(None, self._reader.batches(order, 0, None)))[0]
        return self._spare


def judged(reader: Reader) -> Iterator[tuple[np.ndarray, Sequence[TrainingExample]]]:
    """Yield this worker's share of a split in its order: pixels (B, H, W, C) and examples."""
    for examples in ahead(reader.batches(in_order(reader.split), 0, None)):
        if examples:
            yield np.stack([example.pixels for example in examples]), examples


def ahead(values: Iterator[T]) -> Iterator[T]:
    """Yield the values, the next ones made meanwhile in another thread."""
    nothing = object()
    pool = ThreadPoolExecutor(1)
    try:
        waiting = [pool.submit(next, values, nothing) for _ in range(_AHEAD)]
        while (value := waiting.pop(0).result()) is not nothing:
            waiting.append(pool.submit(next, values, nothing))
            yield value  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)


def _grey(example: TrainingExample) -> TrainingExample:
    """Return the example in grey, by the luma weights of ITU-R BT.601 as the job takes them."""
    return replace(example, pixels=cv2.cvtColor(example.pixels, cv2.COLOR_RGB2GRAY)[..., None])


def _told(failures: dict[str, Failure]) -> str:
    return next((f"{name} ({failure.message})" for name, failure in failures.items()), "one")
