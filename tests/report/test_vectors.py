"""Section of values and embeddings: histograms, norms, most similar pairs by brute force."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from cvbatch.report import vectors
from cvbatch.report.job import write_report
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.results import SIZE, VECTOR_TASKS, random_row, write_predictions

NAMES = [f"i {n:02d}.png" for n in range(12)]


def page_of(folder: Path, tasks: tuple[str, ...]) -> str:
    jobs.write_files(folder / "images", dict.fromkeys(NAMES, picture(*SIZE)) | jobs.BROKEN)
    rows = {name: random_row(n) for n, name in enumerate(NAMES)}
    result = write_predictions(folder / "out", folder / "images", rows, tasks)
    write_report(str(result), str(folder / "page.html"))
    return (folder / "page.html").read_text("utf-8")


def test_the_page_shows_values_norms_and_the_most_similar_pairs(tmp_path: Path) -> None:
    text = re.sub(r"<[^>]+>", " ", page_of(tmp_path, VECTOR_TASKS))
    rows = [random_row(n) for n in range(len(NAMES))]
    cats = np.array([row["values"][1] for row in rows])  # the name of the second value is cat
    assert f"cat: mean {cats.mean():.4g}, {cats.min():.4g} to {cats.max():.4g}" in text
    unit = np.array([row["embedding"] for row in rows])
    norms = np.linalg.norm(unit, axis=1)
    assert f"L2 norm: mean {norms.mean():.4g}" in text
    assert "Embeddings have 3 numbers. Norms and pairs are those of 12 images" in text
    unit /= norms[:, None]
    pairs = sorted(combinations(range(12), 2), key=lambda pair: -unit[pair[0]] @ unit[pair[1]])
    for a, b in pairs[: vectors.NUM_PAIRS]:
        assert re.search(rf"{NAMES[a]}\s+{NAMES[b]}\s+{unit[a] @ unit[b]:.4f}", text)


def test_other_results_have_no_such_section(tmp_path: Path) -> None:
    assert "vectors-title" not in page_of(tmp_path, ("classification",))


def test_only_the_first_embeddings_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "MAX_COMPARED", 1)
    text = page_of(tmp_path, ("embedding",))
    assert "1 image from the beginning" in text
    assert "Most similar pairs" not in text
