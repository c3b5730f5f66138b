"""What a page counts is what the rows hold, however they are cut; its picks are what they say."""

from collections import Counter

import numpy as np
import pytest

from cvbatch.report import statistics
from cvbatch.report.statistics import LEAST_CONFIDENT, OF_CLASS, collect_statistics
from cvbatch.results.result import Result
from cvbatch.storage.store import Storage
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
    found = collect_statistics(Result(Storage(), str(write_result(tmp_path, {}, CLASSES))))
    assert (found.num_rows, found.num_failed, found.sampled) == (0, 0, [])
    assert found.picks_least_confident() == [] and found.picks_of_class("labels") == {}
    assert found.is_complete


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    write_result(folder, answers(50), CLASSES, part_images=7)
    return folder


def named(folder, picks):
    rows = {path.name: jobs.pq.read_table(path).to_pylist() for path in folder.glob("*.parquet")}
    return [rows[f"part-{pick.ref.chunk_id}.parquet"][pick.row] for pick in picks]


def test_counts_are_those_of_the_rows(seen):
    found, rows = collect_statistics(Result(Storage(), str(seen))), jobs.rows(seen)
    ok = [row for row in rows if row["status"] == "ok"]
    assert (found.num_rows, found.num_failed) == (50, 50 - len(ok))
    assert found.num_images["labels"] == Counter(row["labels"][0]["class_id"] for row in ok)
    assert found.num_elements["boxes"] == Counter(b["class_id"] for row in ok for b in row["boxes"])
    assert found.num_images["boxes"] == Counter(
        k for row in ok for k in {b["class_id"] for b in row["boxes"]}
    )
    of_boxes = Counter(min(int(b["score"] * 20), 19) for row in ok for b in row["boxes"])
    assert found.score_bins["boxes"] == of_boxes
    best = Counter(min(int(row["labels"][0]["score"] * 20), 19) for row in ok)
    assert found.score_bins["labels"] == best


def test_the_least_certain_are_those_with_the_lowest_best_score(seen):
    found = named(seen, collect_statistics(Result(Storage(), str(seen))).picks_least_confident())
    ok = [row for row in jobs.rows(seen) if row["status"] == "ok"]
    lowest = sorted(ok, key=lambda row: row["labels"][0]["score"])[:LEAST_CONFIDENT]
    assert [row["image_id"] for row in found] == [row["image_id"] for row in lowest]


def test_rows_of_a_class_have_it_and_are_not_all_from_one_end(seen):
    found = collect_statistics(Result(Storage(), str(seen)))
    for column in ("labels", "boxes"):
        for class_id, picks in found.picks_of_class(column).items():
            rows = named(seen, picks)
            assert len(rows) == min(OF_CLASS, found.num_images[column][class_id])
            for row in rows:
                some = row[column][:1] if column == "labels" else row[column]
                assert class_id in {one["class_id"] for one in some}
            assert len({pick.ref.chunk_id for pick in picks}) > 1


def test_the_same_is_found_however_many_rows_are_held(seen, monkeypatch):
    whole = collect_statistics(Result(Storage(), str(seen)))
    monkeypatch.setattr(statistics, "_BATCH_ROWS", 2)
    piece = collect_statistics(Result(Storage(), str(seen)))
    for key in ("num_rows", "failures", "examples", "num_images", "num_elements", "score_bins"):
        assert getattr(piece, key) == getattr(whole, key), key
    assert piece.picks_least_confident() == whole.picks_least_confident()
    assert piece.picks_of_class("boxes") == whole.picks_of_class("boxes")


def test_of_many_files_some_at_equal_distances_are_looked_at(seen, monkeypatch):
    monkeypatch.setattr(statistics, "MAX_FILES", 3)
    result = Result(Storage(), str(seen))
    found = collect_statistics(result)
    assert [result.done.index(ref) for ref in found.sampled] == [0, 4, 7]  # 3.5 rounds to even
    assert not found.is_complete and found.num_rows == 7 + 7 + 1
    monkeypatch.setattr(statistics, "MAX_ROWS", 14)
    assert len(collect_statistics(result).sampled) == 2
