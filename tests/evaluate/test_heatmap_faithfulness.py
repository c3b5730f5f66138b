"""What heatmaps come to is what one image, one step at a time, comes to."""

import json
import shutil
from itertools import pairwise

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from cvbatch.config.predict import SourceConfig
from cvbatch.core.types import InputKey, ModelSpec
from cvbatch.evaluate import heatmap_faithfulness
from cvbatch.evaluate.heatmap_faithfulness import CURVES, HeatmapScore, HeatmapSpec, score_group
from cvbatch.evaluate.heatmap_metrics import (
    boxes_to_parquet,
    heatmap_details,
    heatmap_metric_rows,
    merge_heatmap_scores,
)
from cvbatch.evaluate.join import join, load_ground_truth, predictions_only
from cvbatch.evaluate.perturbation import blur, mirror_and_shift, seeded_rng
from cvbatch.evaluate.scoring import EvaluationSpec
from cvbatch.geometry.resize import PADDING_GREY, make_placement, resize_image
from cvbatch.geometry.tiling import tile_placements
from cvbatch.images.decode import Limits, decode
from cvbatch.inference.programs import BuiltProgram
from cvbatch.metrics.counts import INTERVAL_PERCENTILES, bootstrap_weights
from cvbatch.results.result import Result
from tests.support.evaluations import write_truth
from tests.support.jobs import write_parquet
from tests.support.results import predicted

CLASSES = ("grass", "poppy")
SIZE = (32, 40)
GRID = (8, 10)
SEED = 5
HEATMAPS = {"heatmap": {"layer": "auto", "top_k": 2}}


class Redness:
    """A network made by hand: how much of an image is as red as a poppy."""

    def __init__(self, batch_size=4):
        self.batch_size = batch_size
        self.num_batches = 0

    def __call__(self, pixels):
        assert pixels.shape[0] == self.batch_size and pixels.dtype == np.uint8
        self.num_batches += 1
        red = pixels[..., 0].astype(np.float32) - pixels[..., 1]
        poppy = np.clip(red - 150, 0, 50).mean(axis=(1, 2)) / 50 * 20
        poppy = np.minimum(poppy, 1) * 0.9 + 0.05
        return {"scores": np.stack([1 - poppy, poppy], axis=1).astype(np.float32)}


def scene(seed, size=SIZE):
    """Return a grey image with a red rectangle of whole cells, and where that is."""
    rng = np.random.default_rng(seed)
    image = rng.integers(110, 120, (*size, 1), np.uint8).repeat(3, 2)
    top, left = rng.integers(0, 6), rng.integers(0, 8)
    cells = np.zeros(GRID, np.float32)
    cells[top : top + 2, left : left + 2] = 1
    rows, columns = (slice(4 * start, 4 * start + 8) for start in (top, left))
    image[rows, columns] = (220, 20, 20)
    return image, cells, (float(4 * left), float(4 * top), 4.0 * left + 8, 4.0 * top + 8)


def heatmap(values, class_id, score):
    return {
        "model": "m", "layer": "conv", "class_id": class_id, "label": CLASSES[class_id],
        "score": score, "height": values.shape[0], "width": values.shape[1],
        "values": values.reshape(-1).tolist(),
    }  # fmt: skip


def made(folder, count=6, resize="stretch", maps=None, size=SIZE):
    """Write images and a result over them; return its sink.

    maps: of a scene's cells the heatmaps' values by class; None: the poppy's are the cells.
    """
    source = folder / "in"
    source.mkdir(parents=True, exist_ok=True)
    key = ModelSpec("m", "classification", CLASSES, *SIZE, resize, "f" * 64).input_key
    said = {}
    for i in range(count):
        image, cells, _ = scene(i, size)
        cv2.imwrite(str(source / f"{i}.png"), image[..., ::-1])
        fed = resize_image(image, make_placement(*size, key))
        scores = Redness(1)(fed[None])["scores"][0]
        own = {1: cells} if maps is None else maps(cells)
        said[f"{i}.png"] = {
            "size": size,
            "labels": [{"class_id": 1, "label": "poppy", "score": float(scores[1])}],
            "heatmaps": [heatmap(values, k, float(scores[k])) for k, values in own.items()],
        }
    sink = folder / "out"
    return result_over(sink, source, said)


def result_over(sink, source, said, format_="images"):
    """Write a classifier's result with heatmaps."""
    tasks = ("classification",)
    predicted(sink, source, said, tasks, CLASSES, format_, classification=HEATMAPS)
    (sink / "_cvbatch" / "job.json").write_text(json.dumps({"fingerprint": "abc"}))
    return sink


def order_of(sink, resize="stretch", truth=None, batch_size=4, steps=8, others=(), **spec):
    spec = ModelSpec("m", "classification", CLASSES, *SIZE, resize, "f" * 64, "conv", **spec)
    built = BuiltProgram(spec, "litert", ("scores",), batch_size, 0, "", b"")
    class_of = {} if truth is None else {name: np.arange(2) for name in truth}
    limits = SourceConfig(uri=[str(sink.parent / "in")])
    keys = (spec.input_key, *others)
    reader = Result(str(sink)).reader
    return HeatmapSpec(reader, built, keys, limits, 60.0, class_of, steps, 0.15, SEED)


def share_of(sink, truth=None):
    """Return all images of a result as one share."""
    result = Result(str(sink))
    if truth is None:
        return predictions_only(result).parts
    return join(result, load_ground_truth([str(truth)], None), None).parts


def judged(sink, truth=None, columns=(), batch_size=4, **said):
    order = order_of(sink, truth=columns or None, batch_size=batch_size, **said)
    return score_group(order, Redness(batch_size), share_of(sink, truth))


def textbook(image, values, name, key, steps=8):
    """Return the four curves, one image and one step at a time, every pixel on its own."""
    size = image.shape[:2]
    placements = tile_placements(*size, key)
    fed = np.stack([resize_image(image, one) for one in placements])

    def laid(own):
        """Return a map over every pixel that is fed; tiles are of the original's scale."""
        over = SIZE if len(placements) == 1 else size
        whole = cv2.resize(own.astype(np.float64), over[::-1], interpolation=cv2.INTER_LINEAR)
        if len(placements) == 1:
            return whole[None]
        return np.stack([whole[r.top : r.top + r.height, r.left : r.left + r.width]
                         for r in (one.source for one in placements)])  # fmt: skip

    rng = seeded_rng(SEED, name)
    curves = []
    maps = [values, mirror_and_shift(values, rng)]
    for own in maps:
        strength, noise = laid(own), laid(rng.random(own.shape))
        where = [
            (tile, y, x)
            for tile, (top, left, height, width) in enumerate(one.target for one in placements)
            for y in range(top, top + height)
            for x in range(left, left + width)
        ]
        where.sort(key=lambda p: (-round(strength[p], 9), -noise[p]))
        grey = np.full_like(fed, PADDING_GREY)
        for start, end in ((blur(fed, placements), fed), (fed, grey)):
            curve = []
            for step in range(steps + 1):
                shown = start.copy()
                for p in where[: round(step * len(where) / steps)]:
                    shown[p] = end[p]
                curve.append(max(float(Redness(1)(t[None])["scores"][0, 1]) for t in shown))
            curves.append(curve)
    return curves


def test_nothing_in_nothing_out(tmp_path):
    order = order_of(made(tmp_path, 1))
    found = score_group(order, Redness(), [])
    assert (found.judged, found.left_out) == ([], {})
    assert merge_heatmap_scores([]).judged == []
    plain = EvaluationSpec({}, {}, (), False, None, 0.5, 0.5, 3, 0)
    assert list(heatmap_metric_rows([], plain)) == []


@pytest.mark.parametrize(
    ("resize", "size"),
    [("stretch", SIZE), ("stretch", (50, 41)), ("letterbox", (32, 70)), ("crop", (64, 40))],
)
def test_curves_are_those_of_one_image_and_one_step_at_a_time(resize, size, tmp_path):
    sink = made(tmp_path, 3, resize, size=size)
    order = order_of(sink, resize)
    found = score_group(order, Redness(), share_of(sink))
    assert (len(found.judged), found.left_out) == (3, {})
    for one in found.judged:
        image, cells, _ = scene(int(one.image_id.removesuffix(".png")), size)
        key = order.program.spec.input_key
        expected = textbook(image, cells, f"1/{one.image_id}", key)
        np.testing.assert_allclose(one.curves, expected, atol=1e-6)


def test_a_map_of_the_true_region_beats_chance(tmp_path):
    found = judged(made(tmp_path, 12))
    curves = dict(zip(CURVES, np.mean([one.curves for one in found.judged], axis=0), strict=True))
    assert (curves["insertion"] >= curves["random_insertion"] - 1e-6).all()
    assert (curves["deletion"] <= curves["random_deletion"] + 1e-6).all()
    assert curves["insertion"].mean() > curves["random_insertion"].mean() + 0.2
    assert curves["deletion"].mean() < curves["random_deletion"].mean() - 0.2


def test_all_pixels_in_and_none_gone_are_the_networks_own_score(tmp_path):
    for one in judged(made(tmp_path, 4)).judged:
        inserted, deleted, other_inserted, other_deleted = one.curves
        assert inserted[-1] == deleted[0] == other_inserted[-1] == other_deleted[0]
        assert inserted[-1] == pytest.approx(one.score)
        assert inserted[0] == other_inserted[0] and deleted[-1] == other_deleted[-1]


def test_one_step_leaves_but_the_ends(tmp_path):
    sink = made(tmp_path, 1, maps=lambda cells: {1: cells, 0: cells})
    fine, coarse = judged(sink).judged, judged(sink, steps=1).judged
    assert [one.curves.shape for one in coarse] == [(4, 2)] * 2
    for one, other in zip(fine, coarse, strict=True):
        np.testing.assert_array_equal(one.curves[:, [0, -1]], other.curves)


def test_each_class_of_an_image_is_asked_for_itself(tmp_path):
    found = judged(made(tmp_path, 2, maps=lambda cells: {1: cells, 0: 1 - cells}))
    assert [(one.image_id, one.class_id) for one in found.judged] == [
        ("0.png", 1), ("0.png", 0), ("1.png", 1), ("1.png", 0),
    ]  # fmt: skip
    for poppy, grass in zip(found.judged[::2], found.judged[1::2], strict=True):
        # the meadow comes first and the poppy last: the same in the other order
        assert grass.curves[0, -1] == pytest.approx(1 - poppy.curves[0, -1])
        assert grass.curves[0, 1:-1].mean() > 0.7
        assert grass.label == "grass"


def test_neither_batches_nor_company_nor_order_change_a_curve(tmp_path):
    sink = made(tmp_path, 4)
    share = share_of(sink)
    order = order_of(sink)
    whole = merge_heatmap_scores([score_group(order, Redness(), share)])
    alone = [
        piece._replace(part_row=piece.part_row[i : i + 1])
        for piece in share
        for i in range(len(piece.part_row))
    ]
    parts = merge_heatmap_scores([score_group(order, Redness(), [one]) for one in alone[::-1]])
    other = merge_heatmap_scores([score_group(order_of(sink, batch_size=7), Redness(7), share)])
    for one, two, three in zip(whole.judged, parts.judged, other.judged, strict=True):
        assert one.image_id == two.image_id == three.image_id
        assert one.curves.tobytes() == two.curves.tobytes()
        np.testing.assert_allclose(one.curves, three.curves, atol=1e-6)


def test_curves_of_an_image_that_was_cut_are_those_of_its_best_tile(tmp_path, monkeypatch):
    size = (64, 40)
    tiling = {"tile_height": 32, "tile_width": 40, "overlap_height": 8, "overlap_width": 8}
    values = np.random.default_rng(0).random((16, 10)).astype(np.float32)  # over the original
    sink = made(tmp_path, 1, size=size)
    order = order_of(sink, **tiling)
    key = order.program.spec.input_key
    image, _, _ = scene(0, size)
    tiles = np.stack([resize_image(image, one) for one in tile_placements(*size, key)])
    score = float(Redness(3)(tiles)["scores"][:, 1].max())
    shutil.rmtree(sink)
    rows = {"0.png": {"size": size, "labels": [], "heatmaps": [heatmap(values, 1, score)]}}
    result_over(sink, tmp_path / "in", rows)
    (one,) = score_group(order, Redness(), share_of(sink)).judged
    assert one.curves[0, -1] == one.curves[1, 0] == pytest.approx(score) and score > 0.9
    np.testing.assert_allclose(one.curves, textbook(image, values, "1/0.png", key), atol=1e-6)
    monkeypatch.setattr(heatmap_faithfulness, "MAX_TILE_BYTES", tiles.nbytes - 1)
    found = score_group(order, Redness(), share_of(sink))
    assert (found.judged, found.left_out["0.png"].kind) == ([], "too_large")


def test_a_large_jpeg_is_read_as_all_models_of_the_job_had_it(tmp_path):
    """Read for a small input alone it would be reduced, and other pixels fed."""
    size = (8 * SIZE[0], 8 * SIZE[1])
    sink = made(tmp_path, 1, size=size)
    own, other = order_of(sink).keys[0], InputKey(200, 300, "stretch")
    image, cells, _ = scene(0, SIZE)
    big = cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST)
    data = cv2.imencode(".jpg", big[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
    (tmp_path / "in" / "0.png").write_bytes(data)
    fed = [decode(data, keys, Limits()).pixels[own] for keys in ([own], [own, other])]
    assert not np.array_equal(*fed)
    score = float(Redness(1)(fed[1][None])["scores"][0, 1])
    shutil.rmtree(sink)
    rows = {"0.png": {"size": size, "labels": [], "heatmaps": [heatmap(cells, 1, score)]}}
    result_over(sink, tmp_path / "in", rows)
    (one,) = score_group(order_of(sink, others=[other]), Redness(), share_of(sink)).judged
    assert one.curves[0, -1] == one.curves[1, 0] == np.float32(score)


GONE = {
    "missing": lambda path: path.unlink(),
    "not_an_image": lambda path: path.write_bytes(b"text"),
    "changed": lambda path: cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8)),
    "of another score": lambda path: cv2.imwrite(str(path), np.zeros((*SIZE, 3), np.uint8)),
}


@pytest.mark.parametrize("kind", GONE)
def test_an_image_that_is_gone_or_another_now_is_named_and_left_out(kind, tmp_path):
    sink = made(tmp_path, 3)
    GONE[kind](tmp_path / "in" / "1.png")
    found = judged(sink)
    assert [one.image_id for one in found.judged] == ["0.png", "2.png"]
    ((name, why),) = found.left_out.items()
    assert (name, why.kind) == ("1.png", "changed" if kind.startswith("of") else kind)
    details = heatmap_details(merge_heatmap_scores([found]))
    assert list(details["left_out"].values()) == [1]


def with_truth(folder, truth):
    """Return what is judged of four scenes: image 0 … 3, against boxes and masks."""
    sink = made(folder, len(truth))
    columns = [c for c in ("boxes", "mask") if any(one.get(c) is not None for one in truth)]
    rows = {f"{i}.png": {"boxes": [], **one} for i, one in enumerate(truth)}
    tables = dict.fromkeys(columns, CLASSES)
    there = write_truth(folder / "truth", rows, tables)
    return judged(sink, there, columns).judged


def test_a_maximum_is_held_against_boxes_of_its_class_or_else_its_mask(tmp_path):
    boxes = [scene(i)[2] for i in range(6)]
    far = (0.0, 0.0, 0.5, 0.5)
    around = np.zeros(SIZE, np.uint8)
    for i in (3, 4):
        left, top, right, bottom = map(int, boxes[i])
        around[top:bottom, left:right] = 1
    found = with_truth(
        tmp_path,
        [
            {"boxes": [(*boxes[0], 1, 0)]},
            {"boxes": [(*far, 1, 0), (*boxes[1], 0, 0)]},  # grass where the poppy is
            {"boxes": [(*far, 1, 0), (*boxes[2], 1, 0)]},
            {"boxes": [], "mask": around},
            {"boxes": [(*far, 1, 0)], "mask": around},  # of both the box counts
            {"boxes": [(*boxes[5], 0, 0)], "mask": np.zeros(SIZE, np.uint8)},  # no poppy there
        ],
    )
    hits = [one.is_hit[0] for one in found]
    assert hits[:5] == [1, 0, 1, 1, 0] and np.isnan(hits[5])
    assert [np.isnan(one.box_iou[0]) for one in found] == [0, 0, 0, 1, 0, 1]
    assert found[0].box_iou[0] == found[2].box_iou[0] > 0.4 and found[1].box_iou[0] == 0


def test_figures_are_means_and_the_boxes_a_table(tmp_path):
    truth = [{"boxes": [(*scene(i)[2], 1, 0)] if i % 3 else []} for i in range(9)]
    found = with_truth(tmp_path, truth)
    order = EvaluationSpec({}, {}, (), False, None, 0.5, 0.5, 50, 1)
    figures = list(heatmap_metric_rows(found, order))
    overall = {one.metric: one for one in figures if one.class_name is None}
    by_class = {one.metric: one for one in figures if one.class_name == "poppy"}
    assert overall.keys() == by_class.keys()
    inserted = [sum((a + b) / 16 for a, b in pairwise(c)) for c in
                (one.curves[0].tolist() for one in found)]  # fmt: skip
    assert overall["insertion_auc"].value == pytest.approx(np.mean(inserted))
    assert overall["insertion_auc"].count == 9
    assert (overall["pointing_game"].value, overall["pointing_game"].count) == (1.0, 6)
    ious = [one.box_iou[0] for one in found if not np.isnan(one.box_iou[0])]
    assert overall["box_iou"].value == pytest.approx(np.mean(ious))
    assert overall["box_iou_50"].value == np.mean(np.array(ious) >= 0.5)
    for name in ("insertion_auc", "random_deletion_auc", "random_pointing_game", "box_iou"):
        assert overall[name].low <= overall[name].value <= overall[name].high
    rows = pq.read_table(boxes_to_parquet(found)).to_pylist()
    assert [row["image_id"] for row in rows] == [one.image_id for one in found]
    for row in rows:
        left, top, right, bottom = scene(int(row["image_id"][0]))[2]
        assert row["x_min"] < (left + right) / 2 < row["x_max"]
        assert row["y_min"] < (top + bottom) / 2 < row["y_max"]
        assert (row["label"], row["iou"] is None) == ("poppy", int(row["image_id"][0]) % 3 == 0)


def test_intervals_are_those_of_the_images_drawn_again():
    rng = np.random.default_rng(3)
    nothing = np.zeros((0, 4), np.float32)
    some = [
        HeatmapScore(f"{i // 2}", i % 2, CLASSES[i % 2], 0.5, rng.random((4, 5)),
               (float(i % 3 == 0), np.nan), ((0.4, 0.5, 0.6)[i % 3], np.nan), nothing)
        for i in range(20)
    ]  # fmt: skip
    order = EvaluationSpec({}, {}, (), False, None, 0.5, 0.5, 30, 7)
    figures = {(one.class_name, one.metric): one for one in heatmap_metric_rows(some, order)}
    assert figures[None, "box_iou_50"].value == 13 / 20
    weights = bootstrap_weights([one.image_id for one in some], 30, 7)
    for name, number in (("grass", 0), ("poppy", 1), (None, None)):
        drawn = []
        for r in range(31):
            rows = [i for i in range(20) if number in (None, some[i].class_id)]
            total = sum(weights[i, r] for i in rows)
            drawn.append(sum(weights[i, r] * some[i].is_hit[0] for i in rows) / total)
        found = figures[name, "pointing_game"]
        assert found.value == pytest.approx(drawn[0])
        assert (found.low, found.high) == pytest.approx(
            tuple(np.percentile(drawn[1:], INTERVAL_PERCENTILES))
        )
    assert not [one for one in figures if one[1] in ("random_pointing_game", "random_box_iou")]


def test_without_a_truth_only_insertion_and_deletion_are_figures(tmp_path):
    found = judged(made(tmp_path, 3))
    order = EvaluationSpec({}, {}, (), False, None, 0.5, 0.5, 0, 0)
    assert {one.metric for one in heatmap_metric_rows(found.judged, order)} == {
        "insertion_auc", "random_insertion_auc", "deletion_auc", "random_deletion_auc",
    }  # fmt: skip


def test_a_map_of_nothing_points_nowhere_and_has_no_box(tmp_path):
    sink = made(tmp_path, 2, maps=lambda cells: {1: 0 * cells})
    truth = {f"{i}.png": {"boxes": [(*scene(i)[2], 1, 0)]} for i in range(2)}
    there = write_truth(tmp_path / "truth", truth, {"boxes": CLASSES})
    found = judged(sink, there, ("boxes",)).judged
    assert [(one.is_hit, one.box_iou, len(one.box_xyxy)) for one in found] == [
        ((0, 0), (0, 0), 0)
    ] * 2


def test_images_inside_parquet_are_found_there(tmp_path):
    sink = made(tmp_path, 3)
    expected = judged(sink).judged
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "in").glob("*.png"))}
    packed = write_parquet(tmp_path / "packed" / "all.parquet", files, row_group_size=2)
    said = {}
    for i, one in enumerate(expected):
        maps = [heatmap(scene(i)[1], 1, one.score)]
        said[f"all.parquet#{i}"] = {"size": SIZE, "labels": [], "heatmaps": maps}
    out = result_over(tmp_path / "again", packed.parent, said, "parquet")
    found = judged(out).judged
    assert [one.image_id for one in found] == list(said)
    for one, two in zip(expected, found, strict=True):
        assert one.curves[:2, [0, -1]].tolist() == two.curves[:2, [0, -1]].tolist()
