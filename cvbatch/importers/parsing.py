"""Read untrusted XML, JSON and text with size limits, and validate the values in them."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

from cvbatch.core.errors import AccessDeniedError, ConfigError, NotFoundError, SourceError
from cvbatch.storage import store
from cvbatch.storage.store import Storage

_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_XML_ENCODING = re.compile(
    rb"""\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']"""
)
MAX_XML_BYTES = 16 << 20  # annotation of one image
MAX_JSON_BYTES = 2 << 30
MAX_LIST_BYTES = 256 << 20
_MAX_ID_DIGITS = 4000  # Python converts no longer texts to numbers


def read_xml(storage: Storage, uri: str) -> ET.Element:
    """Return the root of an XML document.

    Raises:
        SourceError: the document cannot be read, is too large, is not XML, or contains a DOCTYPE
            (so that entities are never expanded).
    """
    data = read_bytes(storage, uri, MAX_XML_BYTES)
    try:
        # As text, because expat reads few encodings itself. The parser ignores the declaration.
        text = _decode_xml(data)
        parser = ET.XMLParser(target=_TreeWithoutDoctype(uri), encoding="utf-8")
        parser.feed(text.encode())
        root: ET.Element = parser.close()
    except UnicodeError:
        raise SourceError(
            f"{uri} is not text of its encoding (default: UTF-8); declare the right one"
        ) from None
    except (ET.ParseError, ValueError, LookupError) as error:
        raise SourceError(f"{uri} is not XML ({error}); fix or remove it") from None
    return root


def _decode_xml(data: bytes) -> str:
    """Return the text of an XML document, by its byte order mark or its declaration.

    Raises:
        LookupError: the declared encoding is not known.
        UnicodeError: the bytes are not text of the encoding.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    for head, encoding in ((b"<\0", "utf-16-le"), (b"\0<", "utf-16-be")):
        if data.startswith(head):
            return data.decode(encoding)
    declared = _XML_ENCODING.match(data)
    encoding = declared[1].decode() if declared else "utf-8"
    # The declaration was read as ASCII, so it cannot be UTF-16: a text that was converted later.
    is_wrong = encoding.lower().startswith(("utf-16", "utf16", "ucs-2", "utf-32"))
    text = data.decode("utf-8" if is_wrong else encoding)
    if not isinstance(text, str):
        raise LookupError(f"{encoding} is not a text encoding")
    return text


class _TreeWithoutDoctype(ET.TreeBuilder):
    """Builds elements; raises on a DOCTYPE, before any entity is expanded."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        """Raise SourceError; the parser calls this at a DOCTYPE, before the content."""
        raise SourceError(
            f"{self._uri} declares a DOCTYPE, which is not allowed because it can define entities "
            "that expand without limit; remove it"
        )


def read_json(storage: Storage, uri: str) -> Any:
    """Return the value of a JSON document.

    NaN and Infinity, which Python writes although JSON has no such numbers, are read.

    Raises:
        SourceError: the document cannot be read, is too large, or is not JSON.
    """
    data = read_bytes(storage, uri, MAX_JSON_BYTES)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{uri} is not JSON ({shorten(str(error))}); fix it") from None


def read_text_lines(storage: Storage, uri: str) -> list[str]:
    """Return the lines of a text file.

    Raises:
        SourceError: the file cannot be read, is too large, or is not UTF-8.
    """
    return read_text(storage, uri, MAX_LIST_BYTES).splitlines()


def read_class_names(storage: Storage, text: str) -> tuple[str, ...]:
    """Return the class names of a command line argument.

    Args:
        storage: reads the file.
        text: `a,b,c`, or the path or URI of a .txt file with one name per line.

    Raises:
        ConfigError: a name is empty or repeated.
        SourceError: the file cannot be read.
    """
    if text.lower().endswith(".txt"):
        parts = read_text(storage, text, MAX_XML_BYTES).strip("\n").splitlines()
    else:
        parts = text.split(",")
    names = tuple(name.strip() for name in parts)
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if not all(names) or repeated:
        is_repeated = bool(repeated and repeated[0])
        reason = f"{repeated[0]!r} is listed twice" if is_repeated else "a name is empty"
        raise ConfigError(
            f"classes {shorten(text)!r}: {reason}; use different names a,b,c or a .txt file"
        )
    return names


def read_text(storage: Storage, uri: str, max_bytes: int) -> str:
    """Return the text of a file: UTF-8, or UTF-16 with its byte order mark, as Excel writes it.

    Raises:
        SourceError: it cannot be read, is too large, or has another encoding.
    """
    data = read_bytes(storage, uri, max_bytes)
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise SourceError(f"{uri} is not UTF-8 text; convert it") from None


def read_bytes(storage: Storage, uri: str, max_bytes: int) -> bytes:
    """Return the bytes of a file. Raises SourceError if it cannot be read or is too large."""
    try:
        return storage.read_bytes(uri, max_bytes)
    except (NotFoundError, AccessDeniedError, store.TooLargeError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None


def to_number(value: object) -> float:
    """Return a JSON value or a text as a finite number; NaN if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        result = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return result if math.isfinite(result) else math.nan


def to_key(value: object) -> int | str | None:
    """Return the id of an object: 1, 1.0 and "1" are the same id; None: the value is not an id."""
    if isinstance(value, str):
        text = value.strip()
        is_whole = text.removeprefix("-").isdecimal() and len(text) < _MAX_ID_DIGITS
        return int(text) if is_whole and str(int(text)) == text else text or None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = to_number(value)
    return int(value) if number == number // 1 else None


def non_empty_text(value: object, where: str) -> str:
    """Return a string that is not blank. Raises SourceError if the value is not one."""
    if not isinstance(value, str) or not value.strip():
        raise SourceError(f"{where} is {shorten(repr(value))}; it must be a non-empty name")
    if not is_unicode(value):
        raise SourceError(f"{where} is {shorten(ascii(value))}, which is not Unicode")
    return value.strip()


def is_unicode(text: str) -> bool:
    """Return whether a text can be stored; JSON allows single surrogates, Parquet does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_under(value: object, key: str, uri: str) -> list[Any]:
    """Return the list under a key of a JSON document.

    Raises:
        SourceError: the document is not an object, or has no list under the key.
    """
    items = value.get(key) if isinstance(value, dict) else None
    if not isinstance(items, list):
        raise SourceError(f"{uri} has no list {key!r}; it is not a COCO annotation file")
    return items


def list_of_objects(value: object, key: str, uri: str) -> Sequence[dict[str, Any]]:
    """Return the list of objects under a key of a JSON document.

    Raises:
        SourceError: the document is not an object, or has no list of objects under the key.
    """
    items = list_under(value, key, uri)
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise SourceError(f"{uri}: {key}[{i}] is {shorten(repr(item))}; it must be an object")
    return items


def shorten(text: str) -> str:
    """Return a text of at most 100 characters on one line, for a message."""
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:97]}..."
