"""Keras and TensorFlow, imported with the settings of cvbatch: every module takes them from here.

TensorFlow is here because importing it imports Keras.
"""

from __future__ import annotations

from cvbatch.models.keras_settings import import_keras

import_keras()

import keras  # noqa: E402 - after its settings
import tensorflow as tf  # noqa: E402
from keras import layers, ops  # noqa: E402
from keras.optimizers import schedules  # noqa: E402

__all__ = ["keras", "layers", "ops", "schedules", "tf"]
