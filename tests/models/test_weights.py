"""Loading weights: round trips, and errors that name the first layer that differs."""

import hashlib
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.core.errors import ModelError
from cvbatch.models import model_files
from cvbatch.models.weights import load_weights
from cvbatch.storage.store import Storage

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5:UserWarning"),
]
SUFFIXES = ("keras", "weights.h5", "h5")


def network(filters=(4, 6), units=3, nested=False):
    image = keras.Input((9, 9, 3))
    x = image
    for i, count in enumerate(filters):
        step = layers.SeparableConv2D(count, 3, name=f"conv_{i}")
        is_inner = nested and i
        x = keras.Sequential([layers.ReLU(), step], name="inner")(x) if is_inner else step(x)
        x = layers.BatchNormalization(name=f"norm_{i}")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(units, name="head")(x))


def save(model, folder, suffix):
    path = folder / f"net.{suffix}"
    if suffix == "weights.h5":
        model.save_weights(path)
    else:
        model.save(path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_weights_file_has_the_sha256_of_its_bytes(tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert model_files.model_sha256(Storage(), str(path)) == digest


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_round_trip(tmp_path, suffix, nested):
    saved, fresh = network(nested=nested), network(nested=nested)
    load_weights(fresh, "net", "here", save(saved, tmp_path, suffix))

    for loaded, expected in zip(fresh.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"units": 5}, "'head', which has weights of shape 6×3 and 3, but the file has 6×5 and"),
        ({"filters": (4, 7)}, r"'conv_1', .* 1×1×4×6.* but the file has .*1×1×4×7"),
        (
            {"filters": (4,)},
            r"'(conv_1|head)', which has",
        ),  # Keras 2 by order; Keras 3 by class and number
    ],
)
def test_the_first_layer_that_differs_is_named(tmp_path, suffix, stored, message):
    path = save(network(**stored), tmp_path, suffix)
    with pytest.raises(ModelError, match=f"s3://b/w are not those of net .*{message}") as error:
        load_weights(network(), "net", "s3://b/w", path)
    assert "\n" not in str(error.value)


def test_a_differing_layer_of_a_nested_network_is_named(tmp_path):
    path = save(network(filters=(4, 5), nested=True), tmp_path, "weights.h5")
    with pytest.raises(ModelError, match="'conv_1', which has"):
        load_weights(network(nested=True), "net", "here", path)


def test_additional_layers_in_the_file_are_reported(tmp_path):
    path = save(network(filters=(4, 6, 6)), tmp_path, "h5")
    with pytest.raises(ModelError, match=r"'head', .*|another layer, 'norm_2'"):
        load_weights(network(), "net", "here", path)


def test_class_names_are_converted_as_keras_does(tmp_path):
    from cvbatch.models.weights import _snake_case

    names = [value.__name__ for value in vars(layers).values() if isinstance(value, type)]
    assert len(names) > 50
    for name in names:
        assert _snake_case(name) == keras.src.utils.naming.to_snake_case(name)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "middle"])
def test_a_damaged_file_is_reported(tmp_path, suffix, damage):
    path = save(network(), tmp_path, suffix)
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"no weights " * 99,
            "cut": content[: len(content) // 2],
            "middle": content[:600] + b"\xff" * 900 + content[1500:],
        }[damage]
    )
    with pytest.raises(ModelError, match=r"cannot be read|do not match|not those of") as error:
        load_weights(network(), "net", "here", path)
    assert "\n" not in str(error.value)


def test_a_keras_file_without_weights_is_reported(tmp_path):
    path = tmp_path / "net.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ModelError, match="weights file here cannot be read"):
        load_weights(network(), "net", "here", path)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(ModelError, match="weights file here does not exist"):
        load_weights(network(), "net", "here", tmp_path / "none.h5")
