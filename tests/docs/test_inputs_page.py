"""docs/inputs.md lists exactly the formats, suffixes and options that the code has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from cvbatch.config.decoding import BIT_DEPTHS
from cvbatch.images.bit_depth import _MAX_SAMPLED, PERCENTILES
from cvbatch.images.headers import READERS
from cvbatch.images.options import ColorMode, Limits
from cvbatch.images.signatures import IMAGE_SUFFIXES, SUFFIXES

PAGE = (Path(__file__).parents[2] / "docs/inputs.md").read_text()
SECTION = re.split(r"^## ", PAGE.partition("## Image files\n")[2], flags=re.MULTILINE)[0]


def rows(header: str) -> list[list[str]]:
    """Return the cells of the table with this header."""
    table = SECTION.partition(f"\n{header}")[2].split("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n")[2:]]


def test_formats_and_suffixes() -> None:
    listed = {row[0]: tuple(row[1].split(", ")) for row in rows("| format | suffixes")}
    assert listed == SUFFIXES
    assert set(listed) == set(READERS)
    assert sorted(IMAGE_SUFFIXES) == sorted(s for suffixes in listed.values() for s in suffixes)


def test_bit_depths() -> None:
    listed = [re.findall(r"`([^`]*)`", row[0])[0] for row in rows("| `bit_depth` | map")]
    assert listed == [*BIT_DEPTHS, "{min: X, max: Y}"]
    assert f"{_MAX_SAMPLED:,} evenly spaced" in SECTION
    assert PERCENTILES == (1, 99) and "the 1st percentile" in SECTION and "the 99th" in SECTION
    assert f"`{Limits().bit_depth}` (default)" in SECTION


def test_colour_modes() -> None:
    listed = [re.findall(r"`([^`]*)`", row[0])[0] for row in rows("| `source.color` |")]
    assert tuple(listed) == get_args(ColorMode)
    assert f"`{Limits().color}` (default)" in SECTION
