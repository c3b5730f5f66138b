"""Read untrusted XML, JSON and text with size limits, and validate the values in them."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NoReturn

from cvbatch.core.errors import AccessDeniedError, ConfigError, NotFoundError, SourceError
from cvbatch.storage import store
from cvbatch.storage.store import Storage

MAX_XML_BYTES = 16 << 20  # annotation of one image
MAX_JSON_BYTES = 2 << 30
MAX_LIST_BYTES = 256 << 20


def read_xml(storage: Storage, uri: str) -> ET.Element:
    """Return the root of an XML document.

    Raises:
        SourceError: the document cannot be read, is too large, is not XML, or contains a DOCTYPE
            (so that entities are never expanded).
    """
    data = _read(storage, uri, MAX_XML_BYTES)
    parser = ET.XMLParser(target=_TreeWithoutDoctype(uri))
    try:
        parser.feed(data)
        root: ET.Element = parser.close()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise SourceError(f"{uri} is not XML ({error}); fix or remove it") from None
    return root


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

    Raises:
        SourceError: the document cannot be read, is too large, or is not JSON; NaN and Infinity
            are not allowed.
    """
    data = _read(storage, uri, MAX_JSON_BYTES)
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{uri} is not JSON ({_shorten(str(error))}); fix it") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def read_lines(storage: Storage, uri: str) -> list[str]:
    """Return the first word of every line; empty lines and comments (#) are skipped.

    Raises:
        SourceError: the file cannot be read, is too large, or is not UTF-8.
    """
    text = _read_text(storage, uri, MAX_LIST_BYTES)
    words = (line.split(maxsplit=1)[:1] for line in text.splitlines())
    return [word[0] for word in words if word and not word[0].startswith("#")]


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
        parts = _read_text(storage, text, MAX_XML_BYTES).strip("\n").splitlines()
    else:
        parts = text.split(",")
    names = tuple(name.strip() for name in parts)
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if not all(names) or repeated:
        is_repeated = bool(repeated and repeated[0])
        reason = f"{repeated[0]!r} is listed twice" if is_repeated else "a name is empty"
        raise ConfigError(
            f"classes {_shorten(text)!r}: {reason}; use different names a,b,c or a .txt file"
        )
    return names


def _read_text(storage: Storage, uri: str, max_bytes: int) -> str:
    try:
        return _read(storage, uri, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError(f"{uri} is not UTF-8 text; convert it") from None


def _read(storage: Storage, uri: str, max_bytes: int) -> bytes:
    try:
        return storage.read_bytes(uri, max_bytes)
    except (NotFoundError, AccessDeniedError, store.TooLargeError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None


def finite_number(value: object, where: str) -> float:
    """Return a JSON value as a finite number.

    Args:
        value: the JSON value.
        where: its place in the document, for the error message.

    Raises:
        SourceError: the value is not a finite number.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        result = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        result = math.nan
    if not math.isfinite(result):
        raise SourceError(f"{where} is {_shorten(repr(value))}; it must be a finite number")
    return result


def parse_number(text: str | None, where: str) -> float:
    """Return the finite number in a text. Raises SourceError if it is not a number."""
    try:
        return finite_number(float(text or ""), where)
    except ValueError:
        raise SourceError(f"{where} is {_shorten(repr(text))}; it must be a number") from None


def finite_numbers(value: object, count: int, where: str) -> list[float]:
    """Return a list of `count` finite numbers. Raises SourceError if the value is not one."""
    if not isinstance(value, list) or len(value) != count:
        raise SourceError(f"{where} is {_shorten(repr(value))}; it must be {count} numbers")
    return [finite_number(item, where) for item in value]


def non_negative_int(value: object, where: str) -> int:
    """Return a whole number of 0 or more. Raises SourceError if the value is not one."""
    result = finite_number(value, where)
    if result < 0 or result != int(result) or result > 2**53:
        raise SourceError(
            f"{where} is {_shorten(repr(value))}; it must be a whole number of 0 or more"
        )
    return int(result)


def non_empty_text(value: object, where: str) -> str:
    """Return a string that is not blank. Raises SourceError if the value is not one."""
    if not isinstance(value, str) or not value.strip():
        raise SourceError(f"{where} is {_shorten(repr(value))}; it must be a non-empty name")
    _check_unicode(value, where)
    return value.strip()


def relative_path(value: object, where: str) -> str:
    """Return a path below the folder of images.

    Raises:
        SourceError: the path is absolute, a URI, or contains "..".
    """
    name = non_empty_text(value, where)
    path = PurePosixPath(name)
    is_invalid = any(text in name for text in ("\0", "\\", "://"))
    if is_invalid or path.is_absolute() or ".." in path.parts or not path.parts:
        raise SourceError(
            f"{where} is {_shorten(repr(value))}; it must be a path below the folder of images"
        )
    return str(path)


def _check_unicode(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SourceError(f"{where} is {_shorten(ascii(value))}, which is not Unicode") from None


def list_of_objects(value: object, key: str, uri: str) -> Sequence[dict[str, Any]]:
    """Return the list of objects under a key of a JSON document.

    Raises:
        SourceError: the document is not an object, or has no list of objects under the key.
    """
    items = value.get(key) if isinstance(value, dict) else None
    if not isinstance(items, list):
        raise SourceError(f"{uri} has no list {key!r}; it is not a COCO annotation file")
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise SourceError(f"{uri}: {key}[{i}] is {_shorten(repr(item))}; it must be an object")
    return items


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:97]}..."
