"""The network a training begins with: its own weights below a head for the data's classes."""

import keras
import numpy as np
import pytest

from cvbatch.config.train import parse_training
from cvbatch.core.errors import ModelError
from cvbatch.models import registry
from cvbatch.models.applications import IMAGENET_CLASSES
from cvbatch.storage.store import Storage
from cvbatch.train import network

pytestmark = pytest.mark.keras
SIZE = (32, 32)
OPTIONS = {"alpha": 0.25}


def job(weights, **model):
    said = {
        "task": "classification", "model": "MobileNet", "weights": str(weights),
        "image_size": list(SIZE), "build": OPTIONS, **model,
    }  # fmt: skip
    return parse_training({"source": {"uri": "in"}, "sink": {"uri": "out"}, "model": said})


@pytest.fixture(scope="module")
def imagenets(tmp_path_factory):
    """A network as ImageNet's files hold it, and its weights file."""
    keras.utils.set_random_seed(1)
    whole = registry.build("MobileNet", IMAGENET_CLASSES, SIZE, OPTIONS)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    whole.save_weights(path)
    return whole, path


def test_a_weights_file_of_imagenets_classes_serves_others_with_a_new_head(imagenets, tmp_path):
    whole, path = imagenets
    ready = network.make_ready(
        Storage(), job(path), ("cat", "dog", "fox"), None, tmp_path / "begun.keras"
    )
    assert (ready.image_size, ready.metric) == (SIZE, "accuracy")
    begun = registry.load_file("begun", tmp_path / "begun.keras")
    assert begun.output_shape == (None, 3)
    differ = []
    for mine, theirs in zip(begun.weights, whole.weights, strict=True):
        if mine.shape != theirs.shape:
            differ.append(mine.shape[-1])
        else:
            np.testing.assert_array_equal(mine, theirs)
    assert differ == [3, 3]  # the head's kernel and bias


def test_a_file_that_serves_neither_is_refused_by_the_first_layer(imagenets, tmp_path):
    _, path = imagenets
    wider = job(path, build={"alpha": 0.5})
    with pytest.raises(ModelError, match=r"mobilenet\.weights\.h5"):
        network.make_ready(Storage(), wider, ("cat", "dog"), None, tmp_path / "begun.keras")
    assert not (tmp_path / "begun.keras").exists()


def test_a_file_of_the_datas_own_classes_keeps_its_head(tmp_path):
    keras.utils.set_random_seed(2)
    own = registry.build("MobileNet", 2, SIZE, OPTIONS)
    own.save_weights(tmp_path / "own.weights.h5")
    network.make_ready(
        Storage(), job(tmp_path / "own.weights.h5"), ("a", "b"), None, tmp_path / "begun.keras"
    )
    begun = registry.load_file("begun", tmp_path / "begun.keras")
    for mine, theirs in zip(begun.weights, own.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
