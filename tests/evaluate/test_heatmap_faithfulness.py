"""Heatmap scores equal a plain loop over images, steps and pixels."""

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
from cvbatch.storage.store import Storage
from tests.support.evaluations import write_truth
from tests.support.jobs import write_parquet
from tests.support.results import write_predictions

pytestmark = pytest.mark.process

CLASSES = ("grass", "poppy")
SIZE = (32, 40)
GRID = (8, 10)
SEED = 5
HEATMAPS = {"heatmap": {"layer": "auto", "top_k": 2}}


class Redness:
    """A stub network: the share of the image that is as red as a poppy."""

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
    """Return a grey image with a red rectangle, its cells on the grid, and its box."""
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


def write_scenes(folder, count=6, resize="stretch", maps=None, size=SIZE):
    """Write images and their result; return its sink.

    maps: function of the cells of a scene that returns heatmaps by class; None: the cells are the
    heatmap of the poppy.
    """
    source = folder / "in"
    source.mkdir(parents=True, exist_ok=True)
    key = ModelSpec("m", "classification", CLASSES, *SIZE, resize, "f" * 64).input_key
    rows = {}
    for i in range(count):
        image, cells, _ = scene(i, size)
        cv2.imwrite(str(source / f"{i}.png"), image[..., ::-1])
        pixels = resize_image(image, make_placement(*size, key))
        scores = Redness(1)(pixels[None])["scores"][0]
        heatmaps = {1: cells} if maps is None else maps(cells)
        rows[f"{i}.png"] = {
            "size": size,
            "labels": [{"class_id": 1, "label": "poppy", "score": float(scores[1])}],
            "heatmaps": [heatmap(values, k, float(scores[k])) for k, values in heatmaps.items()],
        }
    sink = folder / "out"
    return write_heatmap_result(sink, source, rows)


def write_heatmap_result(sink, source, rows, format_="images"):
    """Write the result of a classifier with heatmaps."""
    tasks = ("classification",)
    write_predictions(sink, source, rows, tasks, CLASSES, format_, classification=HEATMAPS)
    (sink / "_cvbatch" / "job.json").write_text(json.dumps({"fingerprint": "abc"}))
    return sink


def make_spec(sink, resize="stretch", truth=None, batch_size=4, steps=8, others=(), **tiling):
    model = ModelSpec("m", "classification", CLASSES, *SIZE, resize, "f" * 64, "conv", **tiling)
    program = BuiltProgram(model, "litert", ("scores",), batch_size, 0, "", b"")
    class_of = {} if truth is None else {name: np.arange(2) for name in truth}
    limits = SourceConfig(uri=[str(sink.parent / "in")])
    keys = (model.input_key, *others)
    reader = Result(Storage(), str(sink)).reader
    return HeatmapSpec(reader, program, keys, limits, 60.0, class_of, steps, 0.15, SEED)


def group_of(sink, truth=None):
    """Return all images of a result as one group."""
    result = Result(Storage(), str(sink))
    if truth is None:
        return predictions_only(result).parts
    return join(result, load_ground_truth(Storage(), [str(truth)], None), None).parts


def score_result(sink, truth=None, columns=(), batch_size=4, **options):
    spec = make_spec(sink, truth=columns or None, batch_size=batch_size, **options)
    return score_group(spec, Redness(batch_size), group_of(sink, truth))


def loop_curves(image, values, name, key, steps=8):
    """Return the four curves by a loop over steps and pixels."""
    size = image.shape[:2]
    placements = tile_placements(*size, key)
    pixels = np.stack([resize_image(image, placement) for placement in placements])

    def resampled(values):
        """Return a map over every input pixel; tiles have the scale of the original."""
        to_size = SIZE if len(placements) == 1 else size
        full = cv2.resize(values.astype(np.float64), to_size[::-1], interpolation=cv2.INTER_LINEAR)
        if len(placements) == 1:
            return full[None]
        return np.stack([full[r.top : r.top + r.height, r.left : r.left + r.width]
                         for r in (placement.source for placement in placements)])  # fmt: skip

    rng = seeded_rng(SEED, name)
    curves = []
    maps = [values, mirror_and_shift(values, rng)]
    for heatmap in maps:
        strength, noise = resampled(heatmap), resampled(rng.random(heatmap.shape))
        order = [
            (tile, y, x)
            for tile, (top, left, height, width) in enumerate(p.target for p in placements)
            for y in range(top, top + height)
            for x in range(left, left + width)
        ]
        order.sort(key=lambda p: (-round(strength[p], 9), -noise[p]))
        grey = np.full_like(pixels, PADDING_GREY)
        for start, end in ((blur(pixels, placements), pixels), (pixels, grey)):
            curve = []
            for step in range(steps + 1):
                tiles = start.copy()
                for p in order[: round(step * len(order) / steps)]:
                    tiles[p] = end[p]
                curve.append(max(float(Redness(1)(t[None])["scores"][0, 1]) for t in tiles))
            curves.append(curve)
    return curves


def test_nothing_in_nothing_out(tmp_path):
    spec = make_spec(write_scenes(tmp_path, 1))
    result = score_group(spec, Redness(), [])
    assert (result.scores, result.excluded) == ([], {})
    assert merge_heatmap_scores([]).scores == []
    evaluation = EvaluationSpec({}, {}, (), False, None, 0.5, 0.5, 3, 0)
    assert list(heatmap_metric_rows([], evaluation)) == []


@pytest.mark.parametrize(
    ("resize", "size"),
    [("stretch", SIZE), ("stretch", (50, 41)), ("letterbox", (32, 70)), ("crop", (64, 40))],
)
def test_curves_equal_a_loop_over_steps_and_pixels(resize, size, tmp_path):
    sink = write_scenes(tmp_path, 3, resize, size=size)
    spec = make_spec(sink, resize)
    result = score_group(spec, Redness(), group_of(sink))
    assert (len(result.scores), result.excluded) == (3, {})
    for item in result.scores:
        image, cells, _ = scene(int(item.image_id.removesuffix(".png")), size)
        key = spec.program.spec.input_key
        expected = loop_curves(image, cells, f"1/{item.image_id}", key)
        np.testing.assert_allclose(item.curves, expected, atol=1e-6)


def test_a_map_of_the_true_region_is_better_than_a_random_map(tmp_path):
    result = score_result(write_scenes(tmp_path, 12))
    curves = dict(
        zip(CURVES, np.mean([item.curves for item in result.scores], axis=0), strict=True)
    )
    assert (curves["insertion"] >= curves["random_insertion"] - 1e-6).all()
    assert (curves["deletion"] <= curves["random_deletion"] + 1e-6).all()
    assert curves["insertion"].mean() > curves["random_insertion"].mean() + 0.2
    assert curves["deletion"].mean() < curves["random_deletion"].mean() - 0.2


def test_curves_end_at_the_score_of_the_original(tmp_path):
    for item in score_result(write_scenes(tmp_path, 4)).scores:
        inserted, deleted, random_inserted, random_deleted = item.curves
        assert inserted[-1] == deleted[0] == random_inserted[-1] == random_deleted[0]
        assert inserted[-1] == pytest.approx(item.score)
        assert inserted[0] == random_inserted[0] and deleted[-1] == random_deleted[-1]


def test_one_step_gives_the_ends_only(tmp_path):
    sink = write_scenes(tmp_path, 1, maps=lambda cells: {1: cells, 0: cells})
    fine, coarse = score_result(sink).scores, score_result(sink, steps=1).scores
    assert [item.curves.shape for item in coarse] == [(4, 2)] * 2
    for item, other in zip(fine, coarse, strict=True):
        np.testing.assert_array_equal(item.curves[:, [0, -1]], other.curves)


def test_each_class_of_an_image_has_its_own_curves(tmp_path):
    result = score_result(write_scenes(tmp_path, 2, maps=lambda cells: {1: cells, 0: 1 - cells}))
    assert [(item.image_id, item.class_id) for item in result.scores] == [
        ("0.png", 1), ("0.png", 0), ("1.png", 1), ("1.png", 0),
    ]  # fmt: skip
    for poppy, grass in zip(result.scores[::2], result.scores[1::2], strict=True):
        # The grass is inserted first, the poppy last: the reverse order.
        assert grass.curves[0, -1] == pytest.approx(1 - poppy.curves[0, -1])
        assert grass.curves[0, 1:-1].mean() > 0.7
        assert grass.label == "grass"


def test_curves_depend_neither_on_batch_size_nor_on_grouping(tmp_path):
    sink = write_scenes(tmp_path, 4)
    group = group_of(sink)
    spec = make_spec(sink)
    total = merge_heatmap_scores([score_group(spec, Redness(), group)])
    single = [
        part._replace(part_row=part.part_row[i : i + 1])
        for part in group
        for i in range(len(part.part_row))
    ]
    merged = merge_heatmap_scores([score_group(spec, Redness(), [item]) for item in single[::-1]])
    other = merge_heatmap_scores([score_group(make_spec(sink, batch_size=7), Redness(7), group)])
    for item, two, three in zip(total.scores, merged.scores, other.scores, strict=True):
        assert item.image_id == two.image_id == three.image_id
        assert item.curves.tobytes() == two.curves.tobytes()
        np.testing.assert_allclose(item.curves, three.curves, atol=1e-6)


def test_curves_of_a_tiled_image_are_those_of_its_best_tile(tmp_path, monkeypatch):
    size = (64, 40)
    tiling = {"tile_height": 32, "tile_width": 40, "overlap_height": 8, "overlap_width": 8}
    values = np.random.default_rng(0).random((16, 10)).astype(np.float32)  # over the original
    sink = write_scenes(tmp_path, 1, size=size)
    spec = make_spec(sink, **tiling)
    key = spec.program.spec.input_key
    image, _, _ = scene(0, size)
    tiles = np.stack([resize_image(image, item) for item in tile_placements(*size, key)])
    score = float(Redness(3)(tiles)["scores"][:, 1].max())
    shutil.rmtree(sink)
    rows = {"0.png": {"size": size, "labels": [], "heatmaps": [heatmap(values, 1, score)]}}
    write_heatmap_result(sink, tmp_path / "in", rows)
    (item,) = score_group(spec, Redness(), group_of(sink)).scores
    assert item.curves[0, -1] == item.curves[1, 0] == pytest.approx(score) and score > 0.9
    np.testing.assert_allclose(item.curves, loop_curves(image, values, "1/0.png", key), atol=1e-6)
    monkeypatch.setattr(heatmap_faithfulness, "MAX_TILE_BYTES", tiles.nbytes - 1)
    result = score_group(spec, Redness(), group_of(sink))
    assert (result.scores, result.excluded["0.png"].kind) == ([], "too_large")


def test_a_large_jpeg_is_decoded_for_all_models_of_the_job(tmp_path):
    """Decoded for the small input alone, it would be reduced and have other pixels."""
    size = (8 * SIZE[0], 8 * SIZE[1])
    sink = write_scenes(tmp_path, 1, size=size)
    small, large = make_spec(sink).keys[0], InputKey(200, 300, "stretch")
    image, cells, _ = scene(0, SIZE)
    big = cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST)
    data = cv2.imencode(".jpg", big[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
    (tmp_path / "in" / "0.png").write_bytes(data)
    pixels = [decode(data, k, Limits()).pixels[small] for k in ([small], [small, large])]
    assert not np.array_equal(*pixels)
    score = float(Redness(1)(pixels[1][None])["scores"][0, 1])
    shutil.rmtree(sink)
    rows = {"0.png": {"size": size, "labels": [], "heatmaps": [heatmap(cells, 1, score)]}}
    write_heatmap_result(sink, tmp_path / "in", rows)
    (item,) = score_group(make_spec(sink, others=[large]), Redness(), group_of(sink)).scores
    assert item.curves[0, -1] == item.curves[1, 0] == np.float32(score)


CHANGES = {
    "missing": lambda path: path.unlink(),
    "not_an_image": lambda path: path.write_bytes(b"text"),
    "changed": lambda path: cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8)),
    "of another score": lambda path: cv2.imwrite(str(path), np.zeros((*SIZE, 3), np.uint8)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_missing_or_changed_image_is_excluded(kind, tmp_path):
    sink = write_scenes(tmp_path, 3)
    CHANGES[kind](tmp_path / "in" / "1.png")
    result = score_result(sink)
    assert [item.image_id for item in result.scores] == ["0.png", "2.png"]
    ((name, failure),) = result.excluded.items()
    assert (name, failure.kind) == ("1.png", "changed" if kind.startswith("of") else kind)
    details = heatmap_details(merge_heatmap_scores([result]))
    assert list(details["left_out"].values()) == [1]


def score_with_truth(folder, truth):
    """Return the scores of scenes 0, 1, ..., compared with boxes and masks."""
    sink = write_scenes(folder, len(truth))
    columns = [c for c in ("boxes", "mask") if any(item.get(c) is not None for item in truth)]
    rows = {f"{i}.png": {"boxes": [], **item} for i, item in enumerate(truth)}
    tables = dict.fromkeys(columns, CLASSES)
    labels = write_truth(folder / "truth", rows, tables)
    return score_result(sink, labels, columns).scores


def test_a_maximum_is_compared_with_boxes_of_its_class_or_without_them_with_its_mask(tmp_path):
    boxes = [scene(i)[2] for i in range(6)]
    far = (0.0, 0.0, 0.5, 0.5)
    around = np.zeros(SIZE, np.uint8)
    for i in (3, 4):
        left, top, right, bottom = map(int, boxes[i])
        around[top:bottom, left:right] = 1
    result = score_with_truth(
        tmp_path,
        [
            {"boxes": [(*boxes[0], 1, 0)]},
            {"boxes": [(*far, 1, 0), (*boxes[1], 0, 0)]},  # the poppy is labelled as grass
            {"boxes": [(*far, 1, 0), (*boxes[2], 1, 0)]},
            {"boxes": [], "mask": around},
            {"boxes": [(*far, 1, 0)], "mask": around},  # the box counts, not the mask
            {
                "boxes": [(*boxes[5], 0, 0)],
                "mask": np.zeros(SIZE, np.uint8),
            },  # no object of class poppy
        ],
    )
    hits = [item.is_hit[0] for item in result]
    assert hits[:5] == [1, 0, 1, 1, 0] and np.isnan(hits[5])
    assert [np.isnan(item.box_iou[0]) for item in result] == [0, 0, 0, 1, 0, 1]
    assert result[0].box_iou[0] == result[2].box_iou[0] > 0.4 and result[1].box_iou[0] == 0


def test_metrics_are_means_and_boxes_are_a_table(tmp_path):
    truth = [{"boxes": [(*scene(i)[2], 1, 0)] if i % 3 else []} for i in range(9)]
    result = score_with_truth(tmp_path, truth)
    spec = EvaluationSpec({}, {}, (), False, None, 0.5, 0.5, 50, 1)
    metrics = list(heatmap_metric_rows(result, spec))
    overall = {item.metric: item for item in metrics if item.class_name is None}
    by_class = {item.metric: item for item in metrics if item.class_name == "poppy"}
    assert overall.keys() == by_class.keys()
    inserted = [sum((a + b) / 16 for a, b in pairwise(c)) for c in
                (item.curves[0].tolist() for item in result)]  # fmt: skip
    assert overall["insertion_auc"].value == pytest.approx(np.mean(inserted))
    assert overall["insertion_auc"].count == 9
    assert (overall["pointing_game"].value, overall["pointing_game"].count) == (1.0, 6)
    ious = [item.box_iou[0] for item in result if not np.isnan(item.box_iou[0])]
    assert overall["box_iou"].value == pytest.approx(np.mean(ious))
    assert overall["box_iou_50"].value == np.mean(np.array(ious) >= 0.5)
    for name in ("insertion_auc", "random_deletion_auc", "random_pointing_game", "box_iou"):
        assert overall[name].low <= overall[name].value <= overall[name].high
    rows = pq.read_table(boxes_to_parquet(result)).to_pylist()
    assert [row["image_id"] for row in rows] == [item.image_id for item in result]
    for row in rows:
        left, top, right, bottom = scene(int(row["image_id"][0]))[2]
        assert row["x_min"] < (left + right) / 2 < row["x_max"]
        assert row["y_min"] < (top + bottom) / 2 < row["y_max"]
        assert (row["label"], row["iou"] is None) == ("poppy", int(row["image_id"][0]) % 3 == 0)


def test_intervals_equal_those_of_resampled_images():
    rng = np.random.default_rng(3)
    no_box = np.zeros((0, 4), np.float32)
    scores = [
        HeatmapScore(f"{i // 2}", i % 2, CLASSES[i % 2], 0.5, rng.random((4, 5)),
               (float(i % 3 == 0), np.nan), ((0.4, 0.5, 0.6)[i % 3], np.nan), no_box)
        for i in range(20)
    ]  # fmt: skip
    spec = EvaluationSpec({}, {}, (), False, None, 0.5, 0.5, 30, 7)
    metrics = {(item.class_name, item.metric): item for item in heatmap_metric_rows(scores, spec)}
    assert metrics[None, "box_iou_50"].value == 13 / 20
    weights = bootstrap_weights([item.image_id for item in scores], 30, 7)
    for name, number in (("grass", 0), ("poppy", 1), (None, None)):
        drawn = []
        for r in range(31):
            rows = [i for i in range(20) if number in (None, scores[i].class_id)]
            total = sum(weights[i, r] for i in rows)
            drawn.append(sum(weights[i, r] * scores[i].is_hit[0] for i in rows) / total)
        result = metrics[name, "pointing_game"]
        assert result.value == pytest.approx(drawn[0])
        assert (result.low, result.high) == pytest.approx(
            tuple(np.percentile(drawn[1:], INTERVAL_PERCENTILES))
        )
    assert not [item for item in metrics if item[1] in ("random_pointing_game", "random_box_iou")]


def test_without_truth_there_are_only_insertion_and_deletion(tmp_path):
    result = score_result(write_scenes(tmp_path, 3))
    spec = EvaluationSpec({}, {}, (), False, None, 0.5, 0.5, 0, 0)
    assert {item.metric for item in heatmap_metric_rows(result.scores, spec)} == {
        "insertion_auc", "random_insertion_auc", "deletion_auc", "random_deletion_auc",
    }  # fmt: skip


def test_a_map_of_zeros_hits_nothing_and_has_no_box(tmp_path):
    sink = write_scenes(tmp_path, 2, maps=lambda cells: {1: 0 * cells})
    truth = {f"{i}.png": {"boxes": [(*scene(i)[2], 1, 0)]} for i in range(2)}
    labels = write_truth(tmp_path / "truth", truth, {"boxes": CLASSES})
    result = score_result(sink, labels, ("boxes",)).scores
    assert [(item.is_hit, item.box_iou, len(item.box_xyxy)) for item in result] == [
        ((0, 0), (0, 0), 0)
    ] * 2


def test_images_in_parquet_are_read_by_row(tmp_path):
    sink = write_scenes(tmp_path, 3)
    expected = score_result(sink).scores
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "in").glob("*.png"))}
    packed = write_parquet(tmp_path / "packed" / "all.parquet", files, row_group_size=2)
    rows = {}
    for i, item in enumerate(expected):
        maps = [heatmap(scene(i)[1], 1, item.score)]
        rows[f"all.parquet#{i}"] = {"size": SIZE, "labels": [], "heatmaps": maps}
    out = write_heatmap_result(tmp_path / "again", packed.parent, rows, "parquet")
    result = score_result(out).scores
    assert [item.image_id for item in result] == list(rows)
    for item, two in zip(expected, result, strict=True):
        assert item.curves[:2, [0, -1]].tolist() == two.curves[:2, [0, -1]].tolist()
