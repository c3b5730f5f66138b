"""Metrics of an evaluation equal plain loops and pycocotools, for any division into parts."""

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
from cvbatch.metrics.box_matching import GroundTruthBoxes
from cvbatch.storage.lease import HEARTBEAT_S, LEASE_PATH, current_holder
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage
from tests.metrics.test_average_precision import COCO_METRICS, evaluate_with_pycocotools
from tests.support.evaluations import TextListener, write_result, write_truth
from tests.support.jobs import cvbatch, write_job
from tests.support.lease_holder import FAR, lease_holder, tree
from tests.support.simulated_clock import SimulatedClock

pytestmark = pytest.mark.process

ANIMALS = {"labels": ("cat", "dog", "owl")}
OBJECTS = {"boxes": ("cup", "hat")}
SURFACES = {"mask": ("sky", "sea", "sand")}


def run(tmp_path, rows=None, truth=None, classes=ANIMALS, listener=None, **options):
    """Write predictions and labels if given, evaluate them, return the summary."""
    is_multi_label = options.pop("multi_label", False)
    workers = options.pop("workers", 1)
    overwrite = options.pop("overwrite", False)
    splits = options.pop("splits", None)
    parts = {
        name: options.pop(name)
        for name in ("part_images", "left", "version", "is_replanned")
        if name in options
    }
    if rows is not None:
        predicted = options.pop("predicted", classes)
        write_result(tmp_path / "predictions", rows, predicted, **parts)
    if truth is not None:
        shard_images = options.pop("shard_images", 4)
        write_truth(tmp_path / "truth", truth, classes, is_multi_label, shard_images)
    job = parse_evaluation(
        {
            "predictions": {"uri": str(tmp_path / "predictions")},
            "truth": {"uri": str(tmp_path / "truth"), "splits": splits},
            "sink": {"uri": str(tmp_path / options.pop("sink", "out"))},
            "evaluation": {"bootstrap": 0, **options},
            "run": {"workers": workers},
        }
    )
    return evaluate(job, listener or TextListener(), overwrite=overwrite)


def metrics(tmp_path, task, sink="out"):
    return json.loads((tmp_path / sink / "metrics.json").read_text())["tasks"][task]


def overall(tmp_path, task):
    return {name: row["value"] for name, row in metrics(tmp_path, task)["overall"].items()}


def random_animals(seed, count=40):
    """Return predictions and labels; one image failed."""
    rng = np.random.default_rng(seed)
    rows, truth = {}, {}
    for i in range(count):
        ranking = rng.permutation(3)
        scores = np.sort(rng.integers(0, 8, 3) / 8)[::-1]
        image_id = f"{i:03d}.jpg"
        rows[image_id] = {"labels": list(zip(ranking.tolist(), scores.tolist(), strict=True))}
        truth[image_id] = {"labels": [(int(rng.integers(0, 3)), 1.0)]}
    rows["007.jpg"] = {"failed": True}
    return rows, truth


def all_cats(count=2):
    rows = {f"{i}.jpg": {"labels": [(0, 0.5)]} for i in range(count)}
    return rows, {name: {"labels": [(0, 1.0)]} for name in rows}


# Refusals


def test_an_empty_result_is_refused(tmp_path):
    _, truth = all_cats()
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
    "no such split": ({"splits": ["tset"]}, "no image is in split 'tset'; there are 'test'"),
    "too large a k": ({"top_k": [9]}, "9 is more than the 3 best"),
    "ignored without masks": ({"ignored_class": "sky"}, "the data has no such classes; remove it"),
    "nothing in common": ({"predicted": OBJECTS}, "predictions have boxes, the truth has labels"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_inputs_that_do_not_match_are_refused_and_nothing_is_written(case, tmp_path):
    options, message = REFUSALS[case]
    rows, truth = all_cats()
    if options.get("predicted") == OBJECTS:
        rows = {name: {"boxes": []} for name in rows}
    if options.get("rename"):
        truth = {f"other/x{name}": value for name, value in truth.items()}
    options = {key: value for key, value in options.items() if key != "rename"}
    with pytest.raises(RefusedError, match=message) as caught:
        run(tmp_path, rows, truth, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_sink_of_something_else_is_refused(tmp_path):
    rows, truth = all_cats()
    run(tmp_path, rows, truth)
    for sink in ("predictions", "truth"):
        with pytest.raises(SinkError, match="use an"):
            run(tmp_path, sink=sink)


# Joined images


def test_unmatched_and_failed_images_are_counted_and_listed(tmp_path):
    rows, truth = all_cats(6)
    del truth["1.jpg"], rows["2.jpg"], rows["5.jpg"]
    rows["3.jpg"] = {"failed": True}
    listener = TextListener()
    summary = run(tmp_path, rows, truth, listener=listener)
    assert summary.images["images"] == 3
    assert "1 images have no truth and are left out: 1.jpg" in listener.text
    assert "2 images have no prediction and are left out: 2.jpg, 5.jpg" in listener.text
    unmatched = pq.read_table(tmp_path / "out" / "unmatched.parquet").to_pylist()
    assert {(row["image_id"], row["side"], row["reason"]) for row in unmatched} == {
        ("1.jpg", "predictions", "no_truth"),
        ("2.jpg", "truth", "no_prediction"),
        ("5.jpg", "truth", "no_prediction"),
        ("3.jpg", "predictions", "failed"),
    }
    assert overall(tmp_path, "classification")["accuracy"] == pytest.approx(2 / 3)


def test_an_unfinished_result_is_evaluated_on_its_finished_chunks(tmp_path):
    rows, truth = all_cats(5)
    listener = TextListener()
    summary = run(tmp_path, rows, truth, part_images=2, left=1, listener=listener)
    assert (summary.images["images"], summary.images["no_prediction"]) == (4, 1)
    assert "1 of its chunks are not done" in listener.text


def test_a_part_whose_images_changed_is_not_evaluated(tmp_path):
    rows, truth = all_cats(5)
    listener = TextListener()
    summary = run(tmp_path, rows, truth, part_images=2, is_replanned=True, listener=listener)
    assert (summary.images["images"], summary.images["no_prediction"]) == (3, 2)
    assert "1 of its chunks are not done" in listener.text


def test_other_splits_are_left_out(tmp_path):
    rows, truth = all_cats(4)
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
    write_result(tmp_path / "predictions", rows, ANIMALS)
    assert run(tmp_path, sink="by_id").joined_by == "image_id"
    assert metrics(tmp_path, "classification", "by_id") == by_row


def test_images_join_by_their_name_if_set(tmp_path):
    rows, truth = all_cats()
    truth = {f"JPEGImages/{name}": value for name, value in truth.items()}
    with pytest.raises(SourceError, match=r"evaluation\.join: name"):
        run(tmp_path, rows, truth)
    assert run(tmp_path, join="name").images["images"] == 2


def test_duplicate_names_are_refused(tmp_path):
    rows, truth = all_cats()
    with pytest.raises(SourceError, match=r"0\.jpg names more than one image"):
        run(tmp_path, rows | {"b/0.jpg": rows["0.jpg"]}, truth, join="name")


def test_ids_that_match_two_kinds_of_key_are_refused(tmp_path):
    rows, truth = all_cats()
    write_truth(tmp_path / "truth", truth, ANIMALS)
    name = next((tmp_path / "truth").glob("*.parquet")).name
    with pytest.raises(ConfigError, match=r"evaluation\.join: images are common by"):
        run(tmp_path, rows | {f"{name}#0": rows["0.jpg"]})


# Metrics


@pytest.mark.parametrize("seed", range(3))
def test_classification_equals_plain_loops(seed, tmp_path):
    rows, truth = random_animals(seed)
    run(tmp_path, rows, truth, top_k=[1, 2])
    hits, top_2, pairs = 0, 0, []
    for name, true in truth.items():
        ranked = rows[name].get("labels", [])
        predicted = ranked[0][0] if ranked else None
        label = true["labels"][0][0]
        label_score = [score for k, score in ranked if k == label]
        top_2 += bool(label_score) and sum(score > label_score[0] for _, score in ranked) < 2
        hits += predicted == label
        pairs.append((label, predicted))
    values = overall(tmp_path, "classification")
    assert values["accuracy"] == pytest.approx(hits / len(truth))
    assert values["top_2"] == pytest.approx(top_2 / len(truth))
    classes = metrics(tmp_path, "classification")["classes"]
    for k, name in enumerate(ANIMALS["labels"]):
        num_hits = pairs.count((k, k))
        assert classes[name]["precision"]["value"] == pytest.approx(
            num_hits / sum(predicted == k for _, predicted in pairs)
        )
        assert classes[name]["recall"]["value"] == pytest.approx(
            num_hits / sum(label == k for label, _ in pairs)
        )


def test_predicted_classes_match_true_ones_by_name_and_map(tmp_path):
    rows, truth = random_animals(5)
    run(tmp_path, rows, truth)
    # The same predictions of a network whose class table has another order, another name, and one
    # more class.
    table = {"labels": ("owl", "chien", "fog", "cat")}
    new_id = {0: 3, 1: 1, 2: 0}
    renamed = {
        name: row if "failed" in row
        else {"labels": [(2, 0.99), *((new_id[k], score) for k, score in row["labels"])]}
        for name, row in rows.items()
    }  # fmt: skip
    mapped = {"chien": "dog", "fog": None}
    (tmp_path / "b").mkdir()
    run(tmp_path / "b", renamed, truth, predicted=table, class_map=mapped)
    assert metrics(tmp_path, "classification") == metrics(tmp_path / "b", "classification")


def test_a_true_class_that_no_predicted_class_matches_is_reported(tmp_path):
    rows, truth = all_cats()
    listener = TextListener()
    run(tmp_path, rows, truth, predicted={"labels": ("cat", "dog")}, listener=listener)
    assert "no predicted class matches owl" in listener.text


@pytest.mark.parametrize("seed", range(2))
def test_multi_label_average_precision_equals_its_definition(seed, tmp_path):
    rng = np.random.default_rng(seed)
    rows, truth = {}, {}
    for i in range(30):
        labels = sorted(
            ((k, float(rng.integers(0, 9) / 8)) for k in range(3) if rng.random() < 0.7),
            key=lambda label: -label[1],
        )
        rows[f"{i}"] = {"labels": labels}
        truth[f"{i}"] = {"labels": [(k, 1.0) for k in range(3) if rng.random() < 0.4]}
    run(tmp_path, rows, truth, multi_label=True, score_threshold=0.5)
    classes = metrics(tmp_path, "classification")["classes"]
    for k, name in enumerate(ANIMALS["labels"]):
        scores = {i: dict(rows[i]["labels"]).get(k, -1.0) for i in rows}
        positive = {i for i in rows if (k, 1.0) in truth[i]["labels"]}
        expected, before = Fraction(0), 0
        for threshold in sorted(set(scores.values()), reverse=True):
            above = {i for i in rows if scores[i] >= threshold}
            hits = len(above & positive)
            expected += Fraction(hits - before, len(positive)) * Fraction(hits, len(above))
            before = hits
        assert classes[name]["average_precision"]["value"] == pytest.approx(float(expected))
        above = {i for i in rows if scores[i] >= 0.5}
        recall = len(above & positive) / len(positive)
        assert classes[name]["recall"]["value"] == pytest.approx(recall)


def random_boxes(seed, case, count=12):
    """Return predicted and labelled boxes whose scores and overlaps are often equal."""
    rng = np.random.default_rng(seed)
    rows, truth = {}, {}
    for i in range(count):
        corners = rng.integers(0, 60, (8, 2))
        xyxy = np.concatenate([corners, corners + rng.integers(4, 120, (8, 2))], axis=1)
        jitter = xyxy + rng.integers(-2, 3, xyxy.shape)
        crowd = (rng.random(8) < 0.3) if case == "crowd" else np.zeros(8, bool)
        classes = rng.integers(0, 2, (2, 8))
        same = rng.random(8) < 0.8
        predicted = np.where(same, classes[0], classes[1])
        scores = rng.permutation(8) / 8 if case != "ties" else rng.integers(0, 3, 8) / 4
        truth[f"{i:03d}"] = {
            "boxes": [(*map(float, b), int(k), float(c))
                      for b, k, c in zip(xyxy, classes[0], crowd, strict=True)]
        }  # fmt: skip
        rows[f"{i:03d}"] = {
            "boxes": [(*map(float, b), int(k), float(s))
                      for b, k, s in zip(jitter, predicted, scores, strict=True)]
        }  # fmt: skip
        if case == "no truth" and i % 2:
            truth[f"{i:03d}"] = {"boxes": []}
        if case == "no prediction" and i % 2:
            rows[f"{i:03d}"] = {"boxes": []}
        if case == "failed" and i % 3 == 0:
            rows[f"{i:03d}"] = {"failed": True}
    return rows, truth


def flat(rows, names):
    boxes = [(i, box) for i, name in enumerate(names) for box in rows[name].get("boxes", [])]
    xyxy = np.array([box[:4] for _, box in boxes], np.float32).reshape(-1, 4)
    columns = np.array([[i, box[4], box[5]] for i, box in boxes]).reshape(-1, 3)
    return xyxy, columns[:, 1].astype(int), columns[:, 0].astype(int), columns[:, 2]


@pytest.mark.parametrize(
    "case", ["plain", "crowd", "ties", "no truth", "no prediction", "failed", "neither"]
)
def test_detection_equals_pycocotools(case, tmp_path):
    rows, truth = random_boxes(len(case), case)
    if case == "neither":
        rows = {name: {"boxes": []} for name in rows}
        truth = {name: {"boxes": []} for name in rows}
    names = sorted(rows)
    run(tmp_path, rows, truth, classes=OBJECTS, part_images=5)
    xyxy, class_id, index, score = flat(rows, names)
    predicted = Boxes(xyxy, score, class_id, index)
    xyxy, class_id, index, crowd = flat(truth, names)
    area = np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1)
    labelled = GroundTruthBoxes(xyxy, class_id, index, crowd.astype(bool), area)
    oracle = evaluate_with_pycocotools(predicted, labelled, len(names), 2)
    values = overall(tmp_path, "detection")
    actual = np.array([-1 if values[name] is None else values[name] for name in COCO_METRICS])
    np.testing.assert_allclose(actual, oracle.stats, rtol=0, atol=1e-6)


def test_true_and_false_positives_at_the_thresholds(tmp_path):
    box = (0.0, 0.0, 10.0, 10.0)
    half = (0.0, 0.0, 10.0, 6.0)  # IoU 0.6
    rows = {
        "a": {"boxes": [(*box, 0, 0.9), (*box, 0, 0.8), (*box, 0, 0.3)]},
        "b": {"boxes": [(*half, 0, 0.7)]},
    }
    truth = {"a": {"boxes": [(*box, 0, 0)]}, "b": {"boxes": [(*box, 0, 0), (*box, 1, 0)]}}
    run(tmp_path, rows, truth, classes=OBJECTS)
    cup = metrics(tmp_path, "detection")["classes"]["cup"]
    assert cup["precision"]["value"] == pytest.approx(2 / 3)  # the box of 0.3 is below
    assert cup["recall"]["value"] == 1.0
    assert overall(tmp_path, "detection")["micro_recall"] == pytest.approx(2 / 3)
    run(tmp_path, classes=OBJECTS, iou_threshold=0.65, overwrite=True)
    cup = metrics(tmp_path, "detection")["classes"]["cup"]
    assert (cup["precision"]["value"], cup["recall"]["value"]) == pytest.approx((1 / 3, 1 / 2))


@pytest.mark.parametrize("threshold", [0.01, 0.25])
def test_a_threshold_of_the_prediction_that_lowers_average_precision_is_reported(
    threshold, tmp_path
):
    rows = {"a": {"boxes": [(0.0, 0.0, 10.0, 10.0, 0, 0.9)]}}
    truth = {"a": {"boxes": [(0.0, 0.0, 10.0, 10.0, 0, 0)]}}
    write_result(tmp_path / "predictions", rows, OBJECTS, score_threshold=threshold)
    write_truth(tmp_path / "truth", truth, OBJECTS, False, 4)
    listener = TextListener()
    run(tmp_path, listener=listener)
    assert ("no boxes below their score_threshold, 0.25," in listener.text) == (threshold > 0.01)


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
def test_segmentation_equals_counted_pixels(ignored, tmp_path):
    rows, truth = random_masks(3)
    run(tmp_path, rows, truth, classes=SURFACES, ignored_class=ignored)
    pixels = []
    for name, true in truth.items():
        mask = rows[name].get("mask", np.full(true["mask"].shape, 9)).reshape(-1)
        pixels += zip(true["mask"].reshape(-1).tolist(), mask.tolist(), strict=True)
    not_counted = {VOID_CLASS} | ({1} if ignored else set())
    pixels = [(label, predicted) for label, predicted in pixels if label not in not_counted]
    values = overall(tmp_path, "segmentation")
    num_hits = sum(label == predicted for label, predicted in pixels)
    assert values["pixel_accuracy"] == pytest.approx(num_hits / len(pixels))
    ious = []
    for k in range(3):
        both = pixels.count((k, k))
        either = sum(k in pair for pair in pixels)
        ious.append(both / either)
    assert values["mean_iou"] == pytest.approx(np.mean(ious))


# Laws


def all_tasks(seed):
    tables = [random_animals(seed, 12), random_boxes(seed, "crowd"), random_masks(seed, 12)]
    names = [f"{i:03d}" for i in range(12)]
    sides = []
    for side in range(2):
        columns = [list(table[side].values()) for table in tables]
        sides.append({n: {k: v for c in columns for k, v in c[i].items()}
                      for i, n in enumerate(names)})  # fmt: skip
    return *sides, {**ANIMALS, **OBJECTS, **SURFACES}


FILES = ("metrics.json", "metrics.parquet", "unmatched.parquet", "confusion_segmentation.png")


@pytest.mark.parametrize("shard_images", [150, 70])  # of row groups of 64
def test_images_join_with_labels_in_any_order(shard_images, tmp_path):
    rows, truth = random_animals(8, 150)
    names = list(rows)
    np.random.default_rng(0).shuffle(names)
    shuffled = {name: truth[name] for name in names}
    run(tmp_path, rows, shuffled, part_images=40, shard_images=shard_images)
    num_hits = sum(
        bool(rows[name].get("labels")) and rows[name]["labels"][0][0] == true["labels"][0][0]
        for name, true in truth.items()
    )
    assert overall(tmp_path, "classification")["accuracy"] == pytest.approx(num_hits / 150)


def test_intervals_contain_the_value_and_depend_on_the_seed(tmp_path):
    rows, truth, classes = all_tasks(4)
    run(tmp_path, rows, truth, classes, bootstrap=200)
    first = (tmp_path / "out" / "metrics.json").read_bytes()
    table = pq.read_table(tmp_path / "out" / "metrics.parquet").to_pylist()
    for metric in ("accuracy", "ap", "ap50", "pixel_accuracy", "micro_f1", "top_1"):
        row = next(r for r in table if r["metric"] == metric and r["class"] is None)
        assert row["low"] < row["value"] < row["high"], row
    run(tmp_path, classes=classes, bootstrap=200, seed=1, overwrite=True)
    assert (tmp_path / "out" / "metrics.json").read_bytes() != first


def test_a_finished_evaluation_is_not_repeated_and_another_is_refused(tmp_path):
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


def test_a_lost_lease_stops_the_evaluation_and_nothing_is_written(tmp_path, monkeypatch):
    clock = SimulatedClock()
    monkeypatch.setattr(job_module, "Sink", partial(Sink, clock=clock))

    def merge(parts):
        assert current_holder(Storage(), str(out)).pid == os.getpid()
        next(parts)
        (out / LEASE_PATH).write_bytes(FAR.to_json())
        clock.sleep(HEARTBEAT_S)
        return merge_scores(parts)

    out = tmp_path / "out"
    monkeypatch.setattr(job_module, "merge_scores", merge)
    rows, truth = random_animals(0)
    with pytest.raises(CvbatchError, match="taken over by a run on far"):
        run(tmp_path, rows, truth, part_images=3)
    assert tree(out) == {}
    assert (out / LEASE_PATH).read_bytes() == FAR.to_json()


def test_the_command_reads_and_writes_an_object_store(tmp_path, s3_server):
    rows, truth = random_animals(0)
    write_result(s3_server.bucket / "evaluation" / "predictions", rows, ANIMALS)
    write_truth(s3_server.bucket / "evaluation" / "truth", truth, ANIMALS)
    job = {
        "predictions": {"uri": "s3://bucket/evaluation/predictions"},
        "truth": {"uri": "s3://bucket/evaluation/truth"},
        "sink": {"uri": "s3://bucket/evaluation/out"},
        "evaluation": {"bootstrap": 0},
    }
    path = write_job(tmp_path / "job.yaml", job)
    env = {**os.environ, **s3_server.env}
    status, stdout, stderr = cvbatch("evaluate", "--config", path, "--json", env=env)
    assert status == 0, stderr
    run(tmp_path, rows, truth)
    remote, local = s3_server.bucket / "evaluation" / "out", tmp_path / "out"
    for name in ("metrics.parquet", "unmatched.parquet", "confusion_classification.png"):
        assert (remote / name).read_bytes() == (local / name).read_bytes()
    assert json.loads(stdout)["images"]["failed"] == 1


def test_the_command_prints_a_table_and_refuses_in_a_line(tmp_path):
    rows, truth = random_animals(0)
    write_result(tmp_path / "predictions", rows, ANIMALS)
    write_truth(tmp_path / "truth", truth, ANIMALS)
    job = {
        "predictions": {"uri": str(tmp_path / "predictions")},
        "truth": {"uri": str(tmp_path / "truth")},
        "sink": {"uri": str(tmp_path / "out")},
    }
    path = write_job(tmp_path / "job.yaml", job)
    status, stdout, stderr = cvbatch("evaluate", "--config", path)
    assert status == 0, stderr
    header = "task metric value 95 % interval count"
    assert stdout.splitlines()[0].split() == header.split()
    assert stderr.splitlines()[-1].startswith("cvbatch: done, 40 images compared into")
    status, stdout, stderr = cvbatch(
        "evaluate", "--config", path, "--set", "predictions.uri=nowhere"
    )
    assert (status, stdout) == (2, "")
    assert "nowhere does not exist; check the name" in stderr.splitlines()[-1]


@pytest.mark.ray
def test_metrics_do_not_depend_on_parts_shards_or_workers(tmp_path, ray_session):
    rows, truth, classes = all_tasks(2)
    files = []
    for part_images, shard_images, workers in [(100, 100, 1), (1, 5, 1), (3, 2, 2)]:
        folder = tmp_path / f"{part_images}"
        sizes = {"part_images": part_images, "shard_images": shard_images, "workers": workers}
        run(folder, rows, truth, classes, bootstrap=25, **sizes)
        files.append({name: (folder / "out" / name).read_bytes() for name in FILES})
    assert files[0] == files[1] == files[2]
