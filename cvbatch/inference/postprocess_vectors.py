"""Post-processing of embedding and regression: one vector per image, as the program returns it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvbatch.config.models import EmbeddingConfig, RegressionConfig
from cvbatch.core.types import ModelPredictions, ModelSpec, Vectors
from cvbatch.geometry.resize import Placement
from cvbatch.inference.engines import Outputs


def read_embedding(
    config: EmbeddingConfig,
    spec: ModelSpec,
    outputs: Outputs,  # embedding (K, D)
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
) -> ModelPredictions:
    """Return the embeddings of K images."""
    return ModelPredictions(embedding=Vectors(outputs["embedding"], image_index))


def read_values(
    config: RegressionConfig,
    spec: ModelSpec,
    outputs: Outputs,  # values (K, D)
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
) -> ModelPredictions:
    """Return the values of K images."""
    return ModelPredictions(values=Vectors(outputs["values"], image_index))
