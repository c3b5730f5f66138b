"""Build HTML as an element tree, so that the standard library escapes all text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

Child = Element | str | None
MAX_NAME = 160  # characters of a name that are shown
_MAX_LARGE = 9  # characters of a figure in large letters
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")


class Section(NamedTuple):
    """A section of the page."""

    key: str  # id of the element, target of the link in the menu
    title: str
    body: Sequence[Element]


class Cell(NamedTuple):
    """A table cell with a number and a bar."""

    text: str
    share: float  # length of the bar, 0..1


def el(tag: str, attributes: Mapping[str, object] | None = None, *children: Child) -> Element:
    """Return an element.

    Args:
        tag: of the element.
        attributes: None and False omit an attribute; True writes it without a value.
        children: elements and text in order; None is skipped.
    """
    texts = {
        key: "" if value is True else _clean(str(value))
        for key, value in (attributes or {}).items()
        if value is not None and value is not False
    }
    element = Element(tag, texts)
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            element.append(child)
            last = child
        elif child is not None:
            text = _clean(child)
            if last is None:
                element.text = (element.text or "") + text
            else:
                last.tail = (last.tail or "") + text
    return element


def _clean(text: str) -> str:
    """Replace the characters that HTML does not allow by U+FFFD."""
    return _FORBIDDEN.sub("\ufffd", text)


def name_element(text: str, max_length: int = MAX_NAME) -> Element:
    """Return an untrusted name, shortened, with its text direction isolated (`<bdi>`)."""
    title = text[:300] if len(text) > max_length else None
    return el("bdi", {"title": title}, shorten(text, max_length))


def shorten(text: str, max_length: int = MAX_NAME) -> str:
    """Replace the middle of a text by "…" if it is longer than `max_length` characters."""
    if len(text) <= max_length:
        return text
    half = (max_length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Child | Cell]], numeric: str = ""
) -> Element:
    """Return a table that scrolls horizontally in its own box, by keyboard too.

    Args:
        caption: of the table.
        head: titles of the columns.
        rows: cells; the first cell of a row is its header.
        numeric: one letter for each column: "n" for numbers, which are aligned right, "t" for text.
    """
    kinds = numeric[: len(head)].ljust(len(head), "t")
    classes = [{"class": "n"} if kind == "n" else None for kind in kinds]
    heads = [el("th", {"scope": "col", **(c or {})}, h) for h, c in zip(head, classes, strict=True)]
    body = el("tbody")
    for row in rows:
        line = el("tr")
        for i, (child, attributes) in enumerate(zip(row, classes, strict=True)):
            tag, scope = ("th", {"scope": "row"}) if i == 0 else ("td", {})
            content = _bar(child) if isinstance(child, Cell) else [child]
            line.append(el(tag, {**scope, **(attributes or {})}, *content))
        body.append(line)
    grid = el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, *heads)), body)
    return el("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": caption},
              grid)  # fmt: skip


def _bar(cell: Cell) -> list[Child]:
    width = round(100 * min(max(cell.share, 0), 1), 2)
    bar = el(
        "svg",
        {
            "class": "bar",
            "viewBox": "0 0 100 8",
            "preserveAspectRatio": "none",
            "aria-hidden": "true",
        },
        el("rect", {"class": "track", "width": "100", "height": "8"}),
        el("rect", {"class": "fill", "width": width, "height": "8"}),
    )
    return [bar, el("span", {"class": "figure"}, cell.text)]


def metric_tiles(metrics: Iterable[tuple[str, str, str]]) -> Element:
    """Return large figures.

    Args:
        metrics: title, value and a note; "" for no note.
    """
    tiles = el("dl", {"class": "tiles"})
    for title, value, note in metrics:
        detail = el("span", {}, note) if note else None
        size = "word" if len(value) > _MAX_LARGE else None
        body = el("dd", {}, el("strong", {"class": size}, value), detail)
        tiles.append(el("div", {}, el("dt", {}, title), body))
    return tiles


def paragraph(*children: Child, kind: str | None = None) -> Element:
    """Return a paragraph; kind: its CSS class, such as "note"."""
    return el("p", {"class": kind}, *children)


def collapsible(title: str, *children: Child) -> Element:
    """Return content that is hidden until the reader opens it (`<details>`)."""
    return el("details", {}, el("summary", {}, title), *children)


def code_block(text: str, label: str) -> Element:
    """Return a text in a fixed-width font, in a box that scrolls by keyboard too."""
    return el("pre", {"tabindex": "0", "role": "region", "aria-label": label}, el("code", {}, text))


def format_count(value: int, noun: str = "", plural: str = "") -> str:
    """Return a number, with its noun in singular or plural: "1,234 images", "1 image"."""
    if not noun:
        return f"{value:,}"
    return f"{value:,} {noun if value == 1 else plural or f'{noun}s'}"


def format_percent(part: int, total: int) -> str:
    """Return `part / total` in per cent; 0 % and 100 % are exact."""
    if not total:
        return "–"
    percent = 100 * part / total
    if 0 < percent < 0.01:
        return "< 0.01 %"
    if part < total and percent > 99.99:
        return "> 99.99 %"
    return f"{percent:.2g} %" if percent < 1 else f"{percent:.4g} %"


def format_bytes(num_bytes: float) -> str:
    """Return a size in bytes, kB, MB or GB (powers of 1000)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.3g} {unit}"


def format_duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours: "12.5 s", "2 min 5 s", "3 h 10 min"."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 90:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
