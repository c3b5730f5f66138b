"""Two results side by side: changes equal brute force over the rows."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from cvbatch.cli.main import main
from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.progress import Listener
from cvbatch.geometry.boxes import iou
from cvbatch.report import result_changes
from cvbatch.report.columns import BOX_SCORE
from cvbatch.report.job import write_comparison
from cvbatch.report.result_changes import compare_pairs, find_changes
from cvbatch.results.result import Result
from cvbatch.storage.store import Storage
from tests.report.test_gallery import facts_in
from tests.support.evaluations import write_result

CLASSES = {"labels": ("a", "b", "c"), "boxes": ("a", "b")}
OTHER_CLASSES = {"labels": ("c", "b", "a"), "boxes": ("b", "a", "new")}


def rows_of(seed, order, names):
    """Rows whose boxes and labels are mostly the same for every seed, in other class ids."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    rows = {}
    for number in range(30):
        label = int(shared.integers(0, 3)) if own.random() < 0.8 else int(own.integers(0, 3))
        boxes = []
        for _ in range(3):
            x, y, class_id = *shared.uniform(0, 50, 2), int(shared.integers(0, 2))
            score = float(own.uniform(0.05, 1))
            shift = 30 if own.random() < 0.2 else own.uniform(0, 4)
            corners = (x + shift, y, x + shift + 40, y + 40)
            boxes.append((*map(float, corners), order["boxes"][class_id], score))
        shared.random()
        boxes.sort(key=lambda box: -box[5])
        rows[f"i{number:02d}"] = {"labels": [(order["labels"][label], 0.9)], "boxes": boxes}
    for name in names:
        rows[name] = {"failed": True}
    return rows


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of one source with other chunks and class ids; each has images of its own."""
    folder = tmp_path_factory.mktemp("comparison")
    same = {"labels": (0, 1, 2), "boxes": (0, 1)}
    rows = rows_of(1, same, ["i03", "i05"])
    other = rows_of(2, {"labels": (2, 1, 0), "boxes": (1, 0)}, ["i05", "i06"])
    del rows["i29"], other["i00"], other["i01"]
    write_result(folder / "a", rows, CLASSES, part_images=4)
    write_result(folder / "b", other, OTHER_CLASSES, part_images=7)
    return Result(Storage(), str(folder / "a")), Result(Storage(), str(folder / "b"))


def brute_force(a, b):
    """kind → images, with greedy matching of boxes pair by pair."""
    rows = [{row.image_id: row for row in result} for result in (a, b)]
    kinds = Counter()
    for name in rows[0].keys() & rows[1].keys():
        first, second = rows[0][name], rows[1][name]
        if first.error or second.error:
            kinds["failed-a"] += bool(first.error and not second.error)
            kinds["failed-b"] += bool(second.error and not first.error)
            continue
        kinds["class"] += first.labels[0]["label"] != second.labels[0]["label"]
        gained, lost = matched(first.boxes, second.boxes)
        kinds["gained"] += gained > 0
        kinds["lost"] += lost > 0
        kinds["gained boxes"] += gained
        kinds["lost boxes"] += lost
    return kinds


def matched(boxes_a, boxes_b):
    sides = ("x_min", "y_min", "x_max", "y_max")
    free = [box for box in boxes_a if box["score"] >= BOX_SCORE]
    candidates = [box for box in boxes_b if box["score"] >= BOX_SCORE]
    gained = 0
    for box in sorted(candidates, key=lambda box: -box["score"]):
        overlaps = [
            iou(*(np.array([[side[name] for name in sides]]) for side in (box, other))).item()
            if other["label"] == box["label"] else 0.0
            for other in free
        ]  # fmt: skip
        if max(overlaps, default=0) >= 0.5:
            del free[int(np.argmax(overlaps))]
        else:
            gained += 1
    return gained, len(free)


def test_changes_equal_brute_force(results):
    changes = find_changes(*results, Listener())
    expected = brute_force(*results)
    counts = changes.counts()
    for kind in ("class", "gained", "lost", "failed-a", "failed-b"):
        assert counts[kind] == expected[kind] > 0, kind
    assert sum(change.gained for change in changes.images.values()) == expected["gained boxes"]
    assert sum(change.lost for change in changes.images.values()) == expected["lost boxes"]
    assert sum(changes.class_changes().values()) == counts["class"]
    assert changes.only_a.to_pylist() == ["i00", "i01"] and changes.only_b.to_pylist() == ["i29"]
    assert changes.num_common == changes.num_compared == 27


def test_gained_and_lost_boxes_of_an_image_are_those_that_are_counted(results):
    changes = find_changes(*results, Listener())
    both_ok = [pair for pair, change in changes.images.items() if "failed" not in change.kinds[0]]
    comparisons = compare_pairs(changes, both_ok)
    rows = {row.image_id: row for row in results[1]}
    ids = [row.image_id for row in results[1]]
    ends = np.cumsum([0, *(7 for _ in results[1].done)])
    for pair in both_ok:
        change, comparison = changes.images[pair], comparisons[pair.b]
        row = rows[ids[ends[results[1].done.index(pair.b.ref)] + pair.b.row]]
        gained = [
            box for box, outcome in zip(row.boxes, comparison.outcomes, strict=True)
            if outcome == "fp" and box["score"] >= BOX_SCORE
        ]  # fmt: skip
        lost = [b for b in comparison.true_boxes if b.found is None or b.found < BOX_SCORE]
        assert (len(gained), len(lost)) == (change.gained, change.lost)
        assert comparison.is_correct == (change.labels is None) and comparison.loss is None


def test_the_same_result_has_no_changes(results, tmp_path):
    assert not find_changes(results[0], results[0], Listener()).images
    write_comparison(results[0].uri, results[0].uri, str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "The predictions of all compared images are the same." in text


def test_only_a_sample_of_a_large_result_is_compared(results, monkeypatch):
    monkeypatch.setattr(result_changes, "MAX_COMPARED", 14)
    changes = find_changes(*results, Listener())
    assert changes.num_compared < changes.num_common == 27
    assert set(changes.images) <= set(find_changes(*results, Listener()).images)


def test_the_page_shows_counts_changed_classes_and_images(results, tmp_path):
    changes = find_changes(*results, Listener())
    done = write_comparison(results[0].uri, results[1].uri, str(tmp_path / "page.html"))
    assert done.kind == "comparison" and done.num_images == 27
    facts = facts_in(tmp_path / "page.html")
    kinds = Counter(kind for card in facts["cards"] for kind in card["changes"])
    assert kinds == changes.counts()
    text = (tmp_path / "page.html").read_text("utf-8")
    assert f"{len(changes.images)} images of 27 changed" in text
    assert "Only in A: 2 images." in text and "Only in B: 1 image." in text
    assert "Classes of boxes that only B has: new." in text


@pytest.mark.parametrize("multi_label", [False, True])
def test_every_number_of_the_changed_classes_has_its_images(tmp_path, multi_label):
    rng, uris = np.random.default_rng(0), []
    for name in ("a", "b"):
        labels = [[] if multi_label else [(2, 0.5)], [(0, 0.9)], [(1, 0.9), (0, 0.6)]]
        rows = {f"i{n:02d}": {"labels": labels[rng.integers(0, 3)]} for n in range(30)}
        classes = {"labels": ("x", "y", "z")}
        uris.append(str(write_result(tmp_path / name, rows, classes, multi_label=multi_label)))
    results = [Result(Storage(), uri) for uri in uris]
    expected = find_changes(*results, Listener()).class_changes()
    write_comparison(*uris, str(tmp_path / "page.html"))
    facts = facts_in(tmp_path / "page.html")
    names = [*facts["classes"], ""]  # −1: none
    shown = Counter(
        (names[true], names[predicted])
        for card in facts["cards"]
        for column, true, predicted in card["cells"]
        if column == "labels" and true != predicted
    )
    assert shown == expected and len(expected) == 6


def test_results_without_common_images_and_other_folders_are_refused(results, tmp_path):
    other = write_result(tmp_path / "c", {"x": {"labels": [(0, 1.0)]}}, {"labels": ("a",)})
    with pytest.raises(ConfigError, match="no image in common"):
        write_comparison(results[0].uri, str(other))
    with pytest.raises(SourceError, match="no result"):
        write_comparison(results[0].uri, str(tmp_path))


def test_the_command_compares_two_results_and_refuses_three(results, tmp_path, capsys):
    a, b = (result.uri for result in results)
    out = tmp_path / "page.html"
    assert main(["report", a, b, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "comparison" and out.exists()
    for arguments in ([a, b, a], [a, b, "--truth", a]):
        assert main(["report", *arguments]) == 2
        assert "two predictions to compare" in capsys.readouterr().err
