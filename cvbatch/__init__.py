"""Distributed batch inference, training and evaluation of Keras vision models with Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cvbatch.core.version import __version__

if TYPE_CHECKING:
    from cvbatch.results.result import Result

__all__ = ["__version__", "load_model", "predict", "read"]


def load_model(path: str | os.PathLike[str], trust: Sequence[str] = ()) -> Any:  # a keras.Model
    """Load a .keras or .h5 file in Keras' safe mode, with cvbatch's custom layers registered.

    Keras is imported here, not with the package, with TensorFlow as backend, float32 and channels
    last, whatever the environment and keras.json say. Keras that this process has imported before
    is not changed. `keras.saving.load_model` returns the same after
    `import cvbatch.models.registry`.

    Args:
        path: local file.
        trust: names of installed modules whose classes the network may contain; they are imported.

    Raises:
        ModelError: the file does not exist, is damaged, or needs code that safe mode rejects; or
            Keras is already imported with another backend, floatx, epsilon or data format.
    """
    from pathlib import Path

    from cvbatch.models.registry import load_file

    return load_file(str(path), Path(path), trust)


def predict(images: Any, model: Any, **options: Any) -> Result:
    """Predict images in this process, and return their rows in the order of the images.

    ```python
    rows = cvbatch.predict(["a.jpg", "b.jpg"], model="MobileNetV2", top_k=3)
    rows[0].labels
    ```

    Args:
        images: a folder, pattern or URI, or paths, URIs, arrays (H, W, 3) uint8 or PIL images.
        model: a network's name or model file, or a list of them.
        **options: as in `cvbatch.predict.in_process.predict`: `out`, `run`, and the keys of a
            model's section, such as task, classes or heatmap.

    Raises:
        CvbatchError: the images or models are refused; the message says why and what to do.
    """
    from cvbatch.predict.in_process import predict

    return predict(images, model, **options)


def read(path: str | os.PathLike[str]) -> Result:
    """Open the results of `cvbatch predict`, in a folder or at a URI.

    It is a sequence of rows: labels, boxes, masks and heatmaps as arrays, drawings as PIL images.

    Raises:
        SourceError: there are no results, or they cannot be read.
    """
    from cvbatch.results.result import Result
    from cvbatch.storage.store import Storage

    return Result(Storage(), str(path))
