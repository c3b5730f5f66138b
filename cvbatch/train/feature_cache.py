"""A frozen base says the same of an image every time, so it is asked once and its answers kept.

They lie on disk, row after row, and are read where a batch needs them: a data set's features are
often larger than memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from cvbatch.core.errors import ModelError, TrainingError
from cvbatch.models.graph_surgery import calls_of, flatten, only_input, record_outputs
from cvbatch.train.batches import Batch
from cvbatch.train.phases import last_feature_maps

_PIXELS = "pixels"  # the file of what the head reads in place of pixels; targets go by number


class SplitNetwork(NamedTuple):
    """A network in two that share its layers: head(base(x)) is the network's answer."""

    base: keras.Model  # (B, H, W, 3) → (B, h, w, c)
    head: keras.Model  # (B, h, w, c) → what the network answers


def split_network(network: keras.Model) -> SplitNetwork:
    """Return a network cut at its last feature map.

    Raises:
        ModelError: the head reads more than that one map.
    """
    graph = flatten(network)
    maps = last_feature_maps(graph)
    now: dict[int, Any] = {}
    if len(maps) == 1:
        inputs = keras.Input(maps[0].shape[1:], name="features", dtype=maps[0].dtype)
        now[id(maps[0])] = inputs
        for call in calls_of(graph):
            if all(id(tensor) in now for tensor in call.received):
                args, kwargs = call.substituted_arguments(now)
                record_outputs(now, call, call.operation(*args, **kwargs))
    if not all(id(tensor) in now for tensor in graph.outputs):
        raise ModelError(
            f"the head of {network.name!r} reads more than its last feature map, so it cannot "
            "learn on that alone; take the recipe frozen, which runs the whole network"
        )
    outputs = keras.tree.map_structure(lambda tensor: now[id(tensor)], graph.output)
    head = keras.Model(inputs, outputs, name=network.name)
    return SplitNetwork(keras.Model(only_input(graph), maps[0], name=network.name), head)


class FeatureCache:
    """Features and targets of a data set, in files of one row an image.

    names: of the targets. Read it from as many epochs as needed; the files are the caller's to
    delete.
    """

    def __init__(self, folder: Path, arrays: dict[str, np.memmap]) -> None:
        self.folder, self._arrays = folder, arrays

    def __len__(self) -> int:
        return len(self._arrays[_PIXELS])

    def batches(self, size: int, seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the images in an order of their own for each seed and epoch; the last is ragged.

        first: number of the batch to begin with. A ragged batch is for `supply.padded`.
        """
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        for start in range(first * size, len(self), size):
            yield self._rows(np.sort(order[start : start + size]))

    def in_order(self, size: int) -> Iterator[Batch]:
        """Yield the images in the order in which they were given."""
        for start in range(0, len(self), size):
            yield self._rows(np.arange(start, min(start + size, len(self))))

    def _rows(self, at: np.ndarray) -> Batch:  # (B,)
        held = {name: np.array(values[at]) for name, values in self._arrays.items()}
        return Batch(held.pop(_PIXELS), held, len(at))


def cache_features(base: keras.Model, batches: Iterable[Batch], folder: Path) -> FeatureCache:
    """Return the base's answers to all batches, and their targets, written into a folder.

    Padding is left out. Only one batch is in memory at a time.

    Raises:
        TrainingError: there is no image, or the folder cannot be written.
    """
    answer = tf.function(lambda pixels: base(pixels, training=False), reduce_retracing=True)
    writer = _Writer(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for batch in batches:
            said = answer(tf.cast(batch.pixels, tf.float32)).numpy()
            writer.add({_PIXELS: said, **batch.targets}, batch.num_real)
        arrays = writer.finish()
    except OSError as error:
        raise TrainingError(
            f"features cannot be written into {folder} ({error.strerror}); free space there or "
            "name another folder, or take the recipe frozen, which keeps none"
        ) from error
    finally:
        writer.close()
    if not arrays:
        raise TrainingError("there is no image to compute features of; check the training split")
    return FeatureCache(folder, arrays)


class _Writer:
    """Appends rows to one file for each name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._kinds: dict[str, tuple[Any, tuple[int, ...]]] = {}  # type and shape of a row

    def add(self, values: dict[str, np.ndarray], count: int) -> None:
        for name, rows in values.items():
            if name not in self._files:
                self._files[name] = self._path(name).open("wb")
                self._kinds[name] = rows.dtype, rows.shape[1:]
            self._files[name].write(rows[:count].tobytes())

    def finish(self) -> dict[str, np.memmap]:
        """Return the files as arrays; none if no row was added."""
        self.close()
        arrays = {}
        for name, (dtype, shape) in self._kinds.items():
            row_bytes = dtype.itemsize * math.prod(shape)
            rows = self._path(name).stat().st_size // row_bytes
            if rows:
                arrays[name] = np.memmap(self._path(name), dtype, "r", shape=(rows, *shape))
        return arrays

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _path(self, name: str) -> Path:
        """Return a name's file: names may hold what no file's may."""
        number = list(self._files).index(name) if name in self._files else len(self._files)
        return self._folder / f"{number:02d}.rows"
