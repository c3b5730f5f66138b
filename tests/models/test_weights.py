"""Weights find their network, or the message says where the two part."""

import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.core.errors import ModelError
from cvbatch.models.weights import load_weights

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not know NumPy 2's `copy`, and Keras passes it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5:UserWarning"),
]
ENDINGS = ("keras", "weights.h5", "h5")


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


def save(model, folder, ending):
    path = folder / f"net.{ending}"
    if ending == "weights.h5":
        model.save_weights(path)
    else:
        model.save(path)
    return path


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_networks_own_weights_come_back(tmp_path, ending, nested):
    saved, fresh = network(nested=nested), network(nested=nested)
    load_weights(fresh, "net", "here", save(saved, tmp_path, ending))

    for mine, theirs in zip(fresh.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("of_file", "told"),
    [
        ({"units": 5}, "'head', which has weights of shape 6×3 and 3 where the file holds 6×5 and"),
        ({"filters": (4, 7)}, r"'conv_1', .* 1×1×4×6 .* where the file holds .*1×1×4×7"),
        ({"filters": (4,)}, r"'(conv_1|head)', which has"),  # by order, or by class and number
    ],
)
def test_the_first_layer_that_differs_is_named(tmp_path, ending, of_file, told):
    path = save(network(**of_file), tmp_path, ending)
    with pytest.raises(ModelError, match=f"s3://b/w are not those of net .*{told}") as error:
        load_weights(network(), "net", "s3://b/w", path)
    assert "\n" not in str(error.value)


def test_a_layer_too_many_in_a_nested_network_is_named(tmp_path):
    path = save(network(filters=(4, 5), nested=True), tmp_path, "weights.h5")
    with pytest.raises(ModelError, match="'conv_1', which has"):
        load_weights(network(nested=True), "net", "here", path)


def test_a_file_that_goes_on_is_told(tmp_path):
    path = save(network(filters=(4, 6, 6)), tmp_path, "h5")
    with pytest.raises(ModelError, match=r"'head', .*|goes on with layer 'norm_2'"):
        load_weights(network(), "net", "here", path)


def test_a_class_is_spelt_as_keras_spells_it(tmp_path):
    from cvbatch.models.weights import _snake_case

    known = [value for value in vars(layers).values() if isinstance(value, type)]
    assert len(known) > 50
    for kind in known:
        assert _snake_case(kind.__name__) == keras.src.utils.naming.to_snake_case(kind.__name__)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "middle"])
def test_a_damaged_file_is_told_as_such(tmp_path, ending, damage):
    path = save(network(), tmp_path, ending)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"no weights " * 99,
            "cut": whole[: len(whole) // 2],
            "middle": whole[:600] + b"\xff" * 900 + whole[1500:],
        }[damage]
    )
    with pytest.raises(ModelError, match=r"cannot be read|do not fit|not those of") as error:
        load_weights(network(), "net", "here", path)
    assert "\n" not in str(error.value)


def test_a_keras_file_without_weights_is_told(tmp_path):
    path = tmp_path / "net.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ModelError, match="weights file here cannot be read"):
        load_weights(network(), "net", "here", path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ModelError, match="weights file here does not exist"):
        load_weights(network(), "net", "here", tmp_path / "none.h5")
