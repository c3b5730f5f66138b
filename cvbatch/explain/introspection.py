"""Introspection of one network: activations, Grad-CAM, filter patterns, DeepDream.

Imports TensorFlow: only processes that compute with the network use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from cvbatch.config.explain import ExplainJob
from cvbatch.core.errors import ModelError
from cvbatch.core.suggestions import hint
from cvbatch.core.types import Failure, ImageBatch
from cvbatch.explain import filters, layer_selection
from cvbatch.explain.class_scores import CLASS_SCORES
from cvbatch.explain.deepdream import DeepDream
from cvbatch.explain.image_grids import crop_patterns
from cvbatch.explain.layer_selection import select_layers
from cvbatch.explain.spec import NetworkFacts
from cvbatch.explain.tables import ClassHeatmap, Explanation
from cvbatch.geometry.resize import Placement, boxes_to_original, make_placement
from cvbatch.inference import compile, gradcam
from cvbatch.inference.activation_check import Decision, decide
from cvbatch.inference.forward_pass import Tensors
from cvbatch.inference.graph import (
    input_size,
    preprocess,
    resolve,
    task_tensors,
    with_token_maps,
)
from cvbatch.inference.network_cost import cost_of, images_that_fit
from cvbatch.inference.programs import BuildRequest
from cvbatch.models import outputs as task_outputs
from cvbatch.models.frameworks import keras, tf
from cvbatch.models.saved_model import check_has_layers
from cvbatch.storage.store import Storage

Arrays = dict[str, np.ndarray]
_MAP = "map of "  # prefix of outputs named after a layer, because a layer may be called "scores"


def limit_threads(threads: int | None) -> None:
    """Limit TensorFlow's threads; it must be called before TensorFlow's first operation."""
    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def build_network(storage: Storage, request: BuildRequest) -> keras.Model:
    """Build or load the network; random weights are the same every time.

    Raises:
        ModelError: the network cannot be built or loaded, or has no layers.
    """
    keras.utils.set_random_seed(compile.RANDOM_SEED)
    return check_has_layers(compile.load(storage, request))


def resolve_job(
    model: keras.Model,
    job: ExplainJob,
    request: BuildRequest,
    images: Callable[[tuple[int, int]], np.ndarray],
) -> NetworkFacts:
    """Resolve the job's layer names, classes, activation and image size for this network.

    Args:
        images: returns a few images (N, H, W, 3) uint8 of a size, to check the scores on.

    Raises:
        ModelError: a layer or class does not exist, the outputs do not fit the task, or the feature
            maps do not fit in memory.
    """
    size = input_size(model, job.model)
    images_that_fit(request, cost_of(model, size))
    shapes = layer_selection.feature_map_shapes(model, size)
    layers = _resolve_layers(model, job, shapes)
    classes: tuple[str, ...] = ()
    decision = Decision("none", "")
    if job.gradcam:
        config, classes = compile.resolve_section(model, request)
        decision = decide(model, config, images(size), checks_boxes=False)
        _check_classes(job.gradcam.classes or (), classes)
        gradcam.check_layer(model, job.gradcam.layer)
    return NetworkFacts(
        classes,
        size,
        {section: tuple(paths) for section, paths in layers.items()},
        {path: shapes[path][2] for path in layers.get("patterns", ())},
        decision.activation,
        decision.reason,
    )


def _resolve_layers(
    model: keras.Model, job: ExplainJob, shapes: layer_selection.MapShapes
) -> dict[str, list[str]]:
    """Return the paths of the layers of each section."""
    layers: dict[str, list[str]] = {}
    if job.activations:
        kinds = (*layer_selection.CONVOLUTIONS, *layer_selection.POOLINGS)
        names = job.activations.layers
        layers["activations"] = select_layers(model, names, kinds, "activations.layers")
    if job.patterns and job.patterns.layers is None:
        layers["patterns"] = layer_selection.last_convolution_per_size(model, shapes)
    elif job.patterns:
        layers["patterns"] = select_layers(model, job.patterns.layers, (), "patterns.layers")
    for section, paths in layers.items():
        layer_selection.check_feature_maps(model, paths, shapes, f"{section}.layers")
    if job.weights:
        layers["weights"] = select_layers(
            model, job.weights.layers, layer_selection.KERNELS, "weights.layers"
        )
        for path in layers["weights"]:
            filters.kernel_weights(model, path)
    return layers


def _check_classes(names: Sequence[str], classes: Sequence[str]) -> None:
    for name in names:
        if name not in classes:
            raise ModelError(
                f"gradcam.classes: {name!r} is not among the model's classes; "
                f"{hint(name, classes[:50])}"
            )


class Network:
    """The job's network with the functions that its sections need, traced at first use."""

    def __init__(self, model: keras.Model, job: ExplainJob, facts: NetworkFacts) -> None:
        if job.gradcam:
            config, _ = resolve(model, job.model, len(facts.classes))
            job = job.model_copy(update={"model": config})
        self._model, self._job, self._facts = model, job, facts
        self._key = job.model.input_key(*facts.image_size)
        self._class_scores = CLASS_SCORES[job.model.task]
        self._needs_graph = job.activations is not None or job.gradcam is not None
        self._heatmap_layer = ""  # set by tracing
        self._graph: Callable[..., Tensors] | None = None
        self._network: Callable[..., Tensors] | None = None
        self._deepdream: DeepDream | None = None

    def check(self) -> None:
        """Trace the functions of images. Raises ModelError if the network does not support them."""
        self._trace()
        if self._graph is not None:
            height, width = self._facts.image_size
            batch = self._job.run.batch_size
            inputs = [tf.TensorSpec((batch, height, width, 3), tf.uint8)]
            focus = self._class_scores.focus_spec(self._job, self._facts)
            if self._job.gradcam and focus:
                inputs.append(tf.TensorSpec((batch, *focus.shape), focus.dtype))
            self._graph.get_concrete_function(*inputs)  # type: ignore[attr-defined]

    def _trace(self) -> None:
        if self._needs_graph and self._graph is None:
            self._graph = tf.function(self._compute, autograph=False)
            self._network = tf.function(self._outputs, autograph=False)
        if self._job.dream and self._deepdream is None:
            size = self._facts.image_size
            self._deepdream = DeepDream(self._model, self._preprocess, size, self._job.dream)

    def _preprocess(self, pixels: tf.Tensor) -> tf.Tensor:
        return preprocess(pixels, self._model, self._job.model)

    # ---------------------------------------------------------------- filters

    def patterns(self, layer: str) -> filters.Patterns:
        """Return the patterns of the layer's first filters, without borders."""
        config = self._job.patterns
        if config is None:
            raise RuntimeError("the job has no section patterns")
        settings = filters.AscentSettings(config.steps, config.step, config.batch_size, config.seed)
        count = min(config.filters, self._facts.widths[layer])
        patterns = filters.filter_patterns(
            self._model, self._preprocess, layer, count, self._facts.image_size, settings
        )
        return patterns._replace(images=crop_patterns(patterns.images, config.crop))

    def kernels(self, layer: str) -> np.ndarray:  # (kh, kw, inputs, filters) float32
        """Return the kernel of a convolution."""
        return filters.kernel_weights(self._model, layer)

    # ---------------------------------------------------------------- images

    def explain(self, batch: ImageBatch) -> list[Explanation | Failure]:
        """Compute the job's sections for each decoded image of the batch, in order.

        The result of an image is a Failure (stage predict, kind not_finite) if an array has NaN or
        infinite values.
        """
        self._trace()
        pixels = batch.pixels[self._key]
        if not len(pixels):
            return []
        placements = [
            make_placement(int(batch.height[i]), int(batch.width[i]), self._key)
            for i in batch.decoded
        ]
        arrays = self._run(pixels, placements)
        return [
            self._explanation(pixels[row], {k: v[row] for k, v in arrays.items()}, placement)
            for row, placement in enumerate(placements)
        ]

    def _explanation(
        self, pixels: np.ndarray, arrays: Arrays, placement: Placement
    ) -> Explanation | Failure:
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                message = f"the network gave a number that is not finite for this image ({name})"
                return Failure("predict", "not_finite", message)
        activations = None
        if self._job.activations:
            max_channels = self._job.activations.max_channels
            activations = {
                path: arrays[f"{_MAP}{path}"][..., :max_channels]
                for path in self._facts.layers["activations"]
            }
        return Explanation(
            pixels,
            activations,
            self._class_heatmaps(arrays, placement) if self._job.gradcam else None,
            self._deepdream(pixels) if self._deepdream else None,
        )

    def _class_heatmaps(self, arrays: Arrays, placement: Placement) -> list[ClassHeatmap]:
        heatmaps = []
        for rank, class_id in enumerate(arrays["classes"].tolist()):
            box_in_input = box = None
            if "boxes" in arrays:
                box_in_input = arrays["boxes"][class_id]
                box = boxes_to_original(box_in_input[None], placement)[0]
            heatmaps.append(
                ClassHeatmap(
                    self._heatmap_layer,
                    class_id,
                    self._facts.classes[class_id],
                    float(arrays["scores"][rank]),
                    arrays["heatmaps"][rank],
                    box_in_input,
                    box,
                )
            )
        return heatmaps

    def _run(self, pixels: np.ndarray, placements: Sequence[Placement]) -> Arrays:
        """Run the graph on images; they are padded to the batch size it was traced for."""
        if self._graph is None:
            return {}
        count, size = len(pixels), self._job.run.batch_size
        padded = np.zeros((size, *pixels.shape[1:]), np.uint8)
        padded[:count] = pixels
        focus, boxes = self._focus(padded, [*placements, *[placements[-1]] * (size - count)])
        inputs = [padded] if focus is None else [padded, focus]
        outputs = self._graph(*map(tf.constant, inputs))
        arrays = {name: tensor.numpy()[:count] for name, tensor in outputs.items()}
        return arrays if boxes is None else arrays | {"boxes": boxes[:count]}

    def _focus(
        self,
        pixels: np.ndarray,  # (B, H, W, 3)
        placements: Sequence[Placement],  # B
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the graph's second input (see `class_scores`), and a detector's boxes."""
        if self._job.gradcam is None or self._network is None:
            return None, None
        run = partial(self._network, tf.constant(pixels))
        return self._class_scores.focus(self._job, self._facts, placements, run)

    # ---------------------------------------------------------------- the graph

    def _outputs(self, pixels: tf.Tensor) -> Tensors:
        raw = task_outputs.by_name(self._model(self._preprocess(pixels), training=False))
        is_scored = self._job.gradcam is not None
        return task_tensors(raw, self._job.model, self._facts.image_size) if is_scored else raw

    def _compute(self, pixels: tf.Tensor, focus: tf.Tensor | None = None) -> Tensors:
        """Return maps by layer, and `classes` (B, K), `scores` (B, K), `heatmaps` (B, K, h, w)."""
        with gradcam.record_calls(self._model) as calls:
            outputs = self._outputs(pixels)
        calls = with_token_maps(calls, self._model, self._job.model)
        maps = {
            f"{_MAP}{path}": tf.cast(layer_selection.layer_output(calls, path), tf.float32)
            for path in self._facts.layers.get("activations", ())
        }
        return maps | (self._heatmaps(outputs, calls, focus) if self._job.gradcam else {})

    def _heatmaps(self, outputs: Tensors, calls: gradcam.Calls, focus: tf.Tensor | None) -> Tensors:
        config: Any = self._job.gradcam
        scores, ranking = self._class_scores.scores(self._job, self._facts, outputs, focus)
        call_index = self._class_scores.find_map(calls, scores, config.layer)
        self._heatmap_layer = calls.paths[call_index]
        if config.classes is None:
            count = min(config.top_k, scores.shape[1])
            classes = tf.math.top_k(ranking, count).indices
        else:
            ids = [self._facts.classes.index(name) for name in config.classes]
            classes = tf.tile(tf.constant([ids], tf.int32), (scores.shape[0], 1))
        return {
            "classes": classes,
            "scores": tf.cast(tf.gather(scores, classes, axis=1, batch_dims=1), tf.float32),
            "heatmaps": gradcam.heatmaps(calls, scores, classes, call_index),
        }
