"""Import Keras with the settings of cvbatch, whatever the user's environment and keras.json say.

Keras reads `KERAS_BACKEND` and keras.json when it is imported. With other settings the same job
would fail or compute other numbers. Networks are TensorFlow's, channels last, in float32; a lower
precision is requested in the job file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from cvbatch.core.errors import ModelError
from cvbatch.core.extras import TENSORFLOW, require

# Ray imports TensorFlow, and so Keras, before cvbatch in training workers: they start with these.
VARIABLES = {"KERAS_BACKEND": "tensorflow", "KERAS_NNX_ENABLED": "false"}
_SETTINGS = {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}


def import_keras() -> ModuleType:
    """Return Keras with TensorFlow as backend and with the settings of cvbatch.

    Keras that is already imported belongs to the user's program and is not changed.

    Raises:
        ModelError: Keras is already imported with other settings, or cannot be imported.
    """
    is_imported = "keras" in sys.modules
    keras = _import_with_variables()
    if not is_imported:
        _apply(keras)
    for name, value in {"backend": VARIABLES["KERAS_BACKEND"], **_SETTINGS}.items():
        actual = getattr(keras.config, name)()
        if actual != value:
            raise ModelError(
                f"Keras is already imported in this process with {name} {actual!r}; cvbatch "
                f"requires {value!r}: use a new process in which cvbatch loads the first model "
                "before Keras is imported"
            )
    return keras


def own_keras() -> None:
    """Apply the settings in a process of cvbatch in which a library has already imported Keras."""
    _apply(_import_with_variables())


def _apply(keras: ModuleType) -> None:
    for name, value in _SETTINGS.items():
        getattr(keras.config, f"set_{name}")(value)


@contextmanager
def keras_variables() -> Iterator[None]:
    """Set `VARIABLES` in the environment, also of processes that start in the block."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(VARIABLES)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _import_with_variables() -> ModuleType:
    try:
        with keras_variables():
            return require("keras", TENSORFLOW)
    except ValueError as error:
        raise ModelError(
            f"Keras cannot be imported: {error}; correct or delete keras.json (in the folder "
            "KERAS_HOME, by default ~/.keras), unset KERAS_BACKEND, and start a new process"
        ) from error
