"""What a page counts is what the rows hold, however they are cut; its picks are what they say."""

from collections import Counter

import numpy as np
import pytest

from cvbatch.report import statistics as surveys
from cvbatch.report.statistics import LOWEST, OF_CLASS, survey
from cvbatch.results.parts import Parts
from tests.support import jobs
from tests.support.evaluations import write_result

CLASSES = {"labels": ("a", "b", "c"), "boxes": ("a", "b", "c")}


def answers(count, seed=3):
    rng = np.random.default_rng(seed)
    said = {}
    for n in range(count):
        scores = np.sort(rng.uniform(0, 1, 2))[::-1]
        labels = list(zip(rng.permutation(3)[:2].tolist(), scores.tolist(), strict=True))
        boxes = [(0, 0, 5, 5, int(rng.integers(0, 2)), float(rng.uniform())) for _ in range(n % 4)]
        said[f"i-{n:03d}"] = {"failed": True} if n % 9 == 4 else {"labels": labels, "boxes": boxes}
    return said


def test_of_nothing_nothing_is_counted(tmp_path):
    found = survey(Parts.find(str(write_result(tmp_path, {}, CLASSES))))
    assert (found.num_rows, found.num_failed, found.files) == (0, 0, [])
    assert found.picks_lowest() == [] and found.picks_of_class("labels") == {}
    assert found.has_all


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    write_result(folder, answers(50), CLASSES, part_images=7)
    return folder


def named(folder, picks):
    rows = {path.name: jobs.pq.read_table(path).to_pylist() for path in folder.glob("*.parquet")}
    return [rows[f"part-{pick.ref.chunk_id}.parquet"][pick.row] for pick in picks]


def test_counts_are_those_of_the_rows(seen):
    found, rows = survey(Parts.find(str(seen))), jobs.rows(seen)
    ok = [row for row in rows if row["status"] == "ok"]
    assert (found.num_rows, found.num_failed) == (50, 50 - len(ok))
    assert found.images_with["labels"] == Counter(row["labels"][0]["class_id"] for row in ok)
    assert found.found["boxes"] == Counter(b["class_id"] for row in ok for b in row["boxes"])
    assert found.images_with["boxes"] == Counter(
        k for row in ok for k in {b["class_id"] for b in row["boxes"]}
    )
    assert found.num_empty["boxes"] == sum(not row["boxes"] for row in ok)
    of_boxes = Counter(min(int(b["score"] * 20), 19) for row in ok for b in row["boxes"])
    assert found.scores["boxes"] == of_boxes
    best = Counter(min(int(row["labels"][0]["score"] * 20), 19) for row in ok)
    assert found.scores["labels"] == best


def test_the_least_certain_are_those_with_the_lowest_best_score(seen):
    found = named(seen, survey(Parts.find(str(seen))).picks_lowest())
    ok = [row for row in jobs.rows(seen) if row["status"] == "ok"]
    lowest = sorted(ok, key=lambda row: row["labels"][0]["score"])[:LOWEST]
    assert [row["image_id"] for row in found] == [row["image_id"] for row in lowest]


def test_rows_of_a_class_have_it_and_are_not_all_from_one_end(seen):
    found = survey(Parts.find(str(seen)))
    for column in ("labels", "boxes"):
        for class_id, picks in found.picks_of_class(column).items():
            rows = named(seen, picks)
            assert len(rows) == min(OF_CLASS, found.images_with[column][class_id])
            for row in rows:
                some = row[column][:1] if column == "labels" else row[column]
                assert class_id in {one["class_id"] for one in some}
            assert len({pick.ref.chunk_id for pick in picks}) > 1


def test_the_same_is_found_however_many_rows_are_held(seen, monkeypatch):
    whole = survey(Parts.find(str(seen)))
    monkeypatch.setattr(surveys, "_ROWS_AT_ONCE", 2)
    piece = survey(Parts.find(str(seen)))
    for key in ("num_rows", "failures", "examples", "images_with", "found", "scores", "num_empty"):
        assert getattr(piece, key) == getattr(whole, key), key
    assert piece.picks_lowest() == whole.picks_lowest()
    assert piece.picks_of_class("boxes") == whole.picks_of_class("boxes")


def test_of_many_files_some_at_equal_distances_are_looked_at(seen, monkeypatch):
    monkeypatch.setattr(surveys, "MAX_FILES", 3)
    parts = Parts.find(str(seen))
    found = survey(parts)
    assert [parts.done.index(ref) for ref in found.files] == [0, 4, 7]  # 3.5 rounds to even
    assert not found.has_all and found.num_rows == 7 + 7 + 1
    monkeypatch.setattr(surveys, "MAX_ROWS", 14)
    assert len(survey(parts).files) == 2
