"""Each common mistake is refused with the message that docs/mistakes.md shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli import mistakes

TEXT = mistakes.PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, labels, a result and model files."""
    return mistakes.write_home(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(case, marks=[pytest.mark.soak, pytest.mark.keras] if case.is_slow else [])
        for case in mistakes.CASES
    ],
    ids=lambda mistake: mistake.command[:60],
)
def test_the_page_shows_the_message_which_says_what_to_do(
    mistake: mistakes.Mistake, home: Path
) -> None:
    message = mistakes.message_of(mistake, home)
    assert mistakes.row(mistake, message) in TEXT
    assert re.search(r"; |: must be|: .* to ", message)


def test_the_page_has_no_other_rows() -> None:
    assert len(re.findall(r"^\| `cvbatch", TEXT, re.MULTILINE)) == len(mistakes.CASES) > 70
