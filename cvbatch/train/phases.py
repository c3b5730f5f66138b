"""Fine-tuning phases: which layers of a network are trainable when.

A network consists of a *base*, the layers up to its last feature map, and a *head*, all other
layers. The base may have pretrained weights; the head is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cvbatch.config.train import TrainingConfig
from cvbatch.core.errors import ModelError
from cvbatch.models.frameworks import keras
from cvbatch.models.fully_convolutional import without_head
from cvbatch.models.graph_surgery import Call, calls_of, flatten, output_of
from cvbatch.train.optimizers import OPTIMIZERS

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

# First layers of a head without Flatten or global pooling: those of cvbatch's segmenters and of the
# sliding detector. The head of any other network starts with its last layers with weights.
_HEAD_STARTS = ("hidden", "score_32", "score_16", "score_8")


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs in which the same layers are trained, with one learning-rate schedule.

    Attributes:
        name: of the phase in the history.
        part: the layers to train: "all"; "head" (the base is frozen); "last_block" (the head and
            the base's layers at the last resolution); or the name of a layer of the base: that
            layer, all layers after it, and the head.
        epochs: number of epochs.
        learning_rate: at its peak.
        freezes_normalization: whether the base's batch normalisation stays in inference mode.
    """

    name: str
    part: str
    epochs: int
    learning_rate: float
    freezes_normalization: bool = True


def phases_of(training: TrainingConfig, network: keras.Model) -> tuple[Phase, ...]:
    """Return the phases of a job's recipe.

    "scratch" trains all layers, normalisation included. "features" trains the head on cached
    outputs of the base (`cvbatch.train.feature_cache`). "frozen" trains the head, but runs the base
    at every step, so that images can be augmented. "finetune" trains the head for `head_epochs`,
    then `unfreeze` for `epochs`; the base's normalisation stays frozen.

    A learning rate that is not set is `OptimizerEntry.convex_rate` if only a head of one layer is
    trained first; deeper heads, which may be pretrained as in a VGG, diverge at that rate.

    Args:
        training: the recipe, its epochs and learning rates.
        network: the network to train.

    Source:
        Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform
        Out-of-Distribution, 2022: the head converges before the base is trained.
    """
    recipe, epochs, rate = training.recipe, training.epochs, training.learning_rate
    if rate is None:
        is_convex = recipe != "scratch" and has_linear_head(network)
        rate = OPTIMIZERS[training.optimizer].convex_rate if is_convex else 1e-3
    if recipe == "scratch":
        return (Phase("all", "all", epochs, rate, freezes_normalization=False),)
    if recipe in ("features", "frozen"):
        return (Phase("head", "head", epochs, rate),)
    unfreeze, base_rate = training.unfreeze, training.base_learning_rate
    last = Phase(unfreeze, unfreeze, epochs, rate / 10 if base_rate is None else base_rate)
    first = Phase("head", "head", training.head_epochs, rate)
    return (first, last) if first.epochs else (last,)


def has_linear_head(network: keras.Model) -> bool:
    """Return whether the head has one layer with weights; its loss is convex if the base is frozen.

    Raises:
        ModelError: the network has no weights.
    """
    graph = flatten(network)
    base = base_layers(graph)
    return sum(bool(layer.weights) and id(layer) not in base for layer in graph.layers) == 1


def freeze(network: keras.Model, phase: Phase) -> None:
    """Set `trainable` of all layers: the phase's layers are trained, all others frozen.

    Batch normalisation with `trainable` False runs in inference mode (passing `training=False` to a
    layer would be overridden by the network's call). The optimizer must be created afterwards.

    Raises:
        ModelError: `phase.part` is not a layer of the base, or the network has no weights.
    """
    graph = flatten(network)
    base = base_layers(graph)
    trained = _trained_base_layers(graph, base, phase.part)
    for layer in layers_of(graph):
        is_base = id(layer) in base
        is_normalization = isinstance(layer, keras.layers.BatchNormalization)
        is_frozen = is_base and is_normalization and phase.freezes_normalization
        layer.trainable = (not is_base or id(layer) in trained) and not is_frozen


def base_layers(graph: keras.Model) -> set[int]:
    """Return the ids of the layers up to the last feature map of a flat network.

    The last feature map is the input of the last Flatten or global pooling. If there is neither, it
    is the input of the layers called `hidden` or `score_…`, or of the last layers with weights.

    Raises:
        ModelError: the network has no weights.
    """
    return {id(layer) for layer in keras.Model(graph.input, last_feature_maps(graph)).layers}


def last_feature_maps(graph: keras.Model) -> list[Tensor]:  # each (B, h, w, c)
    """Return the feature maps that the head of a flat network reads.

    Raises:
        ModelError: the network has no weights.
    """
    try:
        return [without_head(graph).output]
    except ModelError:
        calls = list(calls_of(graph))
    starts = [call for call in calls if call.operation.name in _HEAD_STARTS]
    maps = {id(t): t for call in starts or _last_weighted(graph, calls) for t in call.received}
    if not maps:
        raise ModelError(f"model {graph.name!r} has no layer with weights, so nothing to train")
    return list(maps.values())


def moving_statistics(network: keras.Model) -> list[Any]:
    """Return the variables that trainable layers update themselves, as batch normalisation does.

    Each worker updates them from its own images, so they differ until they are averaged.
    """
    variables = {
        id(variable): variable
        for layer in layers_of(network)
        if layer.trainable
        for variable in layer.non_trainable_weights
        if keras.backend.is_float_dtype(variable.dtype)
    }
    return list(variables.values())


def _trained_base_layers(graph: keras.Model, base: set[int], part: str) -> set[int]:
    """Return the ids of the base's layers that are trained."""
    if part in ("all", "head"):
        return base if part == "all" else set()
    calls = [call for call in calls_of(graph) if id(call.operation) in base]
    if part == "last_block":
        first = _last_block(calls)
    else:
        names = [call.operation.name for call in calls]
        if part not in names:
            output_of(graph, part)  # raises if the whole network has no such layer
            raise ModelError(
                f"layer {part!r} belongs to the head of {graph.name!r}, which is always trained; "
                "use a layer of the base, last_block, or all"
            )
        first = names.index(part)
    return {id(call.operation) for call in calls[first:]}


def _last_block(calls: list[Call]) -> int:
    """Return the index of the first call of the base's last block.

    The block starts with the first map at the resolution of the base's last layer with weights:
    conv5 of a ResNet, and block5 of a VGG, whose last pooling comes after those weights.
    """
    sizes = [tuple(call.returned[0].shape[1:3]) for call in calls]
    if any(None in size for size in sizes):
        raise ModelError(
            "last_block: the sizes of the feature maps are unknown, so its start is; build the "
            "model at a fixed image size, or use the name of the first layer to train"
        )
    weighted = [
        size
        for call, size in zip(calls, sizes, strict=True)
        if _has_weights(call) and len(call.returned[0].shape) == 4
    ]
    # Weights after a pooling inside a block (squeeze-and-excitation) work at a single position.
    maps = [size for size in weighted if size != (1, 1)] or weighted
    return sizes.index(maps[-1]) if maps else 0


def _last_weighted(graph: keras.Model, calls: list[Call]) -> list[Call]:
    """Return the last calls with weights on every path to an output."""
    reached = {id(tensor) for tensor in graph.outputs}
    weighted = []
    for call in reversed(calls):
        if any(id(tensor) in reached for tensor in call.returned):
            if _has_weights(call):
                weighted.append(call)
            else:
                reached |= {id(tensor) for tensor in call.received}
    return weighted


def _has_weights(call: Call) -> bool:
    return bool(getattr(call.operation, "weights", ()))


def layers_of(network: keras.Model) -> Iterator[keras.Layer]:
    """Yield the layers of a network and of its nested models."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        else:
            yield layer
