"""Documents that grow with the result, kept in temporary files until they are whole."""

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
    """Texts one after the other, between which a separator stands; as many as the disk takes."""

    def __init__(self, folder: ExportFolder, separator: str = ",\n") -> None:
        self.count = 0
        self._separator = separator.encode()
        self._file = folder.temporary_file()

    def add(self, text: str) -> None:
        """Add a text. Raises StoreError where this machine has no room for it."""
        try:
            self._file.write((self._separator if self.count else b"") + text.encode())
        except OSError as error:
            raise translate(error, tempfile.gettempdir()) from None
        self.count += 1

    def copy_to(self, file: IO[bytes]) -> None:
        """Write all of it."""
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)


def write_document(folder: ExportFolder, name: str, pieces: Sequence[str | ItemSpool]) -> None:
    """Write a file made of pieces. Raises StoreError where this machine has no room for it."""
    with tempfile.TemporaryFile() as file:
        try:
            for piece in pieces:
                if isinstance(piece, ItemSpool):
                    piece.copy_to(file)
                else:
                    file.write(piece.encode())
            file.flush()
        except OSError as error:
            raise translate(error, tempfile.gettempdir()) from None
        folder.put_file(name, file)


def to_json(value: Any) -> str:
    """Return a value as JSON on one line."""
    return _ENCODER.encode(value)
