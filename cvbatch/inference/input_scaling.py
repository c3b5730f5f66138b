"""How the pixels are scaled before a network: as the job says, or as its file shows."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cvbatch.config.models import ModelConfig
from cvbatch.config.network_input import Rescale
from cvbatch.core.errors import ModelError
from cvbatch.core.model_formats import format_of
from cvbatch.inference.foreign import ForeignNetwork
from cvbatch.inference.programs import BuildRequest
from cvbatch.models.frameworks import keras
from cvbatch.models.input_range import scales_its_input

_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # of the inputs of quantised networks
_RANGE_TOLERANCE = 0.02  # of the length of a range
_HOW_TO_SCALE = (
    "set preprocessing: torch for ImageNet's mean and deviation after 1/255, preprocessing: tf for "
    "-1..1, rescale: {scale: 0.00392157} for 0..1, or rescale: {scale: 1} if 0..255 is right"
)


class Scaling(NamedTuple):
    """The job's section with the scaling that the network needs, and a note for the user."""

    config: ModelConfig
    note: str

    def applied_to(self, request: BuildRequest) -> BuildRequest:
        """Return a request whose sections have the scaling."""
        scaling = {"rescale": self.config.rescale}
        others = tuple(
            (config.model_copy(update=scaling), identity) for config, identity in request.others
        )
        return replace(request, config=self.config, others=others)


def scaling_of(model: keras.Model | ForeignNetwork, config: ModelConfig) -> Scaling:
    """Return how pixels are scaled before the network.

    A network of an ONNX or TFLite file gets what the job sets. Without that a quantised input gets
    the pixels as its stored numbers, if they then mean 0..1, -1..1 or 0..255, and an input of whole
    numbers gets the pixels.

    Raises:
        ModelError: the job does not set it, and the file does not show it.
    """
    if not isinstance(model, ForeignNetwork):
        return Scaling(config, _keras_note(model, config))
    info, name = model.input, f"model {config.model!r}"
    is_set = config.preprocessing != "none" or config.rescale is not None
    is_whole = info.dtype.kind in "iu" and not info.scale
    if is_set and is_whole:
        raise ModelError(
            f"{name} has an input of whole numbers ({info.dtype}), so that pixels cannot be "
            "scaled before it; remove preprocessing and rescale"
        )
    if is_set or is_whole:
        return Scaling(config, "")
    if info.scale:
        return _quantised(model, config)
    if model.graph.scales(info.name):
        note = f"{name} gets pixels 0..255, which its first operations scale"
        return Scaling(config, note)
    raise ModelError(
        f"{name}: the job does not say which range of numbers its input expects, and the file "
        f"does not show it; {_HOW_TO_SCALE}"
    )


def _quantised(model: ForeignNetwork, config: ModelConfig) -> Scaling:
    """Return the scaling under which the stored numbers of the input are the pixels."""
    info = model.input
    lowest = int(np.iinfo(info.dtype).min)
    low = (lowest - info.zero_point) * info.scale
    high = low + 255 * info.scale
    for begin, end in _RANGES:
        if max(abs(low - begin), abs(high - end)) <= _RANGE_TOLERANCE * (end - begin):
            rescale = Rescale(scale=info.scale, offset=low)
            note = (
                f"model {config.model!r} has a quantised input, whose stored numbers are the "
                f"pixels; it receives {low:.3g} to {high:.3g}"
            )
            return Scaling(config.model_copy(update={"rescale": rescale}), note)
    raise ModelError(
        f"model {config.model!r} has a quantised input of {low:.3g} to {high:.3g}, so that it is "
        f"not clear how pixels were scaled; {_HOW_TO_SCALE}"
    )


def _keras_note(model: keras.Model, config: ModelConfig) -> str:
    """Return a warning if neither a user's network nor the job scales the pixels; else ""."""
    is_scaled = config.preprocessing != "none" or config.rescale is not None
    is_zoo = format_of(config.model).key == "zoo"
    if is_scaled or is_zoo or scales_its_input(model) is not False:
        return ""
    return (
        f"warning: model {config.model} has no Rescaling, Normalization or other preprocessing "
        "layer at its input, and the job sets none, so that the network receives pixels 0..255; "
        "predictions are wrong if it was trained on another range: set preprocessing: tf for -1..1 "
        "(as an option: --set models.0.preprocessing=tf), torch or caffe for ImageNet's mean, "
        "rescale: {scale: 0.00392157} for 0..1, or rescale: {scale: 1} if 0..255 is right"
    )
