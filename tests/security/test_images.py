"""No image file whatever crashes, hangs or fills a process; each comes to pixels or a failure."""

from __future__ import annotations

from typing import Any

import pytest

from tests.security import decoding, images
from tests.security.bounded import run_module

KINDS = {"empty", "not_an_image", "unsupported", "too_large", "truncated", "corrupt"}
# The pixels as a decoder and its array hold them, of 16 bits and four channels at the most, and
# what is laid out from them.
MEMORY_LIMIT = 3 * 8 * images.PIXEL_LIMIT


@pytest.fixture(scope="module")
def forwards() -> dict[str, Any]:
    return run_module("decoding")


def test_no_files_no_bytes() -> None:
    assert list(images.cut_files({})) == list(images.flipped_files({})) == []
    assert decoding.outcome(b"").startswith("decode/empty")


def test_every_file_comes_to_pixels_or_a_failure_that_says_why(forwards: dict[str, Any]) -> None:
    said = forwards["said"]
    assert list(said) == [name for name, _ in images.malformed_files()]
    assert len(said) >= 5_000
    for name, outcome in said.items():
        if not outcome.startswith("ok "):
            where, _, why = outcome.partition(": ")
            stage, kind = where.split("/")
            assert (stage, kind in KINDS) == ("decode", True), (name, outcome)
            assert why.isascii() and why.isprintable() and 10 <= len(why) <= 300, (name, outcome)


def test_memory_stays_under_the_limit_and_nothing_takes_long(forwards: dict[str, Any]) -> None:
    assert forwards["grown"] < MEMORY_LIMIT, forwards["largest"]
    assert forwards["slowest"][0][1] < decoding.FILE_LIMIT_S / 2, forwards["slowest"]


def test_the_same_bytes_give_the_same_row_whatever_came_before(forwards: dict[str, Any]) -> None:
    assert run_module("decoding", "reverse")["said"] == forwards["said"]


def test_a_cut_file_gives_all_its_pixels_or_none(forwards: dict[str, Any]) -> None:
    whole = {name: decoding.outcome(data) for name, data in images.originals().items()}
    assert all(outcome.startswith(("ok 15x12 ", "ok 12x15 ")) for outcome in whole.values()), whole
    num_cut = 0
    for name, outcome in forwards["said"].items():
        part, _, rest = name.partition("/")
        if part == "cut":
            num_cut += 1
            if outcome.startswith("ok "):
                assert outcome == whole[rest.partition("-")[2]], name
    assert num_cut > 2_000


def test_what_a_header_claims_in_vain_is_not_made_up(forwards: dict[str, Any]) -> None:
    for name, outcome in forwards["said"].items():
        is_claim = name.startswith("lying/") and "of-type" not in name
        if is_claim and name.endswith((".png", ".jpg", "plain.bmp", "plain.tif")):
            assert outcome.startswith(("decode/", "ok 15x12 ")), (name, outcome)


def test_a_bomb_is_refused_at_the_limit_and_read_below_it(forwards: dict[str, Any]) -> None:
    said = {name: outcome for name, outcome in forwards["said"].items() if "bomb/" in name}
    assert sum(outcome.startswith("ok 1400x1400 ") for outcome in said.values()) >= 8
    for name, outcome in said.items():
        if name.startswith(("bomb/1500", "bomb/13000", "bomb/16383")) and "samples" not in name:
            assert "decode/too_large" in outcome and "over the limit of 2000000" in outcome, name
    assert said["bomb/scans.jpg"].startswith("decode/too_large: 20009 scans")
    assert said["bomb/tags-big.tif"].startswith("decode/corrupt: the TIFF has 100000 tags")


def test_other_endings_and_trailing_bytes_do_not_matter(forwards: dict[str, Any]) -> None:
    said = forwards["said"]
    for name, data in images.originals().items():
        whole = decoding.outcome(data)
        renamed = next(other for other in said if other.startswith(f"wrong/{name}."))
        assert said[renamed] == whole
        assert said[f"wrong/tail-{name}"] == whole, name
