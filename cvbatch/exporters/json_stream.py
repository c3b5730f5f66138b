"""Documents that grow with the result, kept in temporary files until they are whole."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from typing import IO, Any

from cvbatch.exporters.folder import Folder
from cvbatch.storage.retry import translate

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class Items:
    """Texts one after the other, between which a separator stands; as many as the disk takes."""

    def __init__(self, folder: Folder, separator: str = ",\n") -> None:
        self.count = 0
        self._separator = separator.encode()
        self._file = folder.scratch()

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


def put_document(folder: Folder, name: str, pieces: Sequence[str | Items]) -> None:
    """Write a file made of pieces. Raises StoreError where this machine has no room for it."""
    with tempfile.TemporaryFile() as file:
        try:
            for piece in pieces:
                if isinstance(piece, Items):
                    piece.copy_to(file)
                else:
                    file.write(piece.encode())
            file.flush()
        except OSError as error:
            raise translate(error, tempfile.gettempdir()) from None
        folder.put_long(name, file)


def plain(value: Any) -> str:
    """Return a value as JSON on one line."""
    return _ENCODER.encode(value)
