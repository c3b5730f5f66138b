"""Class names and task of a .keras file, stored as an additional member of its zip archive.

Keras ignores the member. It is read and written without loading Keras, so that checking a job file
is fast.
"""

from __future__ import annotations

import json
import lzma
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from cvbatch.core.errors import ModelError

CARD_MEMBER = "cvbatch.json"
MAX_CARD_BYTES = 4 * 2**20
_ZIP_ERRORS = (  # raised by reading a member of a damaged archive
    zipfile.BadZipFile,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
)
_DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "weights"
DEMO_FILES = {  # zoo name → .keras file of `weights: demo`
    f"demo_{name}": _DEMO_FOLDER / f"{name}.keras"
    for name in ("classifier", "segmenter", "detector")
}

_IMAGENET_FILE = Path(__file__).with_name("imagenet_classes.txt")


@dataclass(frozen=True)
class Card:
    """Class names and task of the network in a .keras file."""

    classes: tuple[str, ...]  # in the order of the network's outputs
    task: str


def write_card(path: str | Path, classes: tuple[str, ...], task: str) -> None:
    """Store class names and task in a .keras file; an earlier card is replaced.

    Args:
        path: local .keras file, replaced atomically.
        classes: names in the order of the network's outputs.
        task: a key of `cvbatch.core.tasks.TASKS`.

    Raises:
        ModelError: `path` is not a .keras file.
    """
    text = json.dumps({"classes": list(classes), "task": task}, ensure_ascii=False)
    try:
        with zipfile.ZipFile(path) as old:
            members = [(m, old.read(m)) for m in old.infolist() if m.filename != CARD_MEMBER]
    except (zipfile.BadZipFile, FileNotFoundError) as error:
        raise _unreadable(path) from error
    temporary = Path(f"{path}.part")
    with zipfile.ZipFile(temporary, "w") as new:
        for member, data in members:
            new.writestr(member, data)
        new.writestr(zipfile.ZipInfo(CARD_MEMBER), text)
    temporary.replace(path)


def read_card(path: str | Path) -> Card | None:
    """Return the card of a .keras file, or None if it has none; other files have none.

    Raises:
        ModelError: a file called .keras is none, or its card is malformed.
    """
    if Path(path).suffix != ".keras":
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if CARD_MEMBER not in archive.namelist():
                return None
            with archive.open(CARD_MEMBER) as member:
                text = member.read(MAX_CARD_BYTES + 1)
    except _ZIP_ERRORS as error:
        raise _unreadable(path) from error
    if len(text) > MAX_CARD_BYTES:
        raise _malformed(path, f"is longer than {MAX_CARD_BYTES:,} bytes")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, "is not JSON") from error
    return _parse(path, content)


def imagenet_classes() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes, in the order of the networks' outputs.

    They are those of `keras.applications`, where crane and maillot each name two classes.
    """
    return tuple(_IMAGENET_FILE.read_text(encoding="utf-8").split())


def _parse(path: str | Path, content: object) -> Card:
    if not isinstance(content, dict):
        raise _malformed(path, "is not a JSON object")
    classes, task = content.get("classes"), content.get("task")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _malformed(path, "has no list of strings under `classes`")
    if not isinstance(task, str):
        raise _malformed(path, "has no string under `task`")
    return Card(tuple(classes), task)


def _unreadable(path: str | Path) -> ModelError:
    return ModelError(
        f"{path} is not a .keras file (a zip archive that Keras 3 writes); "
        "save the model with model.save('NAME.keras') and use that file"
    )


def _malformed(path: str | Path, problem: str) -> ModelError:
    return ModelError(
        f"{CARD_MEMBER} in {path} {problem}; write it again with "
        "cvbatch.models.metadata.write_card(path, classes, task)"
    )
