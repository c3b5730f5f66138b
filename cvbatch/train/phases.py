"""Which layers learn when: a network that knows something is taught in phases.

A network is a *base*, all that its last feature map is made of, and a *head*, all else. The base
may bring weights that were trained on millions of images; the head is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import keras

from cvbatch.core.errors import ModelError
from cvbatch.models.fully_convolutional import without_head
from cvbatch.models.graph_surgery import Call, calls_of, flatten, output_of

Tensor = Any  # a keras.KerasTensor; Keras carries no type information
RecipeName = Literal["scratch", "features", "frozen", "finetune"]

# Layers that begin a head where no Flatten or global pooling does: those of our segmenters and of
# the detector that slides. Any other network's head begins with its last layers with weights.
_BEGINNINGS = ("hidden", "score_32", "score_16", "score_8")


@dataclass(frozen=True)
class Phase:
    """A run of epochs in which the same layers learn, with one schedule of the rate.

    part: "all", "head" (the base stands still), "last_block" (the head and the base's layers at
    the last resolution), or the name of a layer of the base, from which on all learn.
    """

    name: str
    part: str
    epochs: int
    learning_rate: float  # at its peak
    freezes_normalization: bool = True  # the base's: inference mode, no weight of it moves


def phases_of(
    recipe: RecipeName,
    epochs: int,
    rate: float,
    *,
    head_epochs: int = 0,
    base_rate: float | None = None,
    unfreeze: str = "last_block",
) -> tuple[Phase, ...]:
    """Return the phases of a recipe.

    scratch: all layers learn from the start, normalisation too. features: the head learns on the
    base's outputs, which are computed once (`cvbatch.train.feature_cache`). frozen: the same, but
    the base runs at every step, so that images may vary. finetune: the head for `head_epochs` with
    the base frozen, then what `unfreeze` names, a `Phase.part`, for `epochs` at `base_rate`, by
    default a hundredth of `rate`; the base's normalisation stays frozen throughout.
    """
    if recipe == "scratch":
        return (Phase("all", "all", epochs, rate, freezes_normalization=False),)
    if recipe in ("features", "frozen"):
        return (Phase("head", "head", epochs, rate),)
    whole = Phase(unfreeze, unfreeze, epochs, rate / 100 if base_rate is None else base_rate)
    return (Phase("head", "head", head_epochs, rate), whole) if head_epochs else (whole,)


def freeze(network: keras.Model, phase: Phase) -> None:
    """Let the phase's layers learn and no others.

    A frozen layer has `trainable` False, which also puts batch normalisation into inference mode:
    `training=False` said to a layer would be overridden by the network's own call. An optimizer
    must be made afterwards. The flags stay as they are until the next phase.

    Raises:
        ModelError: no layer of the base has the part's name; or the network has no weights.
    """
    graph = flatten(network)
    base = base_layers(graph)
    learning = _learning(graph, base, phase.part)
    for layer in _layers_of(graph):
        is_base = id(layer) in base
        is_statistic = isinstance(layer, keras.layers.BatchNormalization)
        is_still = is_base and is_statistic and phase.freezes_normalization
        layer.trainable = (not is_base or id(layer) in learning) and not is_still


def base_layers(graph: keras.Model) -> set[int]:
    """Return the ids of the layers that the last feature map is made of.

    graph: flat. The last feature map is what the last Flatten or global pooling reads; where
    there is none, what the layers named `hidden` or `score_…` read, or the last ones with weights.

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
    named = [call for call in calls if call.operation.name in _BEGINNINGS]
    maps = {id(t): t for call in named or _last_weighted(graph, calls) for t in call.received}
    if not maps:
        raise ModelError(f"model {graph.name!r} has no layer with weights, so nothing to train")
    return list(maps.values())


def moving_statistics(network: keras.Model) -> list[Any]:
    """Return the variables that layers which learn move by themselves, as batch normalisation.

    Every worker moves its own by its own images, so they differ until they are averaged.
    """
    found = {
        id(variable): variable
        for layer in _layers_of(network)
        if layer.trainable
        for variable in layer.non_trainable_weights
        if keras.backend.is_float_dtype(variable.dtype)
    }
    return list(found.values())


def _learning(graph: keras.Model, base: set[int], part: str) -> set[int]:
    """Return the ids of the base's layers that learn."""
    if part in ("all", "head"):
        return base if part == "all" else set()
    calls = [call for call in calls_of(graph) if id(call.operation) in base]
    if part == "last_block":
        first = _last_block(calls)
    else:
        names = [call.operation.name for call in calls]
        if part not in names:
            output_of(graph, part)  # which says so where the network has no such layer at all
            raise ModelError(
                f"layer {part!r} belongs to the head of {graph.name!r}, which learns in any case; "
                "name one of the base, or last_block, or all"
            )
        first = names.index(part)
    return {id(call.operation) for call in calls[first:]}


def _last_block(calls: list[Call]) -> int:
    """Return where the base's last block begins.

    It begins with the first map of the resolution that the base's last weights work at. That is
    conv5 of a ResNet, block5 of a VGG, whose last pooling is behind its weights.
    """
    sizes = [tuple(call.returned[0].shape[1:3]) for call in calls]
    if any(None in size for size in sizes):
        raise ModelError(
            "last_block: the sizes of the maps are not known, so where it begins is not; build the "
            "model at a fixed image size, or name the layer from which on to train"
        )
    weighted = [
        size
        for call, size in zip(calls, sizes, strict=True)
        if _has_weights(call) and len(call.returned[0].shape) == 4
    ]
    # Weights behind a pooling inside a block, as squeeze-and-excitation has, see one position.
    maps = [size for size in weighted if size != (1, 1)] or weighted
    return sizes.index(maps[-1]) if maps else 0


def _last_weighted(graph: keras.Model, calls: list[Call]) -> list[Call]:
    """Return the last calls with weights on every way to an output."""
    wanted = {id(tensor) for tensor in graph.outputs}
    found = []
    for call in reversed(calls):
        if any(id(tensor) in wanted for tensor in call.returned):
            if _has_weights(call):
                found.append(call)
            else:
                wanted |= {id(tensor) for tensor in call.received}
    return found


def _has_weights(call: Call) -> bool:
    return bool(getattr(call.operation, "weights", ()))


def _layers_of(network: keras.Model) -> Iterator[keras.Layer]:
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from _layers_of(layer)
        else:
            yield layer
