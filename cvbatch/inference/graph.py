"""What one model computes in the job, as a single graph: pixels in, the task's arrays out.

Everything that can be in the graph is: preprocessing, activation, arg-max, Grad-CAM. The graph
is a function of TensorFlow tensors; `cvbatch.inference.engines` makes a program of it. Only the
process that compiles imports this module.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from cvbatch.config.models import (
    ClassificationConfig,
    DetectionConfig,
    LocalizationConfig,
    ModelConfig,
    SegmentationConfig,
)
from cvbatch.core.errors import ModelError
from cvbatch.core.types import MAX_MASK_CLASSES
from cvbatch.inference import gradcam
from cvbatch.models import outputs as task_outputs

Tensors = dict[str, tf.Tensor]
_DETECTED = {"boxes", "scores"}


def input_size(model: keras.Model, config: ModelConfig) -> tuple[int, int]:
    """Return the height and width the network is fed.

    Raises:
        ModelError: the model does not take one batch of images, or leaves its size open and the
            job does not say one, or says another.
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
    if any(mine not in (None, said) for mine, said in zip(own, size, strict=True)):
        raise ModelError(f"image_size {list(size)}: model {config.model!r} takes {list(own)} only")
    return int(size[0]), int(size[1])


def num_classes(model: keras.Model, config: ModelConfig) -> int:
    """Return how many classes the model tells apart.

    Raises:
        ModelError: its outputs do not fit the task; shapes found and wanted.
    """
    height, width = input_size(model, config)
    images = keras.KerasTensor((1, height, width, model.input_shape[3]))
    found = task_outputs.by_name(model.compute_output_spec(images))
    if isinstance(config, ClassificationConfig):
        units = int(scores_output(config, found).shape[-1])
        return 2 if units == 1 and not config.multi_label else units
    if isinstance(config, SegmentationConfig):
        units = int(maps_output(config, found).shape[-1])
        if units > MAX_MASK_CLASSES:
            raise ModelError(
                f"model {config.model!r} has {units} classes; a mask of 8 bits holds "
                f"{MAX_MASK_CLASSES}"
            )
        return 2 if units == 1 else units
    if isinstance(config, LocalizationConfig):
        found = single_box(found)
    _check_boxes(config, found)
    return int(found["scores"].shape[-1])


class ServingGraph:
    """The function of a (B, H, W, 3) uint8 batch that one model of the job computes.

    Its results, by task: classification and localization `scores` (B, C), and for heatmaps
    `heatmaps` (B, K, h, w) and `heatmap_classes` (B, K); localization also `box` (B, 4);
    segmentation `mask` (B, H, W) uint8, and where images are cut into tiles `probabilities`
    (B, H, W, C); detection `boxes` (B, N, 4) and `scores` (B, N, C).
    """

    def __init__(self, model: keras.Model, config: ModelConfig) -> None:
        """Raises ModelError where the heatmap layer is not in the model."""
        self._model = model
        self._config = config
        self._size = input_size(model, config)
        self.heatmap_layer = ""  # found while tracing
        heatmap = getattr(config, "heatmap", None)
        if heatmap is not None:
            gradcam.check_layer(model, heatmap.layer)

    def __call__(self, pixels: tf.Tensor) -> Tensors:
        """Return the results' tensors; call it inside a TensorFlow graph."""
        images = preprocess(pixels, self._model, self._config)
        with gradcam.recorded_calls(self._model) as calls:
            found = task_outputs.by_name(self._model(images, training=False))
        results = getattr(self, f"_{self._config.task}")(found, calls)
        return {name: _plain(tensor) for name, tensor in results.items()}

    def _classification(self, found: Tensors, calls: gradcam.Calls) -> Tensors:
        config: Any = self._config
        return self._scored(scores_output(config, found), config.multi_label, calls)

    def _localization(self, found: Tensors, calls: gradcam.Calls) -> Tensors:
        found = single_box(found)
        return {"box": found["box"], **self._scored(found["scores"], False, calls)}

    def _segmentation(self, found: Tensors, calls: gradcam.Calls) -> Tensors:
        config: Any = self._config
        maps = maps_output(config, found)
        has_activation = before_activation(maps)[1] != ""
        if tuple(maps.shape[1:3]) != self._size:  # a network that answers on a coarser grid
            maps = tf.image.resize(maps, self._size)
        results = {"mask": _mask(maps, has_activation)}
        if config.tiles is not None:
            results["probabilities"] = _map_probabilities(maps, has_activation)
        return results

    def _detection(self, found: Tensors, calls: gradcam.Calls) -> Tensors:
        return {"boxes": found["boxes"], "scores": found["scores"]}

    def _scored(
        self,
        raw: tf.Tensor,  # (B, units)
        is_multi_label: bool,
        calls: gradcam.Calls,
    ) -> Tensors:
        """Return probabilities of every class and, where asked for, heatmaps of the best ones."""
        config: Any = self._config
        logits, probabilities = logits_and_probabilities(raw, is_multi_label)
        if config.heatmap is None:
            return {"scores": probabilities}
        top_k = min(config.heatmap.top_k, probabilities.shape[1])
        classes = tf.math.top_k(probabilities, top_k).indices
        explained = logits if config.heatmap.score == "logit" else probabilities
        at = gradcam.find_feature_map(calls, explained, config.heatmap.layer)
        self.heatmap_layer = calls.path[at]
        return {
            "scores": probabilities,
            "heatmap_classes": classes,
            "heatmaps": gradcam.heatmaps(calls, explained, classes, at),
        }


def preprocess(pixels: tf.Tensor, model: keras.Model, config: ModelConfig) -> tf.Tensor:
    """Return what the network is fed for pixels of 0..255, (B, H, W, 3): (B, H, W, 3 or 1)."""
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


def _plain(tensor: tf.Tensor) -> tf.Tensor:
    """Return half-precision results as float32: what leaves the graph has one type."""
    return tf.cast(tensor, tf.float32) if tensor.dtype.is_floating else tensor


def scores_output(config: ClassificationConfig, found: dict[str, Any]) -> Any:
    """Return the output of class scores. Raises ModelError where there is none, or several."""
    wants = "one output of class scores (B, classes)"
    return task_outputs.pick("classification", wants, found, config.output, 2)


def maps_output(config: SegmentationConfig, found: dict[str, Any]) -> Any:
    """Return the output of class maps. Raises ModelError where there is none, or several."""
    wants = "one output of class scores per pixel (B, height, width, classes)"
    return task_outputs.pick("segmentation", wants, found, config.output, 4)


def single_box(found: Tensors) -> Tensors:
    """Return a detector's answer of one box an image, {"boxes", "scores"}, as a localizer's."""
    is_one = all(len(found[x].shape) == 3 and found[x].shape[1] == 1 for x in _DETECTED & {*found})
    if not is_one or not found.keys() >= _DETECTED:
        return found
    return {
        "box": keras.ops.squeeze(found["boxes"], 1),
        "scores": keras.ops.squeeze(found["scores"], 1),
    }


def _check_boxes(config: ModelConfig, found: dict[str, Any]) -> None:
    wants, ranks = (
        ("boxes (B, N, 4) and scores (B, N, classes)", {"boxes": 3, "scores": 3})
        if isinstance(config, DetectionConfig)
        else (
            "box (B, 4) and scores (B, classes), or boxes (B, 1, 4) and scores (B, 1, classes)",
            {"box": 2, "scores": 2},
        )
    )
    box = next(iter(ranks))
    fits = all(name in found and len(found[name].shape) == rank for name, rank in ranks.items())
    if not fits or found[box].shape[-1] != 4 or found[box].shape[:-1] != found["scores"].shape[:-1]:
        raise task_outputs.wanted(config.task, f"the outputs {wants}", found)


def logits_and_probabilities(
    raw: tf.Tensor,  # (B, units)
    is_multi_label: bool,
) -> tuple[tf.Tensor, tf.Tensor]:  # (B, C), (B, C)
    """Return logits and probabilities; a network that ends in logits gets its activation here."""
    logits, activation = before_activation(raw)
    if raw.shape[1] == 1 and not is_multi_label:  # one sigmoid unit is two classes
        positive = tf.sigmoid(logits)
        return tf.concat([-logits, logits], axis=1), tf.concat([1 - positive, positive], axis=1)
    if activation:
        return logits, raw
    return logits, tf.sigmoid(logits) if is_multi_label else tf.nn.softmax(logits)


def _mask(
    maps: tf.Tensor,  # (B, H, W, units)
    has_activation: bool,
) -> tf.Tensor:  # (B, H, W) uint8
    if maps.shape[3] > 1:
        return tf.cast(tf.argmax(maps, axis=-1, output_type=tf.int32), tf.uint8)
    return tf.cast(maps[..., 0] > (0.5 if has_activation else 0), tf.uint8)


def _map_probabilities(
    maps: tf.Tensor,  # (B, H, W, units)
    has_activation: bool,
) -> tf.Tensor:  # (B, H, W, C)
    """Return for each pixel the probability of every class: what tiles can be averaged by."""
    if maps.shape[3] > 1:
        return maps if has_activation else tf.nn.softmax(maps)
    positive = maps if has_activation else tf.sigmoid(maps)
    return tf.concat([1 - positive, positive], axis=3)


def before_activation(scores: tf.Tensor) -> tuple[tf.Tensor, str]:
    """Return the logits behind a final softmax or sigmoid and its name; "" where there is none."""
    tensor = scores
    while tensor.op.type in {"Identity", "Cast", "ExpandDims", "Squeeze"}:
        tensor = tensor.op.inputs[0]
    if tensor.op.type in {"Softmax", "Sigmoid"}:
        return tf.reshape(tensor.op.inputs[0], scores.shape), str(tensor.op.type)
    return scores, ""
