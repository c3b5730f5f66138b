"""Check the initial network of a training, and fit its head to the classes of the data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from cvbatch.config.models import MODEL_SECTIONS, ModelConfig
from cvbatch.config.train import TrainJob
from cvbatch.core.errors import ModelError
from cvbatch.core.tasks import TASKS
from cvbatch.core.types import InputKey
from cvbatch.datasets.examples import in_order
from cvbatch.datasets.reader import LabelSpec, Split
from cvbatch.images.options import Limits
from cvbatch.inference.activation_check import Decision, decide
from cvbatch.inference.sample_images import NUM_IMAGES, NUM_TRIED, generated_pixels
from cvbatch.models.blocks import score_activation
from cvbatch.models.class_head import ClassScores, with_classes
from cvbatch.models.frameworks import keras
from cvbatch.models.graph_surgery import calls_of, flatten
from cvbatch.models.input_range import scales_its_input
from cvbatch.models.outputs import by_name
from cvbatch.storage.store import Storage
from cvbatch.train.input_pipeline import DecodeSpec, ExampleReader, Shard
from cvbatch.train.learners.base import LEARNERS

_MAX_NAMES = 10  # class names in a message


class FittedModel(NamedTuple):
    """A network for the classes of the data, and what was done to it."""

    model: keras.Model
    note: str  # for the log; "" without a change or a guess


def check_trainable(model: keras.Model, name: str) -> None:
    """Check that no layer has integer weights, as `model.quantize("int8")` makes them.

    Args:
        model: the network.
        name: of the model in the job file.

    Raises:
        ModelError: a layer is quantised.
    """
    for call in calls_of(flatten(model)):
        policy: Any = getattr(call.operation, "dtype_policy", None)
        if getattr(policy, "quantization_mode", None):
            raise ModelError(
                f"model {name!r} is quantised (layer {call.operation.name!r}: {policy.name}), and "
                "rounded weights cannot be trained; train the model from before "
                "model.quantize(...), and quantise the result"
            )


def scaling_note(model: keras.Model, name: str) -> str:
    """Return a warning if a network does not scale its pixels; "" if it does or is not known to.

    Args:
        model: the network.
        name: of the model in the job file.
    """
    if scales_its_input(model) is not False:
        return ""
    return (
        f"warning: model {name!r} has no Rescaling, Normalization or other preprocessing layer at "
        "its input, so that it is trained on pixels 0..255; put such a layer in front if its "
        "weights were trained on another range"
    )


def fit_classes(
    model: keras.Model,
    job: TrainJob,
    known: Sequence[str] | None,
    classes: Sequence[str],
) -> FittedModel:
    """Return a trained network for the classes of the data.

    If the classes of the network are the same in another order, its outputs are reordered. If they
    are others, its head is rebuilt: classes that the network knows by name keep their weights, the
    others start untrained. A network without class names keeps a head with one output per class of
    the data.

    Args:
        model: the network of a .keras file.
        job: its task, and the output to train.
        known: class names of the network, by output; None: it has none.
        classes: class names of the data, by class id.

    Raises:
        ModelError: the class scores are not found, or the names are not one per output.
    """
    name = f"model {job.model.model!r}"
    if known is not None and tuple(known) == tuple(classes):
        return FittedModel(model, "")
    graph = flatten(model)
    scores = LEARNERS[job.model.task].class_scores(graph, job.model.output)
    units = scores[0].units
    num_outputs = 2 if units == 1 and not job.model.multi_label else units
    if known is None and num_outputs == len(classes):
        return FittedModel(
            model,
            f"warning: {name} does not name its classes, so that its outputs are taken for those "
            f"of the data, in this order: {_names(classes)}",
        )
    if known is not None and len(known) != num_outputs:
        raise ModelError(
            f"{name} has {num_outputs} classes, but its card names {len(known)}: "
            f"{_names(known)}; save it again with one name per class"
        )
    sources = _sources(scores[0], known or (), classes)
    activation = score_activation(len(classes), job.model.multi_label)
    rebuilt = with_classes(model, graph, scores, sources, activation)
    return FittedModel(rebuilt.model, _rebuilt_note(name, rebuilt.layers, sources, classes, units))


def _sources(scores: ClassScores, known: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """Return for each class of the data the output of the network with that name, or None."""
    if scores.units == 1:  # one unit for two classes cannot be divided between them
        return [None] * len(classes)
    output_of = {name: i for i, name in reversed(list(enumerate(known)))}
    return [output_of.get(name) for name in classes]


def _rebuilt_note(
    name: str,
    layers: Sequence[str],
    sources: Sequence[int | None],
    classes: Sequence[str],
    units: int,
) -> str:
    what = f"layer {layers[0]} is" if len(layers) == 1 else f"layers {', '.join(layers)} are"
    new = [c for c, source in zip(classes, sources, strict=True) if source is None]
    kept = [c for c, source in zip(classes, sources, strict=True) if source is not None]
    if not new and len(kept) == units:
        return f"{name}: {what} put into the order of the data's classes, with all weights"
    parts = [f"untrained: {_names(new)}"] if new else []
    parts += [f"with their weights: {_names(kept)}"] if kept else []
    return (
        f"{name}: {what} rebuilt for the {len(classes)} classes of the data "
        f"({'; '.join(parts)}); all other layers keep their weights"
    )


def _names(classes: Sequence[str]) -> str:
    more = len(classes) - _MAX_NAMES
    return ", ".join(classes[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def decide_activation(
    model: keras.Model,
    job: TrainJob,
    storage: Storage,
    split: Split | None,
    image_size: tuple[int, int],
) -> Decision | None:
    """Decide as prediction does whether the network's scores are probabilities or logits.

    Args:
        model: the initial network.
        job: the training job.
        storage: reads images.
        split: training images, of which the first are shown to the network; None: generated ones.
        image_size: (height, width) of the network's input.

    Returns:
        The activation that is still to be applied; None for a task whose networks define it.

    Raises:
        ModelError: it is not clear, or contradicts the job.
    """
    if job.model.task not in ("classification", "segmentation"):
        return None
    graph = flatten(model)
    scores = LEARNERS[job.model.task].class_scores(graph, job.model.output)[0].tensor
    output = next(name for name, tensor in by_name(graph.output).items() if tensor is scores)
    pixels = _sample_pixels(storage, job, split, image_size)
    config = _as_predicted(job, output)
    return decide(model, config, pixels, checks_boxes=False, needs_values=True)


def _as_predicted(job: TrainJob, output: str) -> ModelConfig:
    """Return the model's section of a job that predicts with an output of the network."""
    keys = ["task", "model", "weights", "activation"]
    if job.model.task == "classification":
        keys.append("multi_label")
    section: Any = MODEL_SECTIONS[job.model.task]
    values = {key: getattr(job.model, key) for key in keys}
    config: ModelConfig = section(output=output, **values)
    return config


def _sample_pixels(
    storage: Storage, job: TrainJob, split: Split | None, image_size: tuple[int, int]
) -> np.ndarray:  # (N, H, W, 3) uint8
    if split is None:
        return generated_pixels(image_size)
    spec = DecodeSpec(
        storage,
        LabelSpec(TASKS[job.model.task].label_column),
        InputKey(*image_size, job.model.resize),
        Limits.from_source(job.source.model_dump()),
    )
    reader = ExampleReader(split, spec, Shard(0, 1, NUM_IMAGES))
    first = (pool[:NUM_TRIED] for pool in islice(in_order(split), 1))
    examples = next(filter(None, reader.batches(first, 0, None)), [])
    return np.stack([e.pixels for e in examples]) if examples else generated_pixels(image_size)
