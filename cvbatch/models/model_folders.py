"""Load the network of an untrusted model folder: a SavedModel or a KerasHub preset."""

from __future__ import annotations

from pathlib import Path

from cvbatch.core.errors import ModelError
from cvbatch.core.model_formats import PRESET_FILE
from cvbatch.models import hub_presets, saved_model
from cvbatch.models.frameworks import keras


def load_folder(model: str, folder: Path, image_size: tuple[int, int] | None = None) -> keras.Model:
    """Return the network of a folder.

    Args:
        model: folder as the user named it, for messages.
        folder: private copy.
        image_size: (height, width) in pixels of the input of a preset that accepts several.

    Raises:
        ModelError: it is neither a SavedModel nor a preset, or cannot be loaded.
    """
    if (folder / saved_model.FILE).is_file():
        return saved_model.load_saved_model(model, folder)
    if (folder / PRESET_FILE).is_file():
        return hub_presets.load_preset(model, folder, image_size)
    names = sorted(path.name for path in folder.iterdir())
    raise ModelError(
        f"model folder {model} is neither a SavedModel (with {saved_model.FILE}) nor a KerasHub "
        f"preset of a task (with {PRESET_FILE}); it contains {', '.join(names[:8])}"
    )
