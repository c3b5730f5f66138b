"""The serving graph of a network, with the activation that a job would decide on."""

from __future__ import annotations

from typing import Any

from cvbatch.config.models import ModelConfig


def serving_graph(model: Any, config: ModelConfig) -> Any:
    """Return the ServingGraph of a Keras model."""
    from cvbatch.inference.activation_check import decide
    from cvbatch.inference.graph import ServingGraph, input_size, resolve
    from cvbatch.inference.sample_images import generated_pixels

    pixels = generated_pixels(input_size(model, config))
    config, _ = resolve(model, config)
    return ServingGraph(model, config, decide(model, config, pixels, checks_boxes=False).activation)
