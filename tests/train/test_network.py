"""Initial network of a training: pretrained weights with a new head for the data's classes."""

import keras
import numpy as np
import pytest

from cvbatch.config.train import parse_training
from cvbatch.core.errors import ModelError
from cvbatch.datasets.reader import LabelledDataset
from cvbatch.models import registry
from cvbatch.models.applications import IMAGENET_CLASSES
from cvbatch.storage.store import Storage
from cvbatch.train import network

pytestmark = pytest.mark.keras
SIZE = (32, 32)
OPTIONS = {"alpha": 0.25}


def job(weights, **options):
    model = {
        "task": "classification", "model": "MobileNet", "weights": str(weights),
        "image_size": list(SIZE), "build": OPTIONS, **options,
    }  # fmt: skip
    return parse_training({"source": {"uri": "in"}, "sink": {"uri": "out"}, "model": model})


def data_of(*classes):
    """Return labelled data with these classes and without images."""
    return LabelledDataset(classes, {}, "")


@pytest.fixture(scope="module")
def imagenet_weights(tmp_path_factory):
    """Return a network with the 1,000 classes of ImageNet, and its weights file."""
    keras.utils.set_random_seed(1)
    imagenet = registry.build("MobileNet", IMAGENET_CLASSES, SIZE, OPTIONS)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    imagenet.save_weights(path)
    return imagenet, path


def test_a_weights_file_with_imagenet_classes_gets_a_new_head(imagenet_weights, tmp_path):
    imagenet, path = imagenet_weights
    built = network.build_network(
        Storage(), job(path), data_of("cat", "dog", "fox"), None, tmp_path / "initial.keras"
    )
    assert (built.image_size, built.metric) == (SIZE, "accuracy")
    initial = registry.load_file("initial", tmp_path / "initial.keras")
    assert initial.output_shape == (None, 3)
    different = []
    for actual, expected in zip(initial.weights, imagenet.weights, strict=True):
        if actual.shape != expected.shape:
            different.append(actual.shape[-1])
        else:
            np.testing.assert_array_equal(actual, expected)
    assert different == [3, 3]  # the head's kernel and bias


def test_a_weights_file_of_another_architecture_is_refused(imagenet_weights, tmp_path):
    _, path = imagenet_weights
    wider = job(path, build={"alpha": 0.5})
    with pytest.raises(ModelError, match=r"mobilenet\.weights\.h5"):
        network.build_network(
            Storage(), wider, data_of("cat", "dog"), None, tmp_path / "initial.keras"
        )
    assert not (tmp_path / "initial.keras").exists()


def test_a_weights_file_with_the_classes_of_the_data_keeps_its_head(tmp_path):
    keras.utils.set_random_seed(2)
    trained = registry.build("MobileNet", 2, SIZE, OPTIONS)
    trained.save_weights(tmp_path / "trained.weights.h5")
    network.build_network(
        Storage(),
        job(tmp_path / "trained.weights.h5"),
        data_of("a", "b"),
        None,
        tmp_path / "initial.keras",
    )
    initial = registry.load_file("initial", tmp_path / "initial.keras")
    for actual, expected in zip(initial.weights, trained.weights, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_keras_file_as_weights_of_other_classes_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "trained.keras"
    registry.build("lenet5", 2, SIZE).save(path)
    other = job(path, model="lenet5", build={})
    with pytest.raises(ModelError, match=r"set model to '.*trained\.keras' and remove weights"):
        network._load_initial(Storage(), other, 3, {})
