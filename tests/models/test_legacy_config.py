"""Networks of Keras 2, read from files that Keras 2 wrote, and .h5 files of Keras 3.

The files and their predictions are those of tests/fixtures/keras2/write_files.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from cvbatch.core.errors import ModelError
from tests.support import model_runs, networks

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5:UserWarning"),
    pytest.mark.filterwarnings("ignore:Do not pass an `input_shape`:UserWarning"),
]
FOLDER = Path(__file__).parents[1] / "fixtures" / "keras2"


def scores(path, pixels, **keys):
    return model_runs.outputs(path, pixels, **keys)["scores"]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        pytest.param(
            "layers_of_all_kinds", {},
            marks=pytest.mark.runs("Keras 2 `.h5` file (whole model)", "`model: net.h5`"),
        ),
        pytest.param(
            "operations", {"multi_label": True, "activation": "none"},
            marks=pytest.mark.runs(
                "Keras 2 `.h5` file with functions of TensorFlow (`x / 255`, `tf.concat`, ...)",
                "`model: net.h5`; the functions of an allowlist",
            ),
        ),
        pytest.param(
            "teachable_machine", {"preprocessing": "tf"},
            marks=pytest.mark.runs(
                "Teachable Machine `keras_model.h5`",
                "`model: keras_model.h5`, `preprocessing: tf`, `classes:` the lines of labels.txt",
            ),
        ),
    ],
)  # fmt: skip
def test_a_file_of_keras_2_predicts_what_keras_2_does(name, keys):
    check(f"{name}.h5", keys)


@pytest.mark.runs("Keras 2.12 to 2.15 `.keras` file", "`model: net.keras`")
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("layers_of_all_kinds", {}),
        ("operations", {"multi_label": True, "activation": "none"}),
        ("teachable_machine", {"preprocessing": "tf"}),
    ],
)
def test_a_keras_file_of_keras_2_predicts_what_keras_2_does(name, keys):
    check(f"{name}.keras", keys)


def check(file, keys):
    expected = np.load(FOLDER / "expected.npz")
    values = expected[Path(file).stem]
    assert np.ptp(values, axis=0).max() > 1e-3  # the images matter
    np.testing.assert_allclose(scores(FOLDER / file, expected["pixels"], **keys), values, atol=1e-5)


@pytest.mark.runs("Keras 3 `.h5` file (whole model)", "`model: net.h5`")
def test_a_file_of_keras_3_predicts_what_the_network_does(tmp_path):
    model = networks.nested_classifier()
    path = tmp_path / "net.h5"
    model.save(path)
    pixels = networks.random_images(2, (32, 32))
    expected = model.predict(pixels.astype("float32"), verbose=0)
    np.testing.assert_allclose(scores(path, pixels), expected, atol=1e-5)


def spoiled(tmp_path, change, name="operations"):
    """Return a copy of a file whose config a function changed."""
    path = tmp_path / "net.h5"
    shutil.copy(FOLDER / f"{name}.h5", path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config["config"]["layers"])
        file.attrs["model_config"] = json.dumps(config)
    return path


def layer_of(layers, class_name):
    return next(layer for layer in layers if layer["class_name"] == class_name)


def call_py_function(layers):
    layer_of(layers, "TFOpLambda")["config"]["function"] = "py_function"


def make_lambda(layers):
    layer_of(layers, "Conv2D")["class_name"] = "Lambda"


def make_old(layers):
    layer_of(layers, "Conv2D")["config"]["nb_filter"] = 4


def make_large(layers):
    layer_of(layers, "Dense")["config"]["units"] = 10**9


def make_foreign(layers):
    layer_of(layers, "Conv2D")["class_name"] = "Capsule"


def make_other(layers):
    layer_of(layers, "Dense")["config"]["units"] = 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (call_py_function, "calls tf.py_function, which is not one of the functions"),
        (make_lambda, "a Lambda layer, which could run any code"),
        pytest.param(
            make_old, r"was written by Keras 1.*open it in Keras 2",
            marks=pytest.mark.runs("Keras 1 `.h5` file", "no: save it again in Keras 2"),
        ),
        (make_large, "a bomb"),
        (make_foreign, r"needs the class 'Capsule'.*set trust: \[MODULE\]"),
        (make_other, "the first layer that differs"),
    ],
)  # fmt: skip
def test_files_that_keras_cannot_load_are_refused(change, message, tmp_path):
    path = spoiled(tmp_path, change)
    pixels = np.load(FOLDER / "expected.npz")["pixels"]
    with pytest.raises(ModelError, match=message) as error:
        scores(path, pixels)
    assert "\n" not in str(error.value)


@pytest.mark.runs(
    "weights without a network (`.h5`)", "no: `model:` the network, `weights:` the file"
)
def test_weights_without_a_network_are_refused(tmp_path):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.create_group("model_weights")
    with pytest.raises(ModelError, match="contains weights without a network; set model to"):
        model_runs.built(path)
