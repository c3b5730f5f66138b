"""Cache the outputs of a frozen base network on disk, so that it runs once per image.

The features of a data set are often larger than memory; a batch reads its rows from the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cvbatch.core.errors import ModelError, TrainingError
from cvbatch.models.frameworks import keras, tf
from cvbatch.models.graph_surgery import calls_of, flatten, only_input, record_outputs
from cvbatch.train.batches import Batch
from cvbatch.train.phases import last_feature_maps

_PIXELS = "pixels"  # the features take the place of a batch's pixels


class SplitNetwork(NamedTuple):
    """A network as two models that share its layers: head(base(x)) is network(x)."""

    base: keras.Model  # (B, H, W, channels) → (B, h, w, c)
    head: keras.Model  # (B, h, w, c) → the network's outputs


def split_network(network: keras.Model) -> SplitNetwork:
    """Split a network at its last feature map.

    Raises:
        ModelError: the head reads more than that one map.
    """
    graph = flatten(network)
    maps = last_feature_maps(graph)
    new_tensors: dict[int, Any] = {}  # by the id of the tensor that each replaces
    if len(maps) == 1:
        inputs = keras.Input(maps[0].shape[1:], name="features", dtype=maps[0].dtype)
        new_tensors[id(maps[0])] = inputs
        for call in calls_of(graph):
            if all(id(tensor) in new_tensors for tensor in call.received):
                args, kwargs = call.substituted_arguments(new_tensors)
                record_outputs(new_tensors, call, call.operation(*args, **kwargs))
    if not all(id(tensor) in new_tensors for tensor in graph.outputs):
        raise ModelError(
            f"the head of {network.name!r} reads more than its last feature map, so it cannot be "
            "trained on cached features; use recipe: frozen, which runs the whole network"
        )
    outputs = keras.tree.map_structure(lambda tensor: new_tensors[id(tensor)], graph.output)
    head = keras.Model(inputs, outputs, name=network.name)
    return SplitNetwork(keras.Model(only_input(graph), maps[0], name=network.name), head)


class FeatureCache:
    """Features and targets of a data set, in memory-mapped files with one row per image.

    It can be read any number of times. The caller deletes the folder.
    """

    def __init__(self, arrays: dict[str, np.memmap]) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays[_PIXELS])

    def batches(self, size: int, seed: int, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the images in an order that depends on seed and epoch only.

        Args:
            size: images per batch; the last batch may have fewer.
            seed: of the order.
            epoch: number of the epoch.
            first_batch: number of the batch to start with.
        """
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        for start in range(first_batch * size, len(self), size):
            yield self._rows(np.sort(order[start : start + size]))

    def _rows(self, indices: np.ndarray) -> Batch:  # (B,)
        rows = {name: np.array(values[indices]) for name, values in self._arrays.items()}
        return Batch(rows.pop(_PIXELS), rows, len(indices))


def cache_features(base: keras.Model, batches: Iterable[Batch], folder: Path) -> FeatureCache:
    """Write the base's outputs for all batches, with their targets, into a folder.

    Padding is left out. Only one batch is in memory at a time.

    Raises:
        TrainingError: there is no image, or the folder cannot be written.
    """
    predict = tf.function(lambda pixels: base(pixels, training=False), reduce_retracing=True)
    writer = _Writer(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for batch in batches:
            features = predict(tf.cast(batch.pixels, tf.float32)).numpy()
            writer.add({_PIXELS: features, **batch.targets}, batch.num_real)
        arrays = writer.finish()
    except OSError as error:
        raise TrainingError(
            f"features cannot be written into {folder} ({error.strerror}); free space there, use "
            "another folder, or use recipe: frozen, which stores no features"
        ) from error
    finally:
        writer.close()
    if not arrays:
        raise TrainingError("there is no image to compute features of; check the training split")
    return FeatureCache(arrays)


class _Writer:
    """Appends rows to one file per array."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._row_types: dict[str, tuple[Any, tuple[int, ...]]] = {}  # dtype and shape of a row

    def add(self, values: dict[str, np.ndarray], count: int) -> None:
        for name, rows in values.items():
            if name not in self._files:
                self._files[name] = self._path(name).open("wb")
                self._row_types[name] = rows.dtype, rows.shape[1:]
            self._files[name].write(rows[:count].tobytes())

    def finish(self) -> dict[str, np.memmap]:
        """Return the files as arrays; an empty dict if no row was added."""
        self.close()
        arrays = {}
        for name, (dtype, shape) in self._row_types.items():
            row_bytes = dtype.itemsize * math.prod(shape)
            rows = self._path(name).stat().st_size // row_bytes
            if rows:
                arrays[name] = np.memmap(self._path(name), dtype, "r", shape=(rows, *shape))
        return arrays

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _path(self, name: str) -> Path:
        """Return a numbered file: a target's name may contain characters that no path may."""
        number = list(self._files).index(name) if name in self._files else len(self._files)
        return self._folder / f"{number:02d}.rows"
