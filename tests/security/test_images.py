"""Malformed images never crash, block or exhaust a process: each gives pixels or a failure."""

from __future__ import annotations

from typing import Any

import pytest

from tests.security import decoding, images
from tests.security.bounded import run_module

pytestmark = pytest.mark.process

KINDS = {"empty", "not_an_image", "unsupported", "too_large", "truncated", "corrupt"}
# The pixels in a decoder and in its array, with at most 16 bits and four channels, and the resized
# copies.
MEMORY_LIMIT = 3 * 8 * images.PIXEL_LIMIT


@pytest.fixture(scope="module")
def forwards() -> dict[str, Any]:
    return run_module("decoding")


def test_no_files_give_no_variants() -> None:
    assert list(images.cut_files({})) == list(images.flipped_files({})) == []
    assert decoding.outcome(b"").startswith("decode/empty")


def test_every_file_gives_pixels_or_a_failure_with_a_reason(forwards: dict[str, Any]) -> None:
    outcomes = forwards["outcomes"]
    assert list(outcomes) == [name for name, _ in images.malformed_files()]
    assert len(outcomes) >= 5_000
    for name, outcome in outcomes.items():
        if not outcome.startswith("ok "):
            location, _, reason = outcome.partition(": ")
            stage, kind = location.split("/")
            assert (stage, kind in KINDS) == ("decode", True), (name, outcome)
            assert reason.isascii() and reason.isprintable() and 10 <= len(reason) <= 300, (
                name,
                outcome,
            )


def test_memory_and_time_stay_below_their_limits(forwards: dict[str, Any]) -> None:
    assert forwards["grown"] < MEMORY_LIMIT, forwards["largest"]
    assert forwards["slowest"][0][1] < decoding.FILE_LIMIT_S / 2, forwards["slowest"]


def test_outcomes_do_not_depend_on_the_order(forwards: dict[str, Any]) -> None:
    assert run_module("decoding", "reverse")["outcomes"] == forwards["outcomes"]


def test_a_truncated_file_gives_all_its_pixels_or_none(forwards: dict[str, Any]) -> None:
    complete = {name: decoding.outcome(data) for name, data in images.originals().items()}
    assert all(outcome.startswith(("ok 15x12 ", "ok 12x15 ")) for outcome in complete.values()), (
        complete
    )
    num_cut = 0
    for name, outcome in forwards["outcomes"].items():
        part, _, rest = name.partition("/")
        if part == "cut":
            num_cut += 1
            if outcome.startswith("ok "):
                assert outcome == complete[rest.partition("-")[2]], name
    assert num_cut > 2_000


def test_false_sizes_in_a_header_do_not_invent_pixels(forwards: dict[str, Any]) -> None:
    for name, outcome in forwards["outcomes"].items():
        is_claim = name.startswith("lying/") and "of-type" not in name
        if is_claim and name.endswith((".png", ".jpg", "plain.bmp", "plain.tif")):
            assert outcome.startswith(("decode/", "ok 15x12 ")), (name, outcome)


def test_decompression_bombs_are_refused_above_the_pixel_limit(forwards: dict[str, Any]) -> None:
    bombs = {name: outcome for name, outcome in forwards["outcomes"].items() if "bomb/" in name}
    assert sum(outcome.startswith("ok 1400x1400 ") for outcome in bombs.values()) >= 8
    for name, outcome in bombs.items():
        if name.startswith(("bomb/1500", "bomb/13000", "bomb/16383")) and "samples" not in name:
            assert "decode/too_large" in outcome and "over the limit of 2000000" in outcome, name
    assert bombs["bomb/scans.jpg"].startswith("decode/too_large: 20009 scans")
    assert bombs["bomb/tags-big.tif"].startswith("decode/corrupt: the TIFF has 100000 tags")


def test_other_file_extensions_and_trailing_bytes_do_not_matter(forwards: dict[str, Any]) -> None:
    outcomes = forwards["outcomes"]
    for name, data in images.originals().items():
        original = decoding.outcome(data)
        renamed = next(other for other in outcomes if other.startswith(f"wrong/{name}."))
        assert outcomes[renamed] == original
        assert outcomes[f"wrong/tail-{name}"] == original, name
