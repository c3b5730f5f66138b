"""Read labelmap.txt, the class names and colours of masks that CVAT and Datumaro write.

Each line is `name:r,g,b:parts:actions`; lines that begin with # are comments.

Source: docs.cvat.ai, formats Pascal VOC and Segmentation mask; Datumaro, plugins/data_formats/voc.
"""

from __future__ import annotations

from typing import NamedTuple

from cvbatch.core.errors import SourceError
from cvbatch.core.types import MAX_MASK_CLASSES
from cvbatch.importers.mask_files import Colour
from cvbatch.importers.parsing import read_text_lines, shorten
from cvbatch.storage.store import Storage

LABELMAP = "labelmap.txt"


class LabelMap(NamedTuple):
    """Class names by id, and the class id of each colour."""

    names: tuple[str, ...]
    colours: dict[Colour, int]


def read_labelmap(storage: Storage, uri: str) -> LabelMap:
    """Return the classes and colours of a labelmap.txt, in the order of its lines.

    Raises:
        SourceError: it cannot be read, a line has no name or no colour, or a name or colour occurs
            twice.
    """
    names: list[str] = []
    colours: dict[Colour, int] = {}
    for number, line in enumerate(read_text_lines(storage, uri), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *rest = line.split(":")
        colour = _parse_colour(rest[0]) if rest else None
        where = f"{uri}, line {number}: {shorten(repr(line))}"
        if not name.strip() or colour is None:
            raise SourceError(f"{where} must be name:red,green,blue:parts:actions")
        if name.strip() in names or colour in colours:
            raise SourceError(f"{where} repeats a name or a colour; remove one of the two")
        colours[colour] = len(names)
        names.append(name.strip())
    if not names or len(names) > MAX_MASK_CLASSES:
        raise SourceError(
            f"{uri} has {len(names)} classes; it must have from 1 to {MAX_MASK_CLASSES}"
        )
    return LabelMap(tuple(names), colours)


def _parse_colour(text: str) -> Colour | None:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isdecimal() and int(part[:4]) <= 255 for part in parts):
        return None
    red, green, blue = map(int, parts)
    return red, green, blue
