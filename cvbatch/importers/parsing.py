"""Reads what strangers wrote: XML, JSON, lists, names; each bounded, each refused in a sentence."""

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

MAX_XML_BYTES = 16 << 20  # of one image's annotation
MAX_JSON_BYTES = 2 << 30
MAX_LIST_BYTES = 256 << 20


def read_xml(storage: Storage, uri: str) -> ET.Element:
    """Return the root of an XML document. Entities and DTDs are refused, not expanded.

    Raises:
        SourceError: it cannot be read, is too large, is not XML, or carries a DOCTYPE.
    """
    data = _read(storage, uri, MAX_XML_BYTES)
    parser = ET.XMLParser(target=_PlainTree(uri))
    try:
        parser.feed(data)
        root: ET.Element = parser.close()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise SourceError(f"{uri} is not XML ({error}); mend it or take it away") from None
    return root


class _PlainTree(ET.TreeBuilder):
    """Builds elements; a document that declares anything is refused before it is expanded."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        """Refuse. Called by the parser at a DOCTYPE, ahead of all content."""
        raise SourceError(
            f"{self._uri} declares a DOCTYPE, which an annotation has no need of and which can "
            "hold a bomb; take it out"
        )


def read_json(storage: Storage, uri: str) -> Any:
    """Return a JSON document as plain values.

    Raises:
        SourceError: it cannot be read, is too large, or is not JSON; NaN and Infinity are not.
    """
    data = _read(storage, uri, MAX_JSON_BYTES)
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{uri} is not JSON ({_short(str(error))}); mend it") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def read_lines(storage: Storage, uri: str) -> list[str]:
    """Return the first word of every line that has one and is no comment (#).

    Raises:
        SourceError: it cannot be read, is too large, or is not UTF-8.
    """
    text = _text(storage, uri, MAX_LIST_BYTES)
    words = (line.split(maxsplit=1)[:1] for line in text.splitlines())
    return [word[0] for word in words if word and not word[0].startswith("#")]


def read_names(storage: Storage, text: str) -> tuple[str, ...]:
    """Return class names said on the command line: `a,b,c`, or the .txt file of one name a line.

    Raises:
        ConfigError: there is none, one twice, or an empty one.
        SourceError: the file cannot be read.
    """
    is_file = text.lower().endswith(".txt")
    said = (
        _text(storage, text, MAX_XML_BYTES).strip("\n").splitlines() if is_file else text.split(",")
    )
    names = tuple(name.strip() for name in said)
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if not all(names) or twice:
        fault = f"{twice[0]!r} stands there twice" if twice and twice[0] else "a name is empty"
        raise ConfigError(f"the classes {_short(text)!r}: {fault}; write a,b,c or name a .txt file")
    return names


def _text(storage: Storage, uri: str, max_bytes: int) -> str:
    try:
        return _read(storage, uri, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError(f"{uri} is not text in UTF-8; convert it") from None


def _read(storage: Storage, uri: str, max_bytes: int) -> bytes:
    try:
        return storage.read_bytes(uri, max_bytes)
    except (NotFoundError, AccessDeniedError, store.TooLargeError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None


def number(value: object, where: str) -> float:
    """Return a finite number that a document gives.

    Raises:
        SourceError: it is something else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        found = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        found = math.nan
    if not math.isfinite(found):
        raise SourceError(f"{where} is {_short(repr(value))}; it must be a finite number")
    return found


def number_in(text: str | None, where: str) -> float:
    """Return the finite number that a text is. Raises SourceError where it is none."""
    try:
        return number(float(text or ""), where)
    except ValueError:
        raise SourceError(f"{where} is {_short(repr(text))}; it must be a number") from None


def numbers(value: object, count: int, where: str) -> list[float]:
    """Return `count` finite numbers. Raises SourceError where there are others."""
    if not isinstance(value, list) or len(value) != count:
        raise SourceError(f"{where} is {_short(repr(value))}; it must be {count} numbers")
    return [number(item, where) for item in value]


def whole(value: object, where: str) -> int:
    """Return a whole number, 0 or more. Raises SourceError where it is something else."""
    found = number(value, where)
    if found < 0 or found != int(found) or found > 2**53:
        raise SourceError(f"{where} is {_short(repr(value))}; it must be a whole number")
    return int(found)


def text_of(value: object, where: str) -> str:
    """Return a string that says something. Raises SourceError where it is something else."""
    if not isinstance(value, str) or not value.strip():
        raise SourceError(f"{where} is {_short(repr(value))}; it must be a name")
    _check_unicode(value, where)
    return value.strip()


def relative_name(value: object, where: str) -> str:
    """Return the name of a file below its folder, as a document says it.

    Raises:
        SourceError: it leads elsewhere: absolute, a URI, or upwards.
    """
    name = text_of(value, where)
    path = PurePosixPath(name)
    is_odd = any(sign in name for sign in ("\0", "\\", "://"))
    if is_odd or path.is_absolute() or ".." in path.parts or not path.parts:
        raise SourceError(
            f"{where} is {_short(repr(value))}; it must be the name of a file below the folder of "
            "images"
        )
    return str(path)


def _check_unicode(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SourceError(f"{where} is {_short(ascii(value))}, which is not Unicode") from None


def objects(value: object, key: str, uri: str) -> Sequence[dict[str, Any]]:
    """Return the list of objects a JSON document has under a key.

    Raises:
        SourceError: the document, the list or one of its items is something else.
    """
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise SourceError(f"{uri} has no list {key!r}; it is not a COCO annotation file")
    for i, item in enumerate(found):
        if not isinstance(item, dict):
            raise SourceError(f"{uri}: {key}[{i}] is {_short(repr(item))}; it must be an object")
    return found


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:97]}..."
