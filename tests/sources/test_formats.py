from __future__ import annotations

from itertools import permutations
from typing import get_args

from cvbatch.config.predict import SourceConfig
from cvbatch.sources.formats import INPUT_FORMATS


def test_the_job_file_allows_auto_and_every_format() -> None:
    allowed = get_args(SourceConfig.model_fields["format"].annotation)
    assert set(allowed) == {"auto", *INPUT_FORMATS}


def test_the_name_that_a_manifest_stores_is_the_key_of_a_format_of_that_name() -> None:
    for one in INPUT_FORMATS.values():
        stored = INPUT_FORMATS[one.reading("image")["format"]]
        assert stored.name == one.name
        assert (stored.key, stored.is_split, stored.is_sequential) == (
            (one.key, one.is_split, one.is_sequential)
        )  # fmt: skip


def test_no_file_is_recognised_as_two_formats() -> None:
    for one, other in permutations(INPUT_FORMATS.values(), 2):
        for suffix in one.suffixes:
            assert not any(f".{suffix}".endswith(f".{end}") for end in other.suffixes)
