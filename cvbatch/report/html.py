"""The pieces a page is made of, as a tree: the standard library escapes what stands in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

Child = Element | str | None
MAX_NAME = 160  # characters of a name that are shown
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")


class Section(NamedTuple):
    """A part of the page with its heading, and a word for the menu."""

    key: str
    title: str
    body: Sequence[Element]


class Cell(NamedTuple):
    """A cell of a table whose figure has a length too."""

    text: str
    share: float  # 0..1, drawn as a bar


def el(tag: str, attributes: Mapping[str, object] | None = None, *children: Child) -> Element:
    """Return an element. Attributes that are None are left out, True stands without a value."""
    said = {
        key: "" if value is True else _clean(str(value))
        for key, value in (attributes or {}).items()
        if value is not None and value is not False
    }
    made = Element(tag, said)
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            made.append(child)
            last = child
        elif child is not None:
            text = _clean(child)
            if last is None:
                made.text = (made.text or "") + text
            else:
                last.tail = (last.tail or "") + text
    return made


def _clean(text: str) -> str:
    """Return the text with a mark for each sign that no page may hold."""
    return _CONTROL.sub("\ufffd", text)


def name_element(text: str, most: int = MAX_NAME) -> Element:
    """Return a name from outside, its direction of writing kept inside, too long ones cut."""
    return el("bdi", {"title": text[:300] if len(text) > most else None}, shorten(text, most))


def shorten(text: str, most: int = MAX_NAME) -> str:
    """Return the text, its middle left out where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Child | Cell]], numeric: str = ""
) -> Element:
    """Return a table that scrolls sideways by itself, and by keyboard.

    numeric: a letter a column, "n" where it holds figures.
    """
    kinds = numeric[: len(head)].ljust(len(head), "t")
    classes = [{"class": "n"} if kind == "n" else None for kind in kinds]
    heads = [el("th", {"scope": "col", **(c or {})}, h) for h, c in zip(head, classes, strict=True)]
    body = el("tbody")
    for row in rows:
        line = el("tr")
        for place, (child, attributes) in enumerate(zip(row, classes, strict=True)):
            tag, scope = ("th", {"scope": "row"}) if place == 0 else ("td", {})
            filled = _bar(child) if isinstance(child, Cell) else [child]
            line.append(el(tag, {**scope, **(attributes or {})}, *filled))
        body.append(line)
    made = el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, *heads)), body)
    return el("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": caption},
              made)  # fmt: skip


def _bar(cell: Cell) -> list[Child]:
    width = round(100 * min(max(cell.share, 0), 1), 2)
    drawn = el(
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
    return [drawn, el("span", {"class": "figure"}, cell.text)]


def metric_tiles(figures: Iterable[tuple[str, str, str]]) -> Element:
    """Return large figures: what, how much, and a word more."""
    made = el("dl", {"class": "metric_tiles"})
    for what, value, more in figures:
        made.append(
            el(
                "div",
                {},
                el("dt", {}, what),
                el("dd", {}, el("strong", {}, value), el("span", {}, more) if more else None),
            )
        )
    return made


def paragraph(*children: Child, kind: str | None = None) -> Element:
    """Return a paragraph; kind: "note" where it says what to keep in mind."""
    return el("p", {"class": kind}, *children)


def collapsible(title: str, *children: Child) -> Element:
    """Return what is shown on demand."""
    return el("details", {}, el("summary", {}, title), *children)


def code_block(text: str, label: str) -> Element:
    """Return a file's text as it is, in a box that scrolls by keyboard."""
    return el("pre", {"tabindex": "0", "role": "region", "aria-label": label}, el("code", {}, text))


def format_count(value: int, noun: str = "") -> str:
    """Return "1,234 images", "1 image"."""
    if not noun:
        return f"{value:,}"
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def format_percent(part: int, whole: int) -> str:
    """Return a part in per cent, with as many digits as it takes to be seen."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.01:
        return "< 0.01 %"
    if part < whole and percent > 99.99:
        return "> 99.99 %"
    return f"{percent:.2g} %" if percent < 1 else f"{percent:.4g} %"


def format_bytes(num_bytes: float) -> str:
    """Return a size in bytes, kB, MB, GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.3g} {unit}"


def format_duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 90:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
