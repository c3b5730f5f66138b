"""Stream large JSON documents through temporary files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from typing import IO, Any

from cvbatch.exporters.folder import ExportFolder
from cvbatch.storage.retry import translate

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class ItemSpool:
    """Append-only list of texts with separators, in a temporary file."""

    def __init__(self, folder: ExportFolder, separator: str = ",\n") -> None:
        self.count = 0
        self._separator = separator.encode()
        self._file = folder.temporary_file()

    def add(self, text: str) -> None:
        """Append a text. Raises StoreError if the local disk is full."""
        try:
            self._file.write((self._separator if self.count else b"") + text.encode())
        except OSError as error:
            raise translate(error, tempfile.gettempdir()) from None
        self.count += 1

    def copy_to(self, file: IO[bytes]) -> None:
        """Copy the texts to a file."""
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)


def write_document(folder: ExportFolder, name: str, parts: Sequence[str | ItemSpool]) -> None:
    """Write a file, the concatenation of its parts. Raises StoreError if the local disk is full."""
    with tempfile.TemporaryFile() as file:
        try:
            for part in parts:
                if isinstance(part, ItemSpool):
                    part.copy_to(file)
                else:
                    file.write(part.encode())
            file.flush()
        except OSError as error:
            raise translate(error, tempfile.gettempdir()) from None
        folder.put_file(name, file)


def to_json(value: Any) -> str:
    """Return a value as JSON on one line; NaN and infinity raise ValueError."""
    return _ENCODER.encode(value)
