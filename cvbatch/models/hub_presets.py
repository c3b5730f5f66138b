"""Networks of KerasHub presets: classifiers, segmenters and detectors, with their preprocessing.

A preset is a folder with the configs of a task and its preprocessor, and their weights. Loading
KerasHub takes seconds; only processes that build a preset import it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cvbatch.core.errors import ModelError
from cvbatch.core.model_formats import PRESET_FILE
from cvbatch.models import cost
from cvbatch.models.file_safety import UnsafeFileError, inspect_model_file, inspect_network_config
from cvbatch.models.frameworks import keras, layers, ops
from cvbatch.models.weights import LOAD_ERRORS, check_num_weights, first_line

_BACKBONE_WEIGHTS, _HEAD_WEIGHTS = "model.weights.h5", "task.weights.h5"
_TRUST = ("keras_hub",)


def load_preset(model: str, folder: Path, image_size: tuple[int, int] | None = None) -> keras.Model:
    """Return the network of an untrusted preset, for pixels 0..255.

    Classifiers and segmenters return their scores, detectors `boxes` (xyxy in pixels of the input)
    and `scores` of all candidates.

    Args:
        model: preset as the user named it, for messages.
        folder: private copy of it.
        image_size: (height, width) in pixels of the input; None: that of the preset.

    Raises:
        ModelError: KerasHub is not installed, or the preset is damaged, has no trained head, or is
            of another task.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise ModelError(
            f"model {model} is a KerasHub preset, and KerasHub cannot be imported ({error}): "
            "pip install 'cvbatch[hub]'"
        ) from error
    weights_bytes = _inspect(model, folder)
    try:
        task_class = _task_class(model, folder, keras_hub)
        with uncompiled():
            with cost.skip_weight_allocation():
                empty = task_class.from_preset(str(folder), load_weights=False)
            check_num_weights(model, empty, weights_bytes)
            if empty.has_task_weights() and not (folder / _HEAD_WEIGHTS).is_file():
                raise _untrained(model, _HEAD_WEIGHTS)
            task = task_class.from_preset(str(folder))
        return _with_preprocessing(model, task, image_size, keras_hub)
    except (*LOAD_ERRORS, ImportError) as error:
        raise ModelError(
            f"model {model} cannot be loaded as a preset of KerasHub {keras_hub.__version__} "
            f"({first_line(error)}); save it again with task.save_to_preset('FOLDER')"
        ) from error


@contextmanager
def uncompiled() -> Iterator[None]:
    """Build networks, also nested ones and tasks of KerasHub, without optimizers and losses."""
    pending = [sys.modules["keras_hub"].models.Task] if "keras_hub" in sys.modules else []
    with ExitStack() as stack:
        ignored = patch.object(keras.Model, "compile_from_config", lambda self, config: None)
        stack.enter_context(ignored)
        while pending:
            task = pending.pop()
            pending += task.__subclasses__()
            if "compile" in vars(task):
                ignored = patch.object(task, "compile", lambda self, *args, **options: None)
                stack.enter_context(ignored)
        yield


def _inspect(model: str, folder: Path) -> int:
    """Check the configs and weights of a preset; return the bytes of its weights."""
    if not (folder / _BACKBONE_WEIGHTS).is_file():
        raise _untrained(model, _BACKBONE_WEIGHTS)
    for path in sorted(folder.glob("*.json")):
        try:
            inspect_network_config(path.read_bytes(), _TRUST)
        except (UnsafeFileError, ValueError) as error:
            raise UnsafeFileError(f"{model} is refused: {path.name}: {error}") from None
    try:
        return sum(inspect_model_file(path, model) for path in sorted(folder.glob("*.h5")))
    except OSError as error:
        raise ModelError(f"model {model} has damaged weights ({first_line(error)})") from error


def _untrained(model: str, missing: str) -> ModelError:
    return ModelError(
        f"model {model} has no {missing}: it is a backbone without a trained head, or stored in "
        "several files; load it in KerasHub as a task with its classes, train it, and save it with "
        "task.save_to_preset('FOLDER')"
    )


def _task_class(model: str, folder: Path, keras_hub: Any) -> Any:
    """Return the class of the preset's task."""
    name = json.loads((folder / PRESET_FILE).read_bytes()).get("registered_name")
    task = keras.saving.get_registered_object(name)
    models = keras_hub.models
    kinds = (models.ImageClassifier, models.ImageSegmenter, models.ObjectDetector)
    if task is None or not issubclass(task, kinds) or issubclass(task, models.SAMImageSegmenter):
        raise ModelError(
            f"model {model} is a {str(name).rpartition('>')[2]} of KerasHub; cvbatch runs image "
            "classifiers, image segmenters without prompts, and object detectors"
        )
    return task


def _with_preprocessing(
    model: str, task: keras.Model, image_size: tuple[int, int] | None, keras_hub: Any
) -> keras.Model:
    """Return a network that scales pixels as the preset's image converter does."""
    if len(task.inputs) != 1:
        raise ModelError(f"model {model} takes {len(task.inputs)} inputs; it must take one image")
    converter = getattr(task.preprocessor, "image_converter", None)
    fixed = tuple(task.inputs[0].shape[1:3])
    size = image_size or (fixed if None not in fixed else getattr(converter, "image_size", None))
    if size is None:
        raise ModelError(f"model {model} accepts any image size; set image_size: [height, width]")
    pixels = keras.Input((*size, task.inputs[0].shape[3]))
    images = pixels
    if converter is not None and (converter.scale is not None or converter.offset is not None):
        scale = 1.0 if converter.scale is None else converter.scale
        offset = 0.0 if converter.offset is None else converter.offset
        images = layers.Rescaling(scale, offset, name="image_converter")(pixels)
    outputs = task(images)
    if isinstance(task, keras_hub.models.ObjectDetector):
        outputs = _Decoding(task)(outputs, images)
    network = keras.Model(pixels, outputs, name=task.name)
    network.expected_resize = _resize_of(converter)
    return network


def _resize_of(converter: Any) -> str:
    """Return the resize mode of a preset's image converter; "" if it does not resize."""
    if converter is None or converter.image_size is None:
        return ""
    if converter.pad_to_aspect_ratio:
        return "letterbox"
    return "crop" if converter.crop_to_aspect_ratio else "stretch"


class _Candidates:
    """Takes the place of a detector's non-maximum suppression, and keeps what it receives."""

    def __init__(self, suppression: Any) -> None:
        self.bounding_box_format = suppression.bounding_box_format

    def __call__(self, boxes: Any, scores: Any, images: Any = None) -> dict[str, Any]:
        self.received = boxes, scores
        return {"boxes": boxes, "confidence": scores}


class _Decoding(keras.layers.Layer):  # type: ignore[misc]  # Keras is untyped
    """Boxes (xyxy in pixels) and scores of all candidates of a detector, from its own decoding."""

    def __init__(self, task: keras.Model) -> None:
        super().__init__(name="decoding")
        # A function, so that the task is no sublayer.
        self._task_of: Callable[[], keras.Model] = lambda: task

    def call(self, raw: Any, images: Any) -> dict[str, Any]:
        """Return `boxes` (B, N, 4) and `scores` (B, N, classes)."""
        task = self._task_of()
        suppression = task.prediction_decoder
        candidates = _Candidates(suppression)
        # The public setter compiles functions.
        with patch.object(task, "_prediction_decoder", candidates):
            task.decode_predictions(raw, images)
        boxes, scores = candidates.received
        corners = keras.utils.bounding_boxes.convert_format(
            boxes,
            source=suppression.bounding_box_format,
            target="xyxy",
            height=images.shape[1],
            width=images.shape[2],
        )
        return {
            "boxes": corners,
            "scores": ops.sigmoid(scores) if suppression.from_logits else scores,
        }
