"""Class weights of a job: by name, and balanced by the labels of the training images."""

import numpy as np
import pytest

from cvbatch.config.train import parse_training
from cvbatch.core.errors import ConfigError
from cvbatch.datasets import reader
from cvbatch.datasets.reader import LabelSpec, count_labels, scan_dataset
from cvbatch.demo.labelled import write_labelled
from cvbatch.demo.render import load_backgrounds, render_scene, scene_seed
from cvbatch.storage.store import Storage
from cvbatch.train.class_weights import balanced_weights, with_class_weights
from tests.support import datasets

COUNTS = {"cat": 6, "dog": 3, "fox": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    files = {
        f"{name}/{i}.png": datasets.picture(seed=i)
        for name, count in COUNTS.items()
        for i in range(count)
    }
    source = datasets.put(folder / "in", files)
    datasets.imported("folders", source, folder / "out", split=(1, 0, 0))
    return scan_dataset(Storage(), [str(folder / "out")], LabelSpec("labels", True))


def weights_of(data, class_weights):
    job = {
        "source": {"uri": "in"},
        "sink": {"uri": "out"},
        "model": {"task": "classification", "model": "lenet5", "weights": "random"},
        "training": {"class_weights": class_weights},
    }
    counts = count_labels(Storage(), data.splits["train"], "labels", len(data.classes))
    return with_class_weights(parse_training(job), data.classes, counts).training.class_weights


def test_balanced_weights_are_n_by_k_n_c(data):
    assert count_labels(Storage(), data.splits["train"], "labels", 3).tolist() == [6, 3, 1]
    expected = [10 / (3 * 6), 10 / (3 * 3), 10 / (3 * 1)]
    assert weights_of(data, "balanced") == pytest.approx(expected)
    ratios = np.divide(weights_of(data, "sqrt_balanced"), np.sqrt(expected))
    assert np.ptp(ratios) < 1e-9


@pytest.mark.parametrize("column", ["boxes", "mask"])
def test_boxes_and_pixels_of_each_class_are_counted(column, tmp_path):
    write_labelled(tmp_path, {"train": (3, 5), "test": (4, 2)})
    data = scan_dataset(Storage(), [str(tmp_path)], LabelSpec(column))
    backgrounds = load_backgrounds()
    scenes = [render_scene(scene_seed(3, i), backgrounds) for i in range(5)]
    ids = [scene.box_class_id if column == "boxes" else scene.mask.ravel() for scene in scenes]
    expected = [int((np.concatenate(ids) == k).sum()) for k in range(len(data.classes))]
    counts = count_labels(Storage(), data.splits["train"], column, len(data.classes))
    assert counts.tolist() == expected


def test_of_many_masks_some_are_counted_evenly(tmp_path, monkeypatch):
    write_labelled(tmp_path, {"train": (3, 7)})
    data = scan_dataset(Storage(), [str(tmp_path)], LabelSpec("mask"))
    monkeypatch.setattr(reader, "_MAX_MASKS", 3)
    backgrounds = load_backgrounds()
    masks = [render_scene(scene_seed(3, i), backgrounds).mask for i in (0, 3, 6)]
    counts = count_labels(Storage(), data.splits["train"], "mask", len(data.classes))
    assert counts.sum() == sum(mask.size for mask in masks)
    assert counts[0] == sum(int((mask == 0).sum()) for mask in masks)


def test_the_ignored_class_has_no_share_in_balanced_weights():
    job = {
        "source": {"uri": "in"},
        "sink": {"uri": "out"},
        "model": {"task": "segmentation", "model": "encoder_decoder", "weights": "random"},
        "training": {"class_weights": "balanced", "ignored_class": 1},
    }
    weighted = with_class_weights(parse_training(job), ("a", "b", "c"), np.array([30, 900, 10]))
    assert weighted.training.class_weights == pytest.approx([40 / (2 * 30), 1, 40 / (2 * 10)])


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_mean_balanced_weight_of_an_image_is_1(power):
    counts = np.array([7, 0, 2, 41, 1])
    weights = balanced_weights(counts, power)
    assert weights[1] == 1.0  # without images
    assert np.dot(weights, counts) == pytest.approx(counts.sum())
    assert np.ptp(np.multiply(weights, counts**power)[counts > 0]) < 1e-9


def test_weights_by_name_are_ordered_by_class_and_1_for_the_others(data):
    assert weights_of(data, {"fox": 4, "cat": 0.5}) == [0.5, 1.0, 4.0]
    assert weights_of(data, [3, 2, 1]) == [3, 2, 1]
    assert weights_of(data, None) is None


def test_a_weight_of_an_unknown_class_names_the_nearest(data):
    with pytest.raises(ConfigError, match="no class 'foxes'; did you mean fox"):
        weights_of(data, {"foxes": 2})
