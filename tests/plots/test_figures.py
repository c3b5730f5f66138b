"""Figures: every text is inside and none overlaps another, whatever the data; the same bytes."""

from __future__ import annotations

import math
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from cvbatch.core.errors import ModelError
from cvbatch.metrics.score_curves import ScoreCurve
from cvbatch.plots import figure as figures
from cvbatch.plots.calibration import draw_reliability
from cvbatch.plots.class_bars import draw_class_bars
from cvbatch.plots.confusion import ConfusionTable, draw_confusion, most_confused
from cvbatch.plots.faithfulness import draw_faithfulness
from cvbatch.plots.learning_curves import MAX_PANELS, draw_learning_curves
from cvbatch.plots.score_curves import MAX_CLASSES, ClassCurves, draw_score_curves
from tests.support.figures import drawn_texts, layout_errors

ODD = (
    "_hidden", "$\\frac{1}$ & $x", "two\nlines\tand a tab", "</svg><script>alert(1)</script>",
    "日本語の長い名前日本語の長い名前日本語の長い名前", "more letters than fit into a figure",
    "", "\ud800 surrogate", "قط", "W" * 80,
)  # fmt: skip


def names_of(count):
    return [ODD[k] if k < len(ODD) else f"class {k} of the table" for k in range(count)]


def class_curves(count, num_scores=60, low=0.0, high=1.0, seed=0):
    rng = np.random.default_rng(seed)
    curves = []
    for k in range(count):
        score = np.sort(rng.uniform(low, high, num_scores))[::-1]
        hits = (rng.random(num_scores) < 0.3 + 0.6 * k / count).astype(int)
        curves.append(ScoreCurve.of(score, hits, np.ones_like(hits), int(hits.sum()) + 3))
    precision = np.array([curve.ratios()["precision"].mean() for curve in curves])

    def recall_precision(k):
        ratios = curves[k].ratios()
        return ratios["recall"], ratios["precision"]

    return ClassCurves(names_of(count), recall_precision, curves, precision)


def no_curves(count):
    none = np.zeros(0)
    curves = [ScoreCurve.of(none, none.astype(int), none.astype(int), 0)] * count
    return ClassCurves(names_of(count), lambda k: (none, none), curves, np.full(count, np.nan))


def confusion_table(count, background=True, scale=10_000, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.3, (count, count)) + np.diag(rng.integers(0, scale, count))
    names = names_of(count)
    if background:
        counts = np.pad(counts, ((0, 1), (0, 1)), constant_values=7)
        names = [*names, "(background)"]
    return ConfusionTable(counts.astype(np.int64), names, names, count)


def bars(count, is_undefined=False):
    value = np.linspace(0, 1, max(count, 1))[:count, None]
    values = np.concatenate([value, np.clip(value - 0.2, 0, 1), np.clip(value + 0.2, 0, 1)], axis=1)
    if is_undefined:
        values[:] = np.nan
    counts = 10 ** (np.arange(count) % 9)
    metrics = {"average precision": values, "f1": values[::-1], "recall": values}
    return draw_class_bars(names_of(count), counts, metrics, "Metrics of each class, detection")


def reliability(counts, accuracy, score):
    arrays = (np.array(values, float) for values in (accuracy, score))
    error = 0.0321 if sum(counts) else math.nan
    return draw_reliability(*arrays, np.array(counts), error, "Reliability of the scores")


def epochs(count, num_values=0, value=0.5):
    return [
        {
            "epoch": i + 1, "step": 10 * i, "phase": "head" if i < 3 else "all", "seconds": 1.0,
            "learning_rate": 1e-4 * 0.9**i, "loss": math.nan if i == 2 else 1 / (i + 1),
            "val_loss": 1.1 / (i + 1), "accuracy": None if i == 1 else value,
            **{f"recall/{name}": (k + i) % 7 / 7 for k, name in enumerate(ODD)},
            **{f"value {k}": float(k) for k in range(num_values)},
        }
        for i in range(count)
    ]  # fmt: skip


def faithfulness():
    share = np.linspace(0, 1, 9)
    names = ("insertion", "deletion", "random_insertion", "random_deletion")
    return draw_faithfulness({"share": share, **dict.fromkeys(names, share**2)}, "Faithfulness")


FIGURES = {
    "curves of 2 classes": lambda: draw_score_curves(class_curves(2), "By score", "A note."),
    "curves of 10 classes": lambda: draw_score_curves(class_curves(10), "Detection by score"),
    "curves of 1,000 classes": lambda: draw_score_curves(class_curves(1000), "By score", "A note."),
    "curves over logits": lambda: draw_score_curves(class_curves(3, low=-40, high=90), "By score"),
    "curves without data": lambda: draw_score_curves(no_curves(2), "Detection by score"),
    "curves of no class": lambda: draw_score_curves(no_curves(0), "Detection by score"),
    "confusion of 2 classes": lambda: draw_confusion(
        confusion_table(2), "Confusion matrix", "Score at least 0.5.", is_normalised=True
    ),
    "confusion in pixels": lambda: draw_confusion(
        confusion_table(9, scale=10**12), "Confusion matrix", is_normalised=False
    ),
    "confusion of 1,000 classes": lambda: draw_confusion(
        confusion_table(1000), "Confusion matrix", "A note.", is_normalised=False
    ),
    "confusion without data": lambda: draw_confusion(
        ConfusionTable(np.zeros((2, 3), np.int64), ODD[:2], ODD[:3], 2), "T", is_normalised=True
    ),
    "bars of 2 classes": lambda: bars(2),
    "bars of 1,000 classes": lambda: bars(1000),
    "undefined bars": lambda: bars(3, is_undefined=True),
    "bars of no class": lambda: bars(0),
    "reliability": lambda: reliability(
        [12_345, 0, *range(10**6, 10**6 + 13)], [math.nan] + [0.4] * 14, [math.nan] + [0.5] * 14
    ),
    "reliability without data": lambda: reliability([0] * 15, [math.nan] * 15, [math.nan] * 15),
    "no epoch": lambda: draw_learning_curves([]),
    "one epoch": lambda: draw_learning_curves(epochs(1), 1),
    "one epoch with NaN": lambda: draw_learning_curves(epochs(1, value=math.nan), 1),
    "20 epochs": lambda: draw_learning_curves(epochs(20), 7),
    "300 epochs of many values": lambda: draw_learning_curves(epochs(300, num_values=40), 299),
    "faithfulness": faithfulness,
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_texts_are_inside_and_do_not_overlap(name):
    figure = FIGURES[name]()
    assert layout_errors(figure) == []
    assert len(drawn_texts(figure)) > 1


def test_a_clipped_and_an_overlapping_text_are_found():
    with figures.style():
        figure = figures.new_figure(4, 3, "")
        figure.text(0.98, 0.5, "clipped")
        figure.text(0.1, 0.1, "below")
        figure.text(0.12, 0.1, "above")
    first, second = layout_errors(figure)
    assert "'clipped' is clipped" in first and second == "'below' and 'above' overlap"


@pytest.mark.parametrize("name", ["curves of 2 classes", "confusion of 2 classes"])
def test_the_files_depend_on_the_data_only(name):
    before = dict(matplotlib.rcParams)
    first = figures.to_files("a", FIGURES[name]())
    with matplotlib.rc_context({"font.size": 23, "axes.facecolor": "red", "svg.fonttype": "none"}):
        second = figures.to_files("a", FIGURES[name]())
    assert first == second
    assert dict(matplotlib.rcParams) == before
    root = ElementTree.fromstring(first["a.svg"])
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not tags & {"text", "script", "foreignObject", "a"}  # letters are outlines
    links = {
        value[:10] for element in root.iter() for key, value in element.items() if "href" in key
    }
    assert all(link.startswith(("#", "data:image")) for link in links)
    assert first["a.png"].startswith(b"\x89PNG")


def test_a_legend_has_the_best_score_of_each_shown_class_and_of_the_mean():
    curves = class_curves(30)
    figure = draw_score_curves(curves, "By score")
    (legend,) = figure.legends
    mean, *labels = [text.get_text() for text in legend.get_texts()]
    worst = np.argsort(curves.average_precision)[:MAX_CLASSES].tolist()
    for k, label in zip(worst, labels, strict=True):
        score, f1 = curves.by_score[k].best()
        value = curves.average_precision[k]
        assert label.endswith(f"\nAP {value:.2f}, F1 {f1:.2f} at {score:.2f}")
    thresholds = np.linspace(0, 1, 401)
    f1 = np.mean([curve.at(thresholds).ratios()["f1"] for curve in curves.by_score], axis=0)
    assert mean.startswith(f"mean: F1 {f1.max():.2f} at ")
    score = float(mean.rpartition(" ")[2])
    assert f1[np.argmin(abs(thresholds - score))] == pytest.approx(f1.max(), abs=0.01)


def test_classes_with_leading_underscores_are_in_the_legends():
    assert ODD[0] == "_hidden"
    labels = [text.get_text() for text in draw_score_curves(class_curves(2), "T").legends[0].texts]
    assert len(labels) == 3 and labels[1].startswith("_hidden\n")
    panel = draw_learning_curves(epochs(2)).axes[2]
    assert "_hidden" in [text.get_text() for text in panel.get_legend().get_texts()]


@pytest.mark.parametrize("is_normalised", [False, True])
def test_the_cells_of_a_confusion_matrix_are_its_numbers(is_normalised):
    table = ConfusionTable(np.array([[8, 2, 0], [1, 12_345, 0]]), "ab", "abc", 2)
    figure = draw_confusion(table, "Confusion matrix", is_normalised=is_normalised)
    cells = {text.get_position()[::-1]: text.get_text() for text in figure.axes[0].texts}
    shares = {(0, 0): "0.80", (0, 1): "0.20", (1, 1): "1.00"}
    counts = {(0, 0): "8", (0, 1): "2", (1, 0): "1", (1, 1): "12.3k"}
    assert cells == (shares if is_normalised else counts)


def test_the_most_confused_classes_keep_all_counts():
    table = confusion_table(60, seed=3)
    small = most_confused(table, 10)
    assert small.counts.shape == (12, 12) and small.counts.sum() == table.counts.sum()
    assert small.true_names[10:] == ["50 others", "(background)"]
    index = [table.true_names.index(name) for name in small.true_names[:10]]
    assert (small.counts[:10, :10] == table.counts[np.ix_(index, index)]).all()
    assert (small.counts[:10].sum(axis=1) == table.counts[index].sum(axis=1)).all()
    assert (small.counts[:, :10].sum(axis=0) == table.counts[:, index].sum(axis=0)).all()
    hits = np.diagonal(table.counts)
    errors = (table.counts.sum(axis=0) + table.counts.sum(axis=1) - 2 * hits)[:60]
    assert sorted(errors[index]) == sorted(errors)[-10:]
    assert most_confused(table, 60) is table


def test_bars_are_sorted_and_have_the_value_and_the_count():
    values = {"AP": np.array([[value] * 3 for value in (0.9, np.nan, 0.25, 0.25, 0)])}
    names, counts = ["best", "undefined", "few", "many", "absent"], np.array([5, 2, 3, 12_000, 0])
    (axes,) = draw_class_bars(names, counts, values, "T").axes
    labels = ["many (12k)", "few (3)", "best (5)", "undefined (2)", "absent (0)"]
    assert [label.get_text() for label in axes.get_yticklabels()] == labels
    assert [text.get_text() for text in axes.texts] == ["0.25", "0.25", "0.90", "–", "0.00"]
    assert [patch.get_width() for patch in axes.patches] == [0.25, 0.25, 0.9, 0, 0]


def test_learning_curves_have_a_panel_for_each_value_and_mark_the_best_epoch():
    figure = draw_learning_curves(epochs(20, num_values=1), best_epoch=7)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.axison}
    assert list(panels) == [
        "loss", "accuracy: 0.5", "recall by class", "value 0: 0", "learning rate: 5.314e-05",
    ]  # fmt: skip
    labels = [text.get_text() for text in panels["loss"].get_legend().get_texts()]
    assert labels == ["training 0.1429", "validation 0.1571"]
    dots = [line.get_xydata() for line in panels["loss"].lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.concatenate(dots), [[7, 1 / 7], [7, 1.1 / 7]])
    (curve,) = (line for line in panels["loss"].lines if line.get_label() == labels[0])
    assert np.isnan(curve.get_ydata()).tolist() == [i == 2 for i in range(20)]
    assert len(draw_learning_curves(epochs(2, 99)).axes) == MAX_PANELS


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (9999, "9,999"), (10_000, "10k"), (999_499, "999k"), (999_600, "1M"),
     (1_234_567, "1.23M"), (10**12, "1T"), (123 * 10**12, "123T")],
)  # fmt: skip
def test_counts_have_at_most_five_letters(count, text):
    assert figures.short_count(count) == text


def test_long_names_are_shortened_in_the_middle_by_their_width():
    assert figures.short_name("a" * 24) == "a" * 24
    assert figures.short_name("a" * 20 + "b" * 20) == "a" * 11 + "…" + "b" * 11
    assert figures.short_name("日" * 30) == "日" * 5 + "…" + "日" * 5
    assert figures.short_name("a\nb\x00") == "a?b?"


def test_missing_matplotlib_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModelError, match=r"^matplotlib is not installed; .*'cvbatch\[plots\]'$"):
        draw_learning_curves([])
