"""docs/models.md lists what the tests run, and nothing else."""

from __future__ import annotations

from tests.docs.models_table import PAGE, marked_rows, page_with_table


def test_the_table_is_that_of_the_tests() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page_with_table(page) == page, "run python -m tests.docs.models_table"


def test_every_model_has_one_row() -> None:
    names = [what for what, _ in marked_rows()]
    assert len(names) == len(set(names))
