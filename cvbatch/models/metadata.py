"""A .keras file says what it computes but not what its classes are called; a card does.

The card is one more member of the .keras zip, which Keras passes over. This module reads and
writes it without loading Keras, so that a job file is checked in a moment.
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
_ZIP_ERRORS = (  # what reading a member of a damaged archive, or of an odd one, raises
    zipfile.BadZipFile,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
)
_DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "weights"
DEMO_FILES = {  # zoo name → the .keras file that `weights: demo` stands for
    f"demo_{name}": _DEMO_FOLDER / f"{name}.keras"
    for name in ("classifier", "segmenter", "detector")
}


@dataclass(frozen=True)
class Card:
    """What a .keras file's network is for."""

    classes: tuple[str, ...]  # in the order of the network's outputs
    task: str


def write_card(path: str | Path, classes: tuple[str, ...], task: str) -> None:
    """Put a card into a .keras file, in place of one that is there; the other members stay.

    Raises:
        ModelError: `path` is not a .keras file.
    """
    text = json.dumps({"classes": list(classes), "task": task}, ensure_ascii=False)
    try:
        with zipfile.ZipFile(path) as old:
            members = [(m, old.read(m)) for m in old.infolist() if m.filename != CARD_MEMBER]
    except (zipfile.BadZipFile, FileNotFoundError) as error:
        raise _unreadable(path) from error
    beside = Path(f"{path}.part")
    with zipfile.ZipFile(beside, "w") as new:
        for member, data in members:
            new.writestr(member, data)
        new.writestr(zipfile.ZipInfo(CARD_MEMBER), text)
    beside.replace(path)


def read_card(path: str | Path) -> Card | None:
    """Return the card of a .keras file, or None where it has none.

    Raises:
        ModelError: `path` is not a .keras file, or its card is not what `write_card` writes.
    """
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


def _parse(path: str | Path, content: object) -> Card:
    if not isinstance(content, dict):
        raise _malformed(path, "is not a JSON object")
    classes, task = content.get("classes"), content.get("task")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _malformed(path, "has no list of names under `classes`")
    if not isinstance(task, str):
        raise _malformed(path, "has no text under `task`")
    return Card(tuple(classes), task)


def _unreadable(path: str | Path) -> ModelError:
    return ModelError(
        f"{path} is not a .keras file (a zip archive that Keras 3 writes); "
        "save the model with model.save('NAME.keras') and name that file"
    )


def _malformed(path: str | Path, fault: str) -> ModelError:
    return ModelError(
        f"{CARD_MEMBER} in {path} {fault}; write it again with "
        "cvbatch.models.metadata.write_card(path, classes, task)"
    )
