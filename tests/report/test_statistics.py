"""Statistics of a result are those of its rows, for any batch size; choice of gallery rows."""

from collections import Counter

import numpy as np
import pytest

from cvbatch.core.progress import Listener
from cvbatch.report import statistics
from cvbatch.report.statistics import MAX_LEAST_CONFIDENT, ROWS_PER_CLASS, collect_statistics
from cvbatch.results.result import Result
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.evaluations import write_result

CLASSES = {"labels": ("a", "b", "c"), "boxes": ("a", "b", "c")}


def random_predictions(count, seed=3):
    rng = np.random.default_rng(seed)
    predictions = {}
    for n in range(count):
        scores = np.sort(rng.uniform(0, 1, 2))[::-1]
        labels = list(zip(rng.permutation(3)[:2].tolist(), scores.tolist(), strict=True))
        boxes = [(0, 0, 5, 5, int(rng.integers(0, 2)), float(rng.uniform())) for _ in range(n % 4)]
        row = {"failed": True} if n % 9 == 4 else {"labels": labels, "boxes": boxes}
        predictions[f"i-{n:03d}"] = row
    return predictions


def test_statistics_of_an_empty_result(tmp_path):
    folder = write_result(tmp_path, {}, CLASSES)
    stats = collect_statistics(Result(Storage(), str(folder)), Listener())
    assert (stats.num_rows, stats.num_failed, stats.sampled) == (0, 0, [])
    assert stats.least_confident_rows() == [] and stats.rows_of_class("labels") == {}
    assert stats.is_complete


@pytest.fixture(scope="module")
def result_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics")
    write_result(folder, random_predictions(50), CLASSES, part_images=7)
    return folder


def rows_at(folder, row_refs):
    rows = {path.name: jobs.pq.read_table(path).to_pylist() for path in folder.glob("*.parquet")}
    return [rows[f"part-{row_ref.ref.chunk_id}.parquet"][row_ref.row] for row_ref in row_refs]


def test_counts_equal_those_of_the_rows(result_folder):
    stats, rows = (
        collect_statistics(Result(Storage(), str(result_folder)), Listener()),
        jobs.rows(result_folder),
    )
    ok = [row for row in rows if row["status"] == "ok"]
    assert (stats.num_rows, stats.num_failed) == (50, 50 - len(ok))
    assert stats.num_images["labels"] == Counter(row["labels"][0]["class_id"] for row in ok)
    assert stats.num_elements["boxes"] == Counter(b["class_id"] for row in ok for b in row["boxes"])
    assert stats.num_images["boxes"] == Counter(
        k for row in ok for k in {b["class_id"] for b in row["boxes"]}
    )
    box_bins = Counter(min(int(b["score"] * 20), 19) for row in ok for b in row["boxes"])
    assert stats.score_bins["boxes"] == box_bins
    label_bins = Counter(min(int(row["labels"][0]["score"] * 20), 19) for row in ok)
    assert stats.score_bins["labels"] == label_bins


def test_the_least_confident_rows_have_the_lowest_best_scores(result_folder):
    rows = rows_at(
        result_folder,
        collect_statistics(
            Result(Storage(), str(result_folder)), Listener()
        ).least_confident_rows(),
    )
    ok = [row for row in jobs.rows(result_folder) if row["status"] == "ok"]
    lowest = sorted(ok, key=lambda row: row["labels"][0]["score"])[:MAX_LEAST_CONFIDENT]
    assert [row["image_id"] for row in rows] == [row["image_id"] for row in lowest]


def test_rows_of_a_class_contain_it_and_are_spread_over_the_parts(result_folder):
    stats = collect_statistics(Result(Storage(), str(result_folder)), Listener())
    for column in ("labels", "boxes"):
        for class_id, row_refs in stats.rows_of_class(column).items():
            rows = rows_at(result_folder, row_refs)
            assert len(rows) == min(ROWS_PER_CLASS, stats.num_images[column][class_id])
            for row in rows:
                counted = row[column][:1] if column == "labels" else row[column]
                assert class_id in {element["class_id"] for element in counted}
            assert len({row_ref.ref.chunk_id for row_ref in row_refs}) > 1


def test_the_batch_size_does_not_change_the_statistics(result_folder, monkeypatch):
    one_batch = collect_statistics(Result(Storage(), str(result_folder)), Listener())
    monkeypatch.setattr(statistics, "_BATCH_ROWS", 2)
    small_batches = collect_statistics(Result(Storage(), str(result_folder)), Listener())
    for key in ("num_rows", "failures", "examples", "num_images", "num_elements", "score_bins"):
        assert getattr(small_batches, key) == getattr(one_batch, key), key
    assert small_batches.least_confident_rows() == one_batch.least_confident_rows()
    assert small_batches.rows_of_class("boxes") == one_batch.rows_of_class("boxes")


def test_a_sample_of_many_files_is_at_equal_distances(result_folder, monkeypatch):
    monkeypatch.setattr(statistics, "MAX_FILES", 3)
    result = Result(Storage(), str(result_folder))
    stats = collect_statistics(result, Listener())
    assert [result.done.index(ref) for ref in stats.sampled] == [0, 4, 7]  # 3.5 rounds to even
    assert not stats.is_complete and stats.num_rows == 7 + 7 + 1
    monkeypatch.setattr(statistics, "MAX_ROWS", 14)
    assert len(collect_statistics(result, Listener()).sampled) == 2
