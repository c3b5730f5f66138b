"""The rule for names that are no data: one name, many names, and names that are made to be slow."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.storage.junk import are_junk, is_junk, outermost

PARTS = st.sampled_from(
    ["a.jpg", "_DSC1.JPG", "._a.jpg", ".DS_Store", "__MACOSX", "thumbs.DB", "x", ".git", "git", ""]
)


@settings(deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), max_size=20))
def test_one_name_and_many_names_agree(names: list[str]) -> None:
    column = pa.array(names, pa.large_string())
    junk = [is_junk(name) for name in names]
    assert are_junk(column).to_pylist() == junk
    for name in outermost(
        pa.array([n for n in names if is_junk(n)], pa.large_string())
    ).to_pylist():
        assert is_junk(name)
        assert not is_junk(name.rstrip("/").rpartition("/")[0])


@pytest.mark.parametrize(
    "name",
    [".-" * 60_000, "." + "-" * 120_000, "/." * 60_000, "_committed_" * 10_000, "a" * 120_000],
)
def test_a_long_name_needs_little_time(name: str) -> None:
    started = time.process_time()
    is_junk(name)
    assert time.process_time() - started < 1.0
