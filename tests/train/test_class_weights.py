"""Class weights of a job: by name, and balanced by the labels of the training images."""

import numpy as np
import pytest

from cvbatch.config.train import parse_training
from cvbatch.core.errors import ConfigError
from cvbatch.datasets.reader import LabelSpec, count_labels, scan_dataset
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
    return with_class_weights(Storage(), parse_training(job), data).training.class_weights


def test_balanced_weights_are_n_by_k_n_c(data):
    assert count_labels(Storage(), data.splits["train"], 3).tolist() == [6, 3, 1]
    expected = [10 / (3 * 6), 10 / (3 * 3), 10 / (3 * 1)]
    assert weights_of(data, "balanced") == pytest.approx(expected)


def test_the_mean_balanced_weight_of_an_image_is_1():
    counts = np.array([7, 0, 2, 41, 1])
    weights = balanced_weights(counts)
    assert weights[1] == 1.0  # without images
    assert np.dot(weights, counts) == pytest.approx(counts.sum())
    assert np.ptp(np.multiply(weights, counts)[counts > 0]) < 1e-9


def test_weights_by_name_are_ordered_by_class_and_1_for_the_others(data):
    assert weights_of(data, {"fox": 4, "cat": 0.5}) == [0.5, 1.0, 4.0]
    assert weights_of(data, [3, 2, 1]) == [3, 2, 1]
    assert weights_of(data, None) is None


def test_a_weight_of_an_unknown_class_names_the_nearest(data):
    with pytest.raises(ConfigError, match="no class 'foxes'; nearest are fox"):
        weights_of(data, {"foxes": 2})
