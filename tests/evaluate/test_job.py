"""An evaluation's figures are those of plain loops and of pycocotools, however the rows are cut."""

import json
import os
from fractions import Fraction
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest

from cvbatch.config.evaluate import parse_evaluation
from cvbatch.core.errors import ConfigError, CvbatchError, RefusedError, SinkError, SourceError
from cvbatch.core.types import VOID_CLASS, Boxes
from cvbatch.evaluate import job as job_module
from cvbatch.evaluate.job import evaluate
from cvbatch.evaluate.scoring import merge_scores
from cvbatch.storage.lease import HEARTBEAT_S, LEASE_PATH, current_holder
from cvbatch.storage.sink import Sink
from tests.metrics.test_average_precision import COCO_FIGURES, TrueBoxes, pycoco
from tests.support.evaluations import Heard, write_result, write_truth
from tests.support.jobs import cvbatch, write_job
from tests.support.lease_holder import FAR, lease_holder, tree
from tests.support.simulated_clock import SimulatedClock

ANIMALS = {"labels": ("cat", "dog", "owl")}
THINGS = {"boxes": ("cup", "hat")}
GROUND = {"mask": ("sky", "sea", "sand")}


def run(tmp_path, rows=None, truth=None, classes=ANIMALS, listener=None, **said):
    """Write both sides where rows are given, evaluate, return the summary."""
    multi = said.pop("multi_label", False)
    options = said.pop("options", {})
    workers = said.pop("workers", 1)
    overwrite = said.pop("overwrite", False)
    splits = said.pop("splits", None)
    cut = {
        name: said.pop(name)
        for name in ("part_images", "left", "version", "is_replanned")
        if name in said
    }
    if rows is not None:
        write_result(tmp_path / "said", rows, said.pop("predicted", classes), **cut, **options)
    if truth is not None:
        write_truth(tmp_path / "truth", truth, classes, multi, said.pop("shard_images", 4))
    job = parse_evaluation(
        {
            "predictions": {"uri": str(tmp_path / "said")},
            "truth": {"uri": str(tmp_path / "truth"), "splits": splits},
            "sink": {"uri": str(tmp_path / said.pop("sink", "out"))},
            "evaluation": {"bootstrap": 0, **said},
            "run": {"workers": workers},
        }
    )
    return evaluate(job, listener or Heard(), overwrite=overwrite)


def metrics(tmp_path, task, sink="out"):
    return json.loads((tmp_path / sink / "metrics.json").read_text())["tasks"][task]


def overall(tmp_path, task):
    return {name: one["value"] for name, one in metrics(tmp_path, task)["overall"].items()}


def random_animals(seed, count=40):
    """Return answers and truths; some answers failed."""
    rng = np.random.default_rng(seed)
    rows, truth = {}, {}
    for i in range(count):
        order = rng.permutation(3)
        scores = np.sort(rng.integers(0, 8, 3) / 8)[::-1]
        image_id = f"{i:03d}.jpg"
        rows[image_id] = {"labels": list(zip(order.tolist(), scores.tolist(), strict=True))}
        truth[image_id] = {"labels": [(int(rng.integers(0, 3)), 1.0)]}
    rows["007.jpg"] = {"failed": True}
    return rows, truth


def one_of(count=2):
    rows = {f"{i}.jpg": {"labels": [(0, 0.5)]} for i in range(count)}
    return rows, {name: {"labels": [(0, 1.0)]} for name in rows}


# Refusals


def test_an_empty_result_is_refused(tmp_path):
    _, truth = one_of()
    with pytest.raises(SourceError, match="no chunk of the prediction is done"):
        run(tmp_path, {}, truth)
    assert not (tmp_path / "out").exists()


REFUSALS = {
    "no common image": ({"rename": True}, "no image in common by image_id or row.*predicted are"),
    "another schema version": ({"version": 99}, "schema version 99, and this cvbatch reads"),
    "another class": (
        {"predicted": {"labels": ("cat", "dogs", "owl")}},
        r"'dogs' \(nearest is 'dog'\).*class_map: \{dogs: dog\}",
    ),
    "a class map of no class": ({"class_map": {"cot": "dog"}}, "'cot' is no predicted class.*cat"),
    "a class map to no class": ({"class_map": {"cat": "og"}}, "'og' is no true class.*dog"),
    "no such split": ({"splits": ["tset"]}, "no image is of split 'tset'; there are 'test'"),
    "too large a k": ({"top_k": [9]}, "9 is more than the 3 best"),
    "ignored without masks": ({"ignored_class": "sky"}, "there are no masks"),
    "nothing in common": ({"predicted": THINGS}, "predictions have boxes, the truth has labels"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_compared_is_refused_and_nothing_written(case, tmp_path):
    said, message = REFUSALS[case]
    rows, truth = one_of()
    if said.get("predicted") == THINGS:
        rows = {name: {"boxes": []} for name in rows}
    if said.get("rename"):
        truth = {f"other/x{name}": value for name, value in truth.items()}
    said = {key: value for key, value in said.items() if key != "rename"}
    with pytest.raises(RefusedError, match=message) as caught:
        run(tmp_path, rows, truth, **said)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_sink_of_something_else_is_refused(tmp_path):
    rows, truth = one_of()
    run(tmp_path, rows, truth)
    for sink in ("said", "truth"):
        with pytest.raises(SinkError, match="use an"):
            run(tmp_path, sink=sink)


# Which images are compared


def test_images_of_one_side_and_failed_ones_are_counted_and_named(tmp_path):
    rows, truth = one_of(6)
    del truth["1.jpg"], rows["2.jpg"], rows["5.jpg"]
    rows["3.jpg"] = {"failed": True}
    heard = Heard()
    summary = run(tmp_path, rows, truth, listener=heard)
    assert summary.images["images"] == 3
    assert "1 images have no truth and are left out: 1.jpg" in heard.text
    assert "2 images have no prediction and are left out: 2.jpg, 5.jpg" in heard.text
    unmatched = pq.read_table(tmp_path / "out" / "unmatched.parquet").to_pylist()
    assert {(row["image_id"], row["side"], row["reason"]) for row in unmatched} == {
        ("1.jpg", "predictions", "no_truth"),
        ("2.jpg", "truth", "no_prediction"),
        ("5.jpg", "truth", "no_prediction"),
        ("3.jpg", "predictions", "failed"),
    }
    assert overall(tmp_path, "classification")["accuracy"] == pytest.approx(2 / 3)


def test_an_unfinished_result_is_compared_as_far_as_it_goes(tmp_path):
    rows, truth = one_of(5)
    heard = Heard()
    summary = run(tmp_path, rows, truth, part_images=2, left=1, listener=heard)
    assert (summary.images["images"], summary.images["no_prediction"]) == (4, 1)
    assert "1 of its chunks are not done" in heard.text


def test_a_part_whose_images_changed_since_is_not_compared(tmp_path):
    rows, truth = one_of(5)
    heard = Heard()
    summary = run(tmp_path, rows, truth, part_images=2, is_replanned=True, listener=heard)
    assert (summary.images["images"], summary.images["no_prediction"]) == (3, 2)
    assert "1 of its chunks are not done" in heard.text


def test_splits_that_are_not_asked_for_are_left_out(tmp_path):
    rows, truth = one_of(4)
    truth["0.jpg"]["split"] = "train"
    truth["never predicted.jpg"] = truth["0.jpg"]
    summary = run(tmp_path, rows, truth, splits=["test"])
    assert (summary.images["images"], summary.images["other_splits"]) == (3, 1)
    assert (summary.images["no_truth"], summary.images["no_prediction"]) == (0, 0)


def test_images_join_by_their_row_in_the_labelled_files(tmp_path):
    rows, truth = random_animals(1, 10)
    write_truth(tmp_path / "truth", truth, ANIMALS)
    ids = iter(rows.values())
    by_row = {
        f"some/{path.name}#{row}": next(ids)
        for path in sorted((tmp_path / "truth").glob("*.parquet"))
        for row in range(pq.read_metadata(path).num_rows)
    }
    assert run(tmp_path, by_row).joined_by == "row"
    by_row = metrics(tmp_path, "classification")
    write_result(tmp_path / "said", rows, ANIMALS)
    assert run(tmp_path, sink="by_id").joined_by == "image_id"
    assert metrics(tmp_path, "classification", "by_id") == by_row


def test_images_join_by_their_name_when_it_is_said(tmp_path):
    rows, truth = one_of()
    truth = {f"JPEGImages/{name}": value for name, value in truth.items()}
    with pytest.raises(SourceError, match=r"evaluation\.join: name"):
        run(tmp_path, rows, truth)
    assert run(tmp_path, join="name").images["images"] == 2


def test_names_that_are_there_twice_are_refused(tmp_path):
    rows, truth = one_of()
    with pytest.raises(SourceError, match=r"0\.jpg names more than one image"):
        run(tmp_path, rows | {"b/0.jpg": rows["0.jpg"]}, truth, join="name")


def test_ids_that_join_in_two_ways_are_refused(tmp_path):
    rows, truth = one_of()
    write_truth(tmp_path / "truth", truth, ANIMALS)
    name = next((tmp_path / "truth").glob("*.parquet")).name
    with pytest.raises(ConfigError, match=r"evaluation\.join: images are common by"):
        run(tmp_path, rows | {f"{name}#0": rows["0.jpg"]})


# The figures


@pytest.mark.parametrize("seed", range(3))
def test_classification_is_that_of_plain_loops(seed, tmp_path):
    rows, truth = random_animals(seed)
    run(tmp_path, rows, truth, top_k=[1, 2])
    hits, top_2, pairs = 0, 0, []
    for name, true in truth.items():
        ranked = rows[name].get("labels", [])
        said = ranked[0][0] if ranked else None
        real = true["labels"][0][0]
        own = [score for k, score in ranked if k == real]
        top_2 += bool(own) and sum(score > own[0] for _, score in ranked) < 2
        hits += said == real
        pairs.append((real, said))
    found = overall(tmp_path, "classification")
    assert found["accuracy"] == pytest.approx(hits / len(truth))
    assert found["top_2"] == pytest.approx(top_2 / len(truth))
    classes = metrics(tmp_path, "classification")["classes"]
    for k, name in enumerate(ANIMALS["labels"]):
        right = pairs.count((k, k))
        assert classes[name]["precision"]["value"] == pytest.approx(
            right / sum(said == k for _, said in pairs)
        )
        assert classes[name]["recall"]["value"] == pytest.approx(
            right / sum(real == k for real, _ in pairs)
        )


def test_predicted_classes_stand_for_true_ones_by_name_and_map(tmp_path):
    rows, truth = random_animals(5)
    run(tmp_path, rows, truth)
    # The same answers of a network whose table has another order, another name, and one class more.
    table = {"labels": ("owl", "chien", "fog", "cat")}
    there = {0: 3, 1: 1, 2: 0}
    renamed = {
        name: said if "failed" in said
        else {"labels": [(2, 0.99), *((there[k], score) for k, score in said["labels"])]}
        for name, said in rows.items()
    }  # fmt: skip
    mapped = {"chien": "dog", "fog": None}
    (tmp_path / "b").mkdir()
    run(tmp_path / "b", renamed, truth, predicted=table, class_map=mapped)
    assert metrics(tmp_path, "classification") == metrics(tmp_path / "b", "classification")


def test_a_true_class_that_nothing_stands_for_is_told(tmp_path):
    rows, truth = one_of()
    heard = Heard()
    run(tmp_path, rows, truth, predicted={"labels": ("cat", "dog")}, listener=heard)
    assert "no predicted class stands for owl" in heard.text


@pytest.mark.parametrize("seed", range(2))
def test_average_precision_of_several_labels_is_that_of_its_definition(seed, tmp_path):
    rng = np.random.default_rng(seed)
    rows, truth = {}, {}
    for i in range(30):
        said = sorted(
            ((k, float(rng.integers(0, 9) / 8)) for k in range(3) if rng.random() < 0.7),
            key=lambda one: -one[1],
        )
        rows[f"{i}"] = {"labels": said}
        truth[f"{i}"] = {"labels": [(k, 1.0) for k in range(3) if rng.random() < 0.4]}
    run(tmp_path, rows, truth, multi_label=True, score_threshold=0.5)
    classes = metrics(tmp_path, "classification")["classes"]
    for k, name in enumerate(ANIMALS["labels"]):
        scores = {i: dict(rows[i]["labels"]).get(k, -1.0) for i in rows}
        there = {i for i in rows if (k, 1.0) in truth[i]["labels"]}
        expected, before = Fraction(0), 0
        for threshold in sorted(set(scores.values()), reverse=True):
            above = {i for i in rows if scores[i] >= threshold}
            hits = len(above & there)
            expected += Fraction(hits - before, len(there)) * Fraction(hits, len(above))
            before = hits
        assert classes[name]["average_precision"]["value"] == pytest.approx(float(expected))
        above = {i for i in rows if scores[i] >= 0.5}
        recall = len(above & there) / len(there)
        assert classes[name]["recall"]["value"] == pytest.approx(recall)


def random_boxes(seed, case, count=12):
    """Return answers and truths of boxes whose scores and overlaps are often equal."""
    rng = np.random.default_rng(seed)
    rows, truth = {}, {}
    for i in range(count):
        corners = rng.integers(0, 60, (8, 2))
        xyxy = np.concatenate([corners, corners + rng.integers(4, 120, (8, 2))], axis=1)
        jitter = xyxy + rng.integers(-2, 3, xyxy.shape)
        crowd = (rng.random(8) < 0.3) if case == "crowd" else np.zeros(8, bool)
        classes = rng.integers(0, 2, (2, 8))
        same = rng.random(8) < 0.8
        said = np.where(same, classes[0], classes[1])
        scores = rng.permutation(8) / 8 if case != "ties" else rng.integers(0, 3, 8) / 4
        truth[f"{i:03d}"] = {
            "boxes": [(*map(float, b), int(k), float(c))
                      for b, k, c in zip(xyxy, classes[0], crowd, strict=True)]
        }  # fmt: skip
        rows[f"{i:03d}"] = {
            "boxes": [(*map(float, b), int(k), float(s))
                      for b, k, s in zip(jitter, said, scores, strict=True)]
        }  # fmt: skip
        if case == "no truth" and i % 2:
            truth[f"{i:03d}"] = {"boxes": []}
        if case == "no prediction" and i % 2:
            rows[f"{i:03d}"] = {"boxes": []}
        if case == "failed" and i % 3 == 0:
            rows[f"{i:03d}"] = {"failed": True}
    return rows, truth


def flat(rows, names):
    found = [(i, box) for i, name in enumerate(names) for box in rows[name].get("boxes", [])]
    xyxy = np.array([box[:4] for _, box in found], np.float32).reshape(-1, 4)
    columns = np.array([[i, box[4], box[5]] for i, box in found]).reshape(-1, 3)
    return xyxy, columns[:, 1].astype(int), columns[:, 0].astype(int), columns[:, 2]


@pytest.mark.parametrize(
    "case", ["plain", "crowd", "ties", "no truth", "no prediction", "failed", "nothing at all"]
)
def test_detection_is_that_of_pycocotools(case, tmp_path):
    rows, truth = random_boxes(len(case), case)
    if case == "nothing at all":
        rows = {name: {"boxes": []} for name in rows}
        truth = {name: {"boxes": []} for name in rows}
    names = sorted(rows)
    run(tmp_path, rows, truth, classes=THINGS, part_images=5)
    xyxy, class_id, index, score = flat(rows, names)
    said = Boxes(xyxy, score, class_id, index)
    xyxy, class_id, index, crowd = flat(truth, names)
    area = np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1)
    there = TrueBoxes(xyxy, class_id, index, crowd.astype(bool), area)
    oracle = pycoco(said, there, len(names), 2)
    found = overall(tmp_path, "detection")
    got = np.array([-1 if found[name] is None else found[name] for name in COCO_FIGURES])
    np.testing.assert_allclose(got, oracle.stats, rtol=0, atol=1e-6)


def test_boxes_right_and_wrong_at_the_thresholds(tmp_path):
    box = (0.0, 0.0, 10.0, 10.0)
    half = (0.0, 0.0, 10.0, 6.0)  # IoU 0.6
    rows = {
        "a": {"boxes": [(*box, 0, 0.9), (*box, 0, 0.8), (*box, 0, 0.3)]},
        "b": {"boxes": [(*half, 0, 0.7)]},
    }
    truth = {"a": {"boxes": [(*box, 0, 0)]}, "b": {"boxes": [(*box, 0, 0), (*box, 1, 0)]}}
    run(tmp_path, rows, truth, classes=THINGS)
    cup = metrics(tmp_path, "detection")["classes"]["cup"]
    assert cup["precision"]["value"] == pytest.approx(2 / 3)  # the box of 0.3 is below
    assert cup["recall"]["value"] == 1.0
    assert overall(tmp_path, "detection")["micro_recall"] == pytest.approx(2 / 3)
    run(tmp_path, classes=THINGS, iou_threshold=0.65, overwrite=True)
    cup = metrics(tmp_path, "detection")["classes"]["cup"]
    assert (cup["precision"]["value"], cup["recall"]["value"]) == pytest.approx((1 / 3, 1 / 2))


def random_masks(seed, count=9):
    rng = np.random.default_rng(seed)
    rows, truth = {}, {}
    for i in range(count):
        shape = (5 + i, 7)
        real = rng.integers(0, 4, shape).astype(np.uint8)
        rows[f"{i}"] = {"mask": rng.integers(0, 3, shape).astype(np.uint8)}
        truth[f"{i}"] = {"mask": np.where(real == 3, VOID_CLASS, real).astype(np.uint8)}
    rows["4"] = {"failed": True}
    return rows, truth


@pytest.mark.parametrize("ignored", [None, "sea"])
def test_segmentation_is_that_of_counted_pixels(ignored, tmp_path):
    rows, truth = random_masks(3)
    run(tmp_path, rows, truth, classes=GROUND, ignored_class=ignored)
    pixels = []
    for name, true in truth.items():
        said = rows[name].get("mask", np.full(true["mask"].shape, 9)).reshape(-1)
        pixels += zip(true["mask"].reshape(-1).tolist(), said.tolist(), strict=True)
    out = {VOID_CLASS} | ({1} if ignored else set())
    pixels = [(real, said) for real, said in pixels if real not in out]
    found = overall(tmp_path, "segmentation")
    right = sum(real == said for real, said in pixels)
    assert found["pixel_accuracy"] == pytest.approx(right / len(pixels))
    ious = []
    for k in range(3):
        both = pixels.count((k, k))
        either = sum(k in pair for pair in pixels)
        ious.append(both / either)
    assert found["mean_iou"] == pytest.approx(np.mean(ious))


# The laws


def all_tasks(seed):
    tables = [random_animals(seed, 12), random_boxes(seed, "crowd"), random_masks(seed, 12)]
    names = [f"{i:03d}" for i in range(12)]
    sides = []
    for side in range(2):
        columns = [list(table[side].values()) for table in tables]
        sides.append({n: {k: v for c in columns for k, v in c[i].items()}
                      for i, n in enumerate(names)})  # fmt: skip
    return *sides, {**ANIMALS, **THINGS, **GROUND}


FILES = ("metrics.json", "metrics.parquet", "unmatched.parquet", "confusion_segmentation.png")


@pytest.mark.ray
def test_the_figures_do_not_depend_on_how_the_work_was_cut(tmp_path, ray_session):
    rows, truth, classes = all_tasks(2)
    found = []
    for part_images, shard_images, workers in [(100, 100, 1), (1, 5, 1), (3, 2, 2)]:
        folder = tmp_path / f"{part_images}"
        said = {"part_images": part_images, "shard_images": shard_images, "workers": workers}
        run(folder, rows, truth, classes, bootstrap=25, **said)
        found.append({name: (folder / "out" / name).read_bytes() for name in FILES})
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("shard_images", [150, 70])  # of row groups of 64
def test_each_image_finds_its_truth_wherever_it_lies(shard_images, tmp_path):
    rows, truth = random_animals(8, 150)
    names = list(rows)
    np.random.default_rng(0).shuffle(names)
    there = {name: truth[name] for name in names}
    run(tmp_path, rows, there, part_images=40, shard_images=shard_images)
    right = sum(
        bool(rows[name].get("labels")) and rows[name]["labels"][0][0] == true["labels"][0][0]
        for name, true in truth.items()
    )
    assert overall(tmp_path, "classification")["accuracy"] == pytest.approx(right / 150)


def test_intervals_lie_round_the_figures_and_follow_the_seed(tmp_path):
    rows, truth, classes = all_tasks(4)
    run(tmp_path, rows, truth, classes, bootstrap=200)
    first = (tmp_path / "out" / "metrics.json").read_bytes()
    table = pq.read_table(tmp_path / "out" / "metrics.parquet").to_pylist()
    for metric in ("accuracy", "ap", "ap50", "pixel_accuracy", "micro_f1", "top_1"):
        row = next(r for r in table if r["metric"] == metric and r["class"] is None)
        assert row["low"] < row["value"] < row["high"], row
    run(tmp_path, classes=classes, bootstrap=200, seed=1, overwrite=True)
    assert (tmp_path / "out" / "metrics.json").read_bytes() != first


def test_a_finished_evaluation_is_not_done_again_and_another_is_refused(tmp_path):
    rows, truth = random_animals(0)
    first = run(tmp_path, rows, truth)
    stamp = (tmp_path / "out" / "metrics.json").stat().st_mtime_ns
    again = run(tmp_path)
    assert (first.is_new, again.is_new) == (True, False)
    assert again.figures == first.figures
    assert (tmp_path / "out" / "metrics.json").stat().st_mtime_ns == stamp
    with pytest.raises(SinkError, match="another evaluation"):
        run(tmp_path, seed=3)
    assert run(tmp_path, seed=3, overwrite=True).is_new


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_sink_in_use_is_refused_until_its_run_is_killed(tmp_path, overwrite):
    rows, truth = random_animals(0)
    out = tmp_path / "out"
    if overwrite:
        run(tmp_path, rows, truth)
    with lease_holder(out) as process:
        before = tree(out)
        with pytest.raises(SinkError, match=rf"in use by .*process {process.pid}\)"):
            run(tmp_path, rows, truth, seed=3, overwrite=overwrite)
        assert tree(out) == before
        process.kill()
        process.wait()
        assert run(tmp_path, seed=3, overwrite=overwrite).is_new
    assert not (out / LEASE_PATH).exists()


def test_the_lease_is_held_while_parts_are_scored_and_its_loss_ends_the_evaluation(
    tmp_path, monkeypatch
):
    clock = SimulatedClock()
    monkeypatch.setattr(job_module, "Sink", partial(Sink, clock=clock))

    def merge(scored):
        assert current_holder(str(out)).pid == os.getpid()
        next(scored)
        (out / LEASE_PATH).write_bytes(FAR.to_json())
        clock.sleep(HEARTBEAT_S)
        return merge_scores(scored)

    out = tmp_path / "out"
    monkeypatch.setattr(job_module, "merged", merge)
    rows, truth = random_animals(0)
    with pytest.raises(CvbatchError, match="taken over by a run on far"):
        run(tmp_path, rows, truth, part_images=3)
    assert tree(out) == {}
    assert (out / LEASE_PATH).read_bytes() == FAR.to_json()


def test_the_command_from_a_store_into_it(tmp_path, s3_server):
    rows, truth = random_animals(0)
    write_result(s3_server.bucket / "scored" / "said", rows, ANIMALS)
    write_truth(s3_server.bucket / "scored" / "truth", truth, ANIMALS)
    job = {
        "predictions": {"uri": "s3://bucket/scored/said"},
        "truth": {"uri": "s3://bucket/scored/truth"},
        "sink": {"uri": "s3://bucket/scored/out"},
        "evaluation": {"bootstrap": 0},
    }
    path = write_job(tmp_path / "job.yaml", job)
    env = {**os.environ, **s3_server.env}
    status, said, told = cvbatch("evaluate", "--config", path, "--json", env=env)
    assert status == 0, told
    run(tmp_path, rows, truth)
    there, here = s3_server.bucket / "scored" / "out", tmp_path / "out"
    for name in ("metrics.parquet", "unmatched.parquet", "confusion_classification.png"):
        assert (there / name).read_bytes() == (here / name).read_bytes()
    assert json.loads(said)["images"]["failed"] == 1


def test_the_command_prints_a_table_and_refuses_in_a_line(tmp_path):
    rows, truth = random_animals(0)
    write_result(tmp_path / "said", rows, ANIMALS)
    write_truth(tmp_path / "truth", truth, ANIMALS)
    job = {
        "predictions": {"uri": str(tmp_path / "said")},
        "truth": {"uri": str(tmp_path / "truth")},
        "sink": {"uri": str(tmp_path / "out")},
    }
    path = write_job(tmp_path / "job.yaml", job)
    status, said, told = cvbatch("evaluate", "--config", path)
    assert status == 0, told
    assert said.splitlines()[0].split() == [
        "task",
        "metric",
        "value",
        "95",
        "%",
        "interval",
        "count",
    ]
    assert told.splitlines()[-1].startswith("cvbatch: done, 40 images compared into")
    status, said, told = cvbatch("evaluate", "--config", path, "--set", "predictions.uri=nowhere")
    assert (status, said) == (2, "")
    assert "name the sink of a `cvbatch predict`" in told.splitlines()[-1]
