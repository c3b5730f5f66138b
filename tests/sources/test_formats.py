"""The table of input formats is consistent with job files, manifests and itself."""

from __future__ import annotations

from itertools import permutations
from typing import get_args

from cvbatch.config.predict import SourceConfig
from cvbatch.sources.formats import INPUT_FORMATS


def test_job_files_allow_auto_and_every_format() -> None:
    allowed = get_args(SourceConfig.model_fields["format"].annotation)
    assert set(allowed) == {"auto", *INPUT_FORMATS}


def test_the_format_stored_in_a_manifest_reads_like_the_original() -> None:
    for input_format in INPUT_FORMATS.values():
        stored = INPUT_FORMATS[input_format.reading("image")["format"]]
        for name in ("name", "key", "is_split", "is_sequential"):
            assert getattr(stored, name) == getattr(input_format, name)


def test_no_suffix_belongs_to_two_formats() -> None:
    for first, second in permutations(INPUT_FORMATS.values(), 2):
        for suffix in first.suffixes:
            assert not any(f".{suffix}".endswith(f".{other}") for other in second.suffixes)
