"""Post-processing of embedding and regression: one vector per image, as the program returns it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cvbatch.config.models import EmbeddingConfig, RegressionConfig
from cvbatch.core.types import ModelPredictions, ModelSpec, Vectors
from cvbatch.geometry.resize import Placement
from cvbatch.inference.engines import Outputs


def read_outputs(
    config: EmbeddingConfig | RegressionConfig,
    spec: ModelSpec,
    outputs: Outputs,  # embedding or values (K, D)
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
) -> ModelPredictions:
    """Return the vectors of K images, under the name of the output."""
    vectors: dict[str, Any] = {name: Vectors(v, image_index) for name, v in outputs.items()}
    return ModelPredictions(**vectors)
