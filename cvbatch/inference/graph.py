"""Serving graph of one model: pixels to the outputs of its task, as TensorFlow tensors.

Preprocessing, activation, Grad-CAM and the arg-max of masks at the network's size are part of the
graph. `cvbatch.inference.engines` compiles it to a program. Imports TensorFlow: only processes that
compile or inspect a network use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from cvbatch.config.models import (
    Activation,
    AnchorsConfig,
    DetectionConfig,
    ModelConfig,
    SegmentationConfig,
)
from cvbatch.core.errors import ModelError
from cvbatch.inference import detector_formats, gradcam
from cvbatch.inference.forward_pass import ForwardPass, MaskValues, Tensors
from cvbatch.inference.graph_outputs import GRAPH_OUTPUTS
from cvbatch.inference.outputs_segmentation import as_maps
from cvbatch.inference.programs import output_prefixes
from cvbatch.inference.token_maps import TokenMaps
from cvbatch.models import outputs as task_outputs
from cvbatch.models.frameworks import keras, tf


class Network(Protocol):
    """A network of a job: a Keras model, or the network of an ONNX or TFLite file.

    Attributes:
        input_shape: (batch, height, width, channels); variable sides are None.
        layers: Keras layers of which heatmaps need the calls.
    """

    input_shape: tuple[int | None, ...]
    layers: list[Any]

    def __call__(self, images: tf.Tensor, *, training: bool) -> Any:
        """Return the outputs of images (B, H, W, C) float32, inside a TensorFlow graph."""

    def compute_output_spec(self, images: Any) -> Any:
        """Return shapes of the outputs, of images (1, H, W, C)."""


def input_size(model: Network, config: ModelConfig) -> tuple[int, int]:
    """Return the height and width of the network's input in pixels.

    Raises:
        ModelError: the input is not one batch of images, its size is variable and the job has no
            image_size, or the job has an image_size that the model does not accept.
    """
    shapes = model.input_shape
    if not isinstance(shapes, tuple) or len(shapes) != 4 or shapes[3] not in (1, 3):
        raise ModelError(
            f"model {config.model!r} has the input shape {shapes}; it must have one input of shape "
            "(batch, height, width, 3 or 1)"
        )
    model_size = shapes[1:3]
    if config.image_size is None and None in model_size:
        raise ModelError(
            f"model {config.model!r} accepts any image size; set image_size: [height, width]"
        )
    size = config.image_size or model_size
    if any(fixed not in (None, side) for fixed, side in zip(model_size, size, strict=True)):
        raise ModelError(
            f"image_size {list(size)}: model {config.model!r} accepts only {list(model_size)}"
        )
    height, width = size
    return int(height or 0), int(width or 0)


def resolve(
    model: Network, config: ModelConfig, num_names: int | None = None
) -> tuple[ModelConfig, int | None]:
    """Return the config with the format of a detector's outputs, and the number of classes.

    A detector's anchors are those of the network if it has a KerasHub generator, and the job has
    none.

    Args:
        num_names: number of class names; None if there are none.

    Returns:
        The config, in which `detector` is never auto; None for boxes with class ids.

    Raises:
        ModelError: the outputs do not fit the task, with actual and required shapes; or as
            `cvbatch.inference.detector_formats.resolve`.
    """
    size = input_size(model, config)
    images = keras.KerasTensor((1, *size, model.input_shape[3]))
    outputs = task_outputs.by_name(model.compute_output_spec(images))
    if isinstance(config, DetectionConfig):
        config = detector_formats.resolve(config, outputs, size, num_names)
        generator = getattr(model, "anchor_generator", None)
        if config.detector == "retinanet" and config.anchors is None and generator is not None:
            keys = AnchorsConfig.model_fields.keys() - {"clip"}
            anchors = AnchorsConfig(**{key: getattr(generator, key) for key in keys})
            config = config.model_copy(update={"anchors": anchors})
    count_classes = GRAPH_OUTPUTS[config.task].num_classes
    return config, count_classes(config, task_tensors(outputs, config, size))


def task_tensors(outputs: Tensors, config: ModelConfig, size: tuple[int, int]) -> Tensors:
    """Return the outputs of a network by the names that its task expects.

    Args:
        outputs: of the network by name: TensorFlow or Keras tensors.
        config: resolved.
        size: height and width of the network's input in pixels.
    """
    if isinstance(config, DetectionConfig):
        return detector_formats.adapt(config, outputs, size)
    if isinstance(config, SegmentationConfig):
        return as_maps(config, outputs, size)
    return outputs


class ServingGraph:
    """One model of a job as a function of pixels (B, H, W, 3) uint8.

    Attributes:
        model: the network.
        heatmap_layer: path of the layer whose feature map heatmaps explain; "" without heatmaps,
            and before the function was traced.
        dimension: numbers of the vector of an image; 0 for tasks without vectors.
        vector_source: where they are in the network; "" if that is clear.
        output_bytes: memory of the outputs of one image; 0 before the function was traced.
    """

    def __init__(
        self,
        model: Network,
        config: ModelConfig,
        activation: Activation,
        mask_values: MaskValues = "logits",
    ) -> None:
        """Prepare the graph.

        Args:
            config: resolved.
            activation: still to be applied to the scores; never auto.
            mask_values: what the masks of boxes are.

        Raises:
            ModelError: the heatmap layer is not in the model.
        """
        self.model = model
        self._config = config
        self._activation = activation
        self._mask_values = mask_values
        self._size = input_size(model, config)
        self.heatmap_layer = ""
        self.dimension, self.vector_source = 0, ""
        self.output_bytes = 0
        heatmap = getattr(config, "heatmap", None)
        if heatmap is not None:
            gradcam.check_layer(model, heatmap.layer)

    def __call__(self, pixels: tf.Tensor) -> Tensors:
        """Return the outputs of the task by name; call it inside a TensorFlow graph."""
        return self.compute(*self.run_network(pixels))

    def run_network(self, pixels: tf.Tensor) -> tuple[Tensors, gradcam.Calls]:
        """Return the outputs of the network by name, and the calls of its layers."""
        return run_network(self.model, self._config, pixels)

    def compute(self, outputs: Tensors, calls: gradcam.Calls) -> Tensors:
        """Return the outputs of the task by name, from those of `run_network`."""
        outputs = task_tensors(outputs, self._config, self._size)
        calls = with_token_maps(calls, self.model, self._config)
        decided = self._activation, self._mask_values
        forward = ForwardPass(self._config, self._size, outputs, calls, *decided)
        results = GRAPH_OUTPUTS[self._config.task].compute(forward)
        self.heatmap_layer = forward.heatmap_layer
        self.dimension, self.vector_source = forward.dimension, forward.vector_source
        tensors = {name: _float32(tensor) for name, tensor in results.items()}
        self.output_bytes = sum(
            (tensor.shape[1:].num_elements() or 0) * tensor.dtype.size
            for tensor in tensors.values()
        )
        return tensors

    def preprocessed(self, pixels: np.ndarray) -> np.ndarray:  # (B, H, W, 3) → (B, H, W, C)
        """Return the network's input, with channels last."""
        return np.asarray(preprocess(tf.constant(pixels), self.model, self._config))


class SharedGraph:
    """Serving graphs of one network as one function of pixels, in which the network runs once."""

    def __init__(self, graphs: Sequence[ServingGraph]) -> None:
        self.graphs = graphs

    def __call__(self, pixels: tf.Tensor) -> Tensors:
        """Return the outputs of all graphs, with the prefixes of `output_prefixes`."""
        return self.compute(*self.graphs[0].run_network(pixels))

    def compute(self, outputs: Tensors, calls: gradcam.Calls) -> Tensors:
        """Return the outputs of all graphs, from those of the network."""
        prefixes = output_prefixes(len(self.graphs))
        return {
            prefix + name: tensor
            for prefix, graph in zip(prefixes, self.graphs, strict=True)
            for name, tensor in graph.compute(outputs, calls).items()
        }


def run_network(
    model: Network,
    config: ModelConfig,
    pixels: tf.Tensor,  # (B, H, W, 3)
) -> tuple[Tensors, gradcam.Calls]:
    """Return the outputs of a network by name, and the calls of its layers."""
    images = preprocess(pixels, model, config)
    return record(model, lambda: model(images, training=False))


def record(model: Network, forward_pass: Callable[[], Any]) -> tuple[Tensors, gradcam.Calls]:
    """Return what `run_network` does, of a function that returns the network's outputs."""
    with gradcam.record_calls(model) as calls:
        return task_outputs.by_name(forward_pass()), calls


def with_token_maps(calls: gradcam.Calls, model: keras.Model, config: ModelConfig) -> gradcam.Calls:
    """Return the calls with the grids of a transformer's tokens, which heatmaps of scores need."""
    scores_of = GRAPH_OUTPUTS[config.task].scores
    if scores_of is None:
        return calls

    def run(pixels: tf.Tensor) -> tuple[gradcam.Calls, tf.Tensor]:
        outputs, recorded = run_network(model, config, pixels)
        return recorded, scores_of(config, outputs)

    tokens = TokenMaps(run, input_size(model, config), model.input_shape[0])
    return replace(calls, tokens=tokens)


def preprocess(
    pixels: tf.Tensor,  # (B, H, W, 3) in 0..255
    model: Network,
    config: ModelConfig,
) -> tf.Tensor:  # (B, H, W, 3) or (B, H, W, 1) float32
    """Return the network's input: grey if it has one channel, rescaled, preprocessed.

    Source: the weights of grey are those of luma in ITU-R BT.601.
    """
    images = tf.cast(pixels, tf.float32)
    if model.input_shape[3] == 1:
        images = tf.tensordot(images, tf.constant([[0.299], [0.587], [0.114]]), 1)
    if config.rescale is not None:
        channels = np.broadcast(config.rescale.scale, config.rescale.offset).size
        if channels > images.shape[3]:
            raise ModelError(
                f"model {config.model!r} has grey input: rescale must have one number, not three"
            )
        images = images * tf.constant(config.rescale.scale) + tf.constant(config.rescale.offset)
    if config.preprocessing != "none":
        images = keras.applications.imagenet_utils.preprocess_input(
            images, data_format="channels_last", mode=config.preprocessing
        )
    return images


def _float32(tensor: tf.Tensor) -> tf.Tensor:
    """Convert half-precision outputs to float32, so that all programs return the same dtype."""
    return tf.cast(tensor, tf.float32) if tensor.dtype.is_floating else tensor
