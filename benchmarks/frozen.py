"""A Keras model as a frozen TensorFlow function, the fastest form available to the peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def load_frozen(
    model_path: str, threads: int, is_frozen: bool = True
) -> Callable[[np.ndarray], np.ndarray]:  # (n, H, W, 3) uint8 → (n, C) float32
    """Return the model's function for any number of images.

    Args:
        model_path: Path of the .keras file.
        threads: Number of TensorFlow threads.
        is_frozen: Fold the weights into constants; otherwise return a plain `tf.function`.
    """
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = keras.saving.load_model(model_path, compile=False)
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)

    @tf.function(input_signature=[signature], autograph=False)
    def forward(pixels: Any) -> Any:
        return model(tf.cast(pixels, tf.float32), training=False)

    if not is_frozen:
        return lambda pixels: forward(tf.constant(pixels)).numpy()
    function = convert_variables_to_constants_v2(forward.get_concrete_function())

    def run(pixels: np.ndarray) -> np.ndarray:
        (scores,) = function(tf.constant(pixels))
        result: np.ndarray = scores.numpy()
        return result

    return run


def best_classes(
    scores: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:  # (n, C) → (n, top_k) int32, (n, top_k) float32
    """Return each image's best classes, best first, and their scores."""
    order = np.argsort(-scores, axis=1)[:, :top_k]
    return order.astype(np.int32), np.take_along_axis(scores, order, axis=1)
