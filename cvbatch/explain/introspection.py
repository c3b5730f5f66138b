"""Introspection of one network: activations, Grad-CAM, filter patterns.

Only processes that have TensorFlow import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cvbatch.config.explain import ExplainJob
from cvbatch.core.errors import ModelError
from cvbatch.core.suggestions import offer
from cvbatch.core.types import Failure, ImageBatch, InputKey
from cvbatch.explain import filters as features
from cvbatch.explain import layer_selection
from cvbatch.explain.class_scores import CLASS_SCORES
from cvbatch.explain.deepdream import Dreamer
from cvbatch.explain.image_grids import cropped
from cvbatch.explain.spec import NetworkFacts
from cvbatch.explain.tables import Explanation, Located
from cvbatch.geometry.resize import Placement, boxes_to_original, make_placement
from cvbatch.inference import compile, gradcam
from cvbatch.inference.graph import input_size, num_classes, preprocess
from cvbatch.inference.graph_outputs import Tensors
from cvbatch.inference.programs import BuildRequest
from cvbatch.models import outputs as task_outputs
from cvbatch.storage.store import Storage

Arrays = dict[str, np.ndarray]
_MAP = "map of "  # before a layer's path: a layer may be called "scores"


def set_threads(threads: int | None) -> None:
    """Bound TensorFlow's threads, which it bears only before its first operation."""
    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def built(storage: Storage, request: BuildRequest) -> keras.Model:
    """Return the network of a request; with random weights always the same.

    Raises:
        ModelError: it cannot be had.
    """
    keras.utils.set_random_seed(compile.RANDOM_SEED)
    return compile.load(storage, request)


def facts_of(model: keras.Model, job: ExplainJob, request: BuildRequest) -> NetworkFacts:
    """Return what the job's words mean for this network.

    Raises:
        ModelError: a layer or class is not there, or the outputs do not fit the task.
    """
    size = input_size(model, job.model)
    shapes = layer_selection.map_shapes(model, size)
    chosen: dict[str, list[str]] = {}
    if job.activations:
        kinds = (*layer_selection.CONVOLUTIONS, *layer_selection.POOLINGS)
        said = job.activations.layers
        chosen["activations"] = layer_selection.choose(model, said, kinds, "activations.layers")
    if job.patterns and job.patterns.layers is None:
        chosen["patterns"] = layer_selection.last_of_each_size(model, shapes)
    elif job.patterns:
        chosen["patterns"] = layer_selection.choose(
            model, job.patterns.layers, (), "patterns.layers"
        )
    for what, paths in chosen.items():
        layer_selection.check_maps(model, paths, shapes, f"{what}.layers")
    if job.weights:
        said = job.weights.layers
        chosen["weights"] = layer_selection.choose(
            model, said, layer_selection.KERNELS, "weights.layers"
        )
        for path in chosen["weights"]:
            features.kernels_of(model, path)
    classes: tuple[str, ...] = ()
    if job.gradcam:
        classes = compile.class_names(request, num_classes(model, job.model))
        _check_classes(job.gradcam.classes or (), classes)
        if job.gradcam.layer != "auto":
            layer_selection.choose(model, [job.gradcam.layer], (), "gradcam.layer")
    return NetworkFacts(
        classes,
        size,
        {what: tuple(paths) for what, paths in chosen.items()},
        {path: shapes[path][2] for path in chosen.get("patterns", ())},
    )


def _check_classes(said: Sequence[str], classes: Sequence[str]) -> None:
    for name in said:
        if name not in classes:
            raise ModelError(
                f"gradcam.classes: {name!r} is not among the model's classes; "
                f"{offer(name, classes[:50])}"
            )


class Network:
    """The job's network with all that is asked of it, traced when it is first needed."""

    def __init__(self, model: keras.Model, job: ExplainJob, facts: NetworkFacts) -> None:
        self._model, self._job, self._facts = model, job, facts
        self._key = InputKey(*facts.image_size, job.model.resize)
        self._explained = CLASS_SCORES[job.model.task]
        self._is_looking = job.activations is not None or job.gradcam is not None
        self._heatmap_layer = ""  # found while tracing
        self._look: Callable[..., Tensors] | None = None
        self._candidates: Callable[..., Tensors] | None = None
        self._dreamer: Dreamer | None = None

    def check(self) -> None:
        """Trace all that is asked about images. Raises ModelError where that cannot be done."""
        self._trace()
        if self._look is not None:
            height, width = self._facts.image_size
            batch = self._job.run.batch_size
            inputs = [tf.TensorSpec((batch, height, width, 3), tf.uint8)]
            if self._job.gradcam and (focus := self._explained.focus_spec(self._job, self._facts)):
                inputs.append(tf.TensorSpec((batch, *focus.shape), focus.dtype))
            self._look.get_concrete_function(*inputs)  # type: ignore[attr-defined]

    def _trace(self) -> None:
        if self._is_looking and self._look is None:
            self._look = tf.function(self._looked, autograph=False)
            self._candidates = tf.function(self._outputs, autograph=False)
        if self._job.dream and self._dreamer is None:
            size = self._facts.image_size
            self._dreamer = Dreamer(self._model, self._fed, size, self._job.dream)

    def _fed(self, pixels: tf.Tensor) -> tf.Tensor:
        return preprocess(pixels, self._model, self._job.model)

    # ---------------------------------------------------------------- filters

    def patterns(self, layer: str) -> features.Patterns:
        """Return what the layer's first filters answer to, the borders cut off."""
        asked = self._job.patterns
        if asked is None:
            raise RuntimeError("patterns that were not asked for")
        ascent = features.Ascent(asked.steps, asked.step, asked.batch_size, asked.seed)
        count = min(asked.filters, self._facts.widths[layer])
        found = features.patterns(
            self._model, self._fed, layer, count, self._facts.image_size, ascent
        )
        return found._replace(pictures=cropped(found.pictures, asked.crop))

    def kernels(self, layer: str) -> np.ndarray:  # (kh, kw, inputs, filters)
        """Return a convolution's weights."""
        return features.kernels_of(self._model, layer)

    # ---------------------------------------------------------------- images

    def explain(self, batch: ImageBatch) -> list[Explanation | Failure]:
        """Return what was asked for about each decoded image of the batch, in order."""
        self._trace()
        pixels = batch.pixels[self._key]
        if not len(pixels):
            return []
        placements = [
            make_placement(int(batch.height[i]), int(batch.width[i]), self._key)
            for i in batch.decoded
        ]
        found = self._run(pixels, placements)
        return [
            self._explanation(pixels[row], {k: v[row] for k, v in found.items()}, placement)
            for row, placement in enumerate(placements)
        ]

    def _explanation(
        self, pixels: np.ndarray, found: Arrays, placement: Placement
    ) -> Explanation | Failure:
        for name, array in found.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                message = f"the network gave a number that is not finite for this image ({name})"
                return Failure("predict", "not_finite", message)
        activations = None
        if self._job.activations:
            most = self._job.activations.max_channels
            activations = {
                path: found[f"{_MAP}{path}"][..., :most]
                for path in self._facts.layers["activations"]
            }
        return Explanation(
            pixels,
            activations,
            self._located(found, placement) if self._job.gradcam else None,
            self._dreamer(pixels) if self._dreamer else None,
        )

    def _located(self, found: Arrays, placement: Placement) -> list[Located]:
        located = []
        for rank, class_id in enumerate(found["classes"].tolist()):
            inside = original = None
            if "boxes" in found:
                inside = found["boxes"][class_id]
                original = boxes_to_original(inside[None], placement)[0]
            located.append(
                Located(
                    self._heatmap_layer,
                    class_id,
                    self._facts.classes[class_id],
                    float(found["scores"][rank]),
                    found["heatmaps"][rank],
                    inside,
                    original,
                )
            )
        return located

    def _run(self, pixels: np.ndarray, placements: Sequence[Placement]) -> Arrays:
        """Return what the graph says of some images; the batch is filled up to its one size."""
        if self._look is None:
            return {}
        count, size = len(pixels), self._job.run.batch_size
        whole = np.zeros((size, *pixels.shape[1:]), np.uint8)
        whole[:count] = pixels
        focus, boxes = self._focus(whole, [*placements, *[placements[-1]] * (size - count)])
        inputs = [whole] if focus is None else [whole, focus]
        found = self._look(*map(tf.constant, inputs))
        arrays = {name: tensor.numpy()[:count] for name, tensor in found.items()}
        return arrays if boxes is None else arrays | {"boxes": boxes[:count]}

    def _focus(
        self,
        pixels: np.ndarray,  # (B, H, W, 3)
        placements: Sequence[Placement],  # B
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return what of each image is explained, and of detectors the box of every class."""
        if self._job.gradcam is None or self._candidates is None:
            return None, None
        candidates = partial(self._candidates, tf.constant(pixels))
        return self._explained.focus(self._job, self._facts, placements, candidates)

    # ---------------------------------------------------------------- the graph

    def _outputs(self, pixels: tf.Tensor) -> Tensors:
        return task_outputs.by_name(self._model(self._fed(pixels), training=False))

    def _looked(self, pixels: tf.Tensor, focus: tf.Tensor | None = None) -> Tensors:
        """Return maps by layer, and `classes` (B, K), `scores` (B, K), `heatmaps` (B, K, h, w)."""
        with gradcam.recorded_calls(self._model) as calls:
            found = self._outputs(pixels)
        results = {
            f"{_MAP}{path}": tf.cast(layer_selection.output_of(calls, path), tf.float32)
            for path in self._facts.layers.get("activations", ())
        }
        return results | (self._heatmaps(found, calls, focus) if self._job.gradcam else {})

    def _heatmaps(self, found: Tensors, calls: gradcam.Calls, focus: tf.Tensor | None) -> Tensors:
        asked: Any = self._job.gradcam
        scores, ranking = self._explained.scores(self._job, found, focus)
        at = self._explained.find_map(calls, scores, asked.layer)
        self._heatmap_layer = calls.path[at]
        if asked.classes is None:
            count = min(asked.top_k, scores.shape[1])
            classes = tf.math.top_k(ranking, count).indices
        else:
            ids = [self._facts.classes.index(name) for name in asked.classes]
            classes = tf.tile(tf.constant([ids], tf.int32), (scores.shape[0], 1))
        return {
            "classes": classes,
            "scores": tf.cast(tf.gather(scores, classes, axis=1, batch_dims=1), tf.float32),
            "heatmaps": gradcam.heatmaps(calls, scores, classes, at),
        }
