"""Failures are counted, and of each kind the same few are named, whoever is heard first."""

import itertools
from collections import Counter

from cvbatch.core import failures as f
from cvbatch.core.types import Failure

CUT, EMPTY = Failure("decode", "truncated", "cut " * 200), Failure("read", "missing", "gone")


def noted(first, count, why):
    counts, examples = Counter(), {}
    ids = [f"{i:02d}" for i in range(first, first + count)]
    f.add_failures(counts, examples, ids, dict.fromkeys(range(count), why))
    return counts, examples


def test_no_failure_is_no_kind():
    assert noted(0, 0, CUT) == (Counter(), {})


def test_all_are_counted_and_the_first_few_named():
    counts, examples = noted(0, 7, CUT)
    assert counts == {"decode/truncated": 7}
    assert [image_id for image_id, _ in examples["decode/truncated"]] == ["00", "01", "02"]
    assert {len(message) for _, message in examples["decode/truncated"]} == {300}


def test_whatever_comes_first_the_same_are_named():
    parts = [noted(4, 2, CUT), noted(0, 1, CUT), noted(9, 5, CUT), noted(1, 2, EMPTY)]
    for order in itertools.permutations(parts):
        merged = {}
        for _, examples in order:
            f.merge_examples(merged, examples)
        assert [image_id for image_id, _ in merged["decode/truncated"]] == ["00", "04", "05"]
        assert [image_id for image_id, _ in merged["read/missing"]] == ["01", "02"]


def test_the_limit_itself_may_be_reached():
    assert not f.is_over_limit(0, 0, 0.0)
    assert not f.is_over_limit(100, 1, 0.01)
    assert f.is_over_limit(100, 2, 0.01)
    assert f.is_over_limit(1, 1, 0.99)
