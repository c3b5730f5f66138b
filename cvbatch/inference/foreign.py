"""Networks of ONNX and TFLite files, as the serving graph uses a Keras network.

Only the network itself runs in its own runtime: pixels become its input, and its outputs those of
the task, by the functions that Keras networks have. Imports TensorFlow.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cvbatch.config.models import ModelConfig
from cvbatch.core.errors import ModelError
from cvbatch.core.model_formats import format_of
from cvbatch.core.time_limit import time_limit
from cvbatch.inference import array_layout
from cvbatch.inference.file_values import values_of_output
from cvbatch.inference.onnx_heads import Head, cut_before_pooling
from cvbatch.inference.programs import BuildRequest
from cvbatch.inference.runtimes import RUNTIMES
from cvbatch.inference.value_ranges import Values
from cvbatch.models import model_files, onnx_files, tflite_files
from cvbatch.models.file_graphs import FileGraph
from cvbatch.models.frameworks import keras, tf
from cvbatch.storage.store import Storage

_LOAD_LIMIT_S = 300.0  # a network of 2 GiB takes seconds


class ForeignNetwork:
    """A network of an ONNX or TFLite file; called inside a TensorFlow graph like a Keras network.

    Attributes:
        format: key of its model format; a key of RUNTIMES.
        content: bytes of the file, with all weights.
        sha256: of the file and its data files, in hex.
        graph: operations of the file.
        input: of the network.
        names: of the outputs that are computed.
        input_shape: (None, height, width, channels); variable sides are None.
        batch: images of one call of the runtime; None: any number.
        layers: the Keras layers after the file's part, if heatmaps need them.
        known_values: of the tensors that calls returned, by name: what the file says about them.
    """

    def __init__(
        self, request: BuildRequest, content: bytes, graph: FileGraph, head: Head | None = None
    ) -> None:
        """Load a file.

        Raises:
            ModelError: its runtime does not accept it, or its input is not one batch of images.
        """
        self.format = str(format_of(request.config.model).key)
        self.content = content
        self.sha256 = request.identity.content.partition(":")[0]
        self.graph = graph
        self.layers = [] if head is None else [head.layers]
        self.known_values: dict[str, Values] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the outputs, without the batch
        self._head = head
        self._sections = request.sections
        self._runtime = RUNTIMES[self.format](content, 1)
        self.names = self._used_names()
        self.input = array_layout.image_input(self._runtime.inputs)
        layout = request.config.layout
        self.is_channels_first = array_layout.is_channels_first(layout, self.input.shape)
        shape = array_layout.channels_last(self.input.shape, self.is_channels_first)
        self.input_shape = (None, *shape[1:])
        self.batch = shape[0]

    def _used_names(self) -> tuple[str, ...]:
        """Return the outputs that sections of the job name; all if one names none."""
        names = self._runtime.outputs
        used = {section.config.output for section in self._sections}
        if self._head is not None and self._head.scores in used:
            used.add(self._head.features)
        return tuple(n for n in names if n in used) if None not in used else tuple(names)

    def compute_output_spec(self, images: Any) -> dict[str, keras.KerasTensor]:
        """Return shapes of the outputs by name, for images (1, H, W, C)."""
        size = tuple(images.shape[1:3])
        raw = [tf.zeros((1, *shape), dtype) for shape, dtype in self.raw_outputs(size)]
        outputs = self.read(dict(zip(self.names, raw, strict=True)), size)
        return {
            name: keras.KerasTensor(tensor.shape, tensor.dtype.name)
            for name, tensor in outputs.items()
        }

    def __call__(self, images: tf.Tensor, *, training: bool = False) -> dict[str, tf.Tensor]:
        """Return the outputs by name, for images (B, H, W, C) float32."""
        x = tf.transpose(images, (0, 3, 1, 2)) if self.is_channels_first else images
        size = tuple(images.shape[1:3])
        outputs = self.raw_outputs(size)
        dtypes = [dtype for _, dtype in outputs]
        raw = tf.nest.flatten(tf.numpy_function(lambda array: self.run(array), [x], dtypes))
        for tensor, (shape, _) in zip(raw, outputs, strict=True):
            tensor.set_shape((images.shape[0], *shape))
        return self.read(dict(zip(self.names, raw, strict=True)), size)

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """Return the raw outputs, in the order of `names`, of a batch in the file's layout."""
        size = self.batch or len(batch)
        parts = []
        for start in range(0, len(batch), size):
            part = np.resize(batch[start : start + size], (size, *batch.shape[1:]))
            parts.append(self._runtime(part, self.names))
            for name, array in zip(self.names, parts[-1], strict=True):
                self._check_batch(name, array.shape, size)
        return [np.concatenate(arrays)[: len(batch)] for arrays in zip(*parts, strict=True)]

    def _check_batch(self, name: str, shape: tuple[int, ...], size: int) -> None:
        first = self._shapes.setdefault(name, shape[1:])
        if len(shape) < 2 or shape[0] != size or shape[1:] != first:
            model = self._sections[0].config.model
            raise ModelError(
                f"model {model!r}: its output {name!r} has the shape {shape} for "
                f"{size} images; the first side must be the batch, and the others always the same: "
                "export the network without non-maximum suppression, or choose another output with "
                "`output: NAME`"
            )

    def raw_outputs(self, size: tuple[int, int]) -> list[tuple[tuple[int, ...], str]]:
        """Return shape (without the batch) and dtype of the raw outputs, for images of one size."""
        if not self._shapes:
            image = np.zeros((1, *size, self.input_shape[3] or 3), np.float32)
            self.run(image.transpose(0, 3, 1, 2) if self.is_channels_first else image)
        infos = self._runtime.outputs
        return [(self._shapes[name], infos[name].real_dtype) for name in self.names]

    def read(self, raw: Mapping[str, tf.Tensor], input_hw: tuple[int, int]) -> dict[str, tf.Tensor]:
        """Return the outputs by name, with channels last, of the raw outputs."""
        outputs = {}
        for name, tensor in raw.items():
            if self._head is not None and name == self._head.features:
                maps = tf.transpose(tensor, (0, 2, 3, 1))
                outputs[self._head.scores] = self._head.layers(maps, training=False)
                continue
            arranged = array_layout.arrange(self._sections, name, tensor, input_hw)
            if not tf.executing_eagerly():
                arranged = tf.identity(arranged)
                values = values_of_output(self.graph, name)
                if self._runtime.outputs[name].scale:  # many small probabilities are rounded to 0
                    values = replace(values, row_sum=None)
                self.known_values[arranged.name] = values
            outputs[name] = arranged
        return outputs

    def fix_batch(self, images: np.ndarray) -> int | None:
        """Return the batch, set to one image if the file does not accept more, or mixes them.

        A network that quantises its activations with limits of the whole batch mixes them: an
        image would have other scores with other images.

        Args:
            images: (N, H, W, C) float32, the input of the network.

        Raises:
            ModelError: the network does not run, or its outputs have no batch or variable sides.
        """
        images = np.resize(images, (max(2, len(images)), *images.shape[1:]))
        batch = images.transpose(0, 3, 1, 2) if self.is_channels_first else images
        if self.batch is None and not self._are_independent(batch):
            self.batch = 1
        if self.batch is not None:
            self.run(batch)
        return self.batch

    def _are_independent(self, batch: np.ndarray) -> bool:
        """Return whether the first image has the same outputs with other images."""
        other = np.concatenate([batch[:1], np.zeros_like(batch[1:])])
        try:
            pairs = zip(self.run(batch), self.run(other), strict=True)
            return all(np.array_equal(a[0], b[0], equal_nan=True) for a, b in pairs)
        except ModelError:
            return False


def load_network(storage: Storage, request: BuildRequest) -> ForeignNetwork:
    """Load the network of a job.

    Raises:
        ModelError: the file is damaged, not allowed or not supported, or has changed.
    """
    config = request.config
    explained = next((s.config for s in request.sections if _needs_layers(s.config)), None)
    head = None
    with tempfile.TemporaryDirectory(prefix="cvbatch-model-") as folder:
        path = model_files.download(storage, config.model, Path(folder), request.identity.sha256)
        if format_of(config.model).key == "tflite":
            content = path.read_bytes()
            graph = tflite_files.graph_of(content, config.model)
        else:
            model = _read_onnx(storage, request, path, Path(folder))
            graph = onnx_files.graph_of(model)
            if explained is not None:
                head = cut_before_pooling(model, graph, explained.output)
            content = model.SerializeToString(deterministic=True)
    if explained is not None and head is None:
        raise ModelError(
            f"model {config.model!r}: heatmap and layer are possible only for an ONNX file whose "
            "scores are one dense layer after global average pooling; remove heatmap and layer, or "
            "convert the network to Keras"
        )
    try:
        with time_limit(_LOAD_LIMIT_S, f"opening {config.model}"):  # damaged files may hang LiteRT
            return ForeignNetwork(request, content, graph, head)
    except ModelError as error:
        raise ModelError(f"model {config.model!r} cannot be used: {error}") from None


def _needs_layers(config: ModelConfig) -> bool:
    """Return whether a section of the job needs layers of the network: a heatmap, an embedding."""
    return any(getattr(config, key, None) is not None for key in ("heatmap", "layer"))


def _read_onnx(storage: Storage, request: BuildRequest, path: Path, folder: Path) -> Any:
    name, identity = request.config.model, request.identity
    model = onnx_files.read(path, name)
    files = onnx_files.data_files(model, name)
    local = {file: model_files.download_beside(storage, name, file, folder) for file in files}
    digests = {file: model_files.sha256(copy) for file, copy in local.items()}
    if onnx_files.content_digest(str(identity.sha256), digests) != identity.content:
        raise ModelError(f"a data file of {name} changed while the job started; start it again")
    onnx_files.include_data(model, local, name)
    return model
