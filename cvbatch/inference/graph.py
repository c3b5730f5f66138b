"""Serving graph of one model: pixels to the outputs of its task, as TensorFlow tensors.

Everything that can be in the graph is: preprocessing, activation, arg-max, Grad-CAM.
`cvbatch.inference.engines` makes a program of it. Only the process that compiles imports this
module.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from cvbatch.config.models import ModelConfig
from cvbatch.core.errors import ModelError
from cvbatch.inference import gradcam
from cvbatch.inference.graph_outputs import GRAPH_OUTPUTS, ForwardPass, Tensors
from cvbatch.models import outputs as task_outputs


def input_size(model: keras.Model, config: ModelConfig) -> tuple[int, int]:
    """Return the height and width of the network's input, pixels.

    Raises:
        ModelError: the model does not take one batch of images, or its size is open and the job
            specifies none, or the job specifies another.
    """
    shapes = model.input_shape
    if not isinstance(shapes, tuple) or len(shapes) != 4 or shapes[3] not in (1, 3):
        raise ModelError(
            f"model {config.model!r} takes {shapes}; a model of this job takes one input of shape "
            "(batch, height, width, 3 or 1)"
        )
    own = shapes[1:3]
    if config.image_size is None and None in own:
        raise ModelError(
            f"model {config.model!r} leaves its image size open; say image_size: [height, width]"
        )
    size = config.image_size or own
    if any(own_side not in (None, side) for own_side, side in zip(own, size, strict=True)):
        raise ModelError(f"image_size {list(size)}: model {config.model!r} takes {list(own)} only")
    return int(size[0]), int(size[1])


def num_classes(model: keras.Model, config: ModelConfig) -> int:
    """Return the number of classes of the model.

    Raises:
        ModelError: its outputs do not fit the task; shapes found and wanted.
    """
    height, width = input_size(model, config)
    images = keras.KerasTensor((1, height, width, model.input_shape[3]))
    outputs = task_outputs.by_name(model.compute_output_spec(images))
    return GRAPH_OUTPUTS[config.task].num_classes(config, outputs)


class ServingGraph:
    """The function of a (B, H, W, 3) uint8 batch that one model of the job computes.

    Attributes:
        heatmap_layer: path of the layer that heatmaps are of, known once the function was traced;
            "" without heatmaps.
    """

    def __init__(self, model: keras.Model, config: ModelConfig) -> None:
        """Raises ModelError where the heatmap layer is not in the model."""
        self._model = model
        self._config = config
        self._size = input_size(model, config)
        self.heatmap_layer = ""
        heatmap = getattr(config, "heatmap", None)
        if heatmap is not None:
            gradcam.check_layer(model, heatmap.layer)

    def __call__(self, pixels: tf.Tensor) -> Tensors:
        """Return the outputs of the task; call it inside a TensorFlow graph."""
        images = preprocess(pixels, self._model, self._config)
        with gradcam.record_calls(self._model) as calls:
            outputs = task_outputs.by_name(self._model(images, training=False))
        forward = ForwardPass(self._config, self._size, outputs, calls)
        results = GRAPH_OUTPUTS[self._config.task].compute(forward)
        self.heatmap_layer = forward.heatmap_layer
        return {name: _float32(tensor) for name, tensor in results.items()}


def preprocess(pixels: tf.Tensor, model: keras.Model, config: ModelConfig) -> tf.Tensor:
    """Return the network's input for pixels 0..255, (B, H, W, 3): (B, H, W, 3 or 1) float32."""
    images = tf.cast(pixels, tf.float32)
    if model.input_shape[3] == 1:  # luma weights of ITU-R BT.601
        images = tf.tensordot(images, tf.constant([[0.299], [0.587], [0.114]]), 1)
    if config.rescale is not None:
        images = images * config.rescale.scale + config.rescale.offset
    if config.preprocessing != "none":
        images = keras.applications.imagenet_utils.preprocess_input(
            images, data_format="channels_last", mode=config.preprocessing
        )
    return images


def _float32(tensor: tf.Tensor) -> tf.Tensor:
    """Return half-precision outputs as float32, so that programs have one type of floats."""
    return tf.cast(tensor, tf.float32) if tensor.dtype.is_floating else tensor
