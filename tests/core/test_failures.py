"""Failures are counted, and the examples of each kind do not depend on the order of merges."""

import itertools
from collections import Counter

from cvbatch.core import failures
from cvbatch.core.types import Failure

CUT, EMPTY = Failure("decode", "truncated", "cut " * 200), Failure("read", "missing", "gone")


def counted(first, count, failure):
    counts, examples = Counter(), {}
    ids = [f"{i:02d}" for i in range(first, first + count)]
    failures.add_failures(counts, examples, ids, dict.fromkeys(range(count), failure))
    return counts, examples


def test_no_failures_give_no_kinds():
    assert counted(0, 0, CUT) == (Counter(), {})


def test_all_are_counted_and_the_first_three_are_examples():
    counts, examples = counted(0, 7, CUT)
    assert counts == {"decode/truncated": 7}
    assert [image_id for image_id, _ in examples["decode/truncated"]] == ["00", "01", "02"]
    assert {len(message) for _, message in examples["decode/truncated"]} == {300}


def test_examples_do_not_depend_on_the_order():
    parts = [counted(4, 2, CUT), counted(0, 1, CUT), counted(9, 5, CUT), counted(1, 2, EMPTY)]
    for order in itertools.permutations(parts):
        merged = {}
        for _, examples in order:
            failures.merge_examples(merged, examples)
        assert [image_id for image_id, _ in merged["decode/truncated"]] == ["00", "04", "05"]
        assert [image_id for image_id, _ in merged["read/missing"]] == ["01", "02"]


def test_the_limit_itself_is_allowed():
    assert not failures.is_over_limit(0, 0, 0.0)
    assert not failures.is_over_limit(100, 1, 0.01)
    assert failures.is_over_limit(100, 2, 0.01)
    assert failures.is_over_limit(1, 1, 0.99)
