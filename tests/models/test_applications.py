"""The networks of Keras under their own names: preprocessing inside, ImageNet's weights kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.core.errors import ModelError
from cvbatch.models import applications, registry
from cvbatch.models.cost import skip_weight_allocation

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not know NumPy 2's `copy`, and Keras passes it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def pixels(model):
    shape = (1, *model.input_shape[1:])
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


@pytest.mark.parametrize("kind", ["tf", "torch", "caffe", "own"])
def test_preprocessing_in_the_graph_is_that_of_keras(kind):
    modules = {
        "tf": keras.applications.mobilenet_v2,
        "torch": keras.applications.densenet,
        "caffe": keras.applications.vgg16,
        "own": keras.applications.efficientnet,
    }
    inputs = keras.Input((4, 5, 3))
    model = keras.Model(inputs, layers.Identity()(applications.preprocess(inputs, kind)))
    x = pixels(model)

    np.testing.assert_allclose(model(x), modules[kind].preprocess_input(x.copy()), atol=1e-4)


def test_the_table_of_applications_is_that_of_keras():
    known = {name for name in dir(keras.applications) if name[0].isupper()}

    assert set(applications.APPLICATIONS) == known


def test_an_application_is_flat_and_takes_weights_of_the_plain_network(tmp_path):
    plain = keras.applications.MobileNet(
        weights=None, alpha=0.25, input_shape=(32, 32, 3), classes=2
    )
    ours = registry.build("MobileNet", 2, (32, 32))
    assert not any(isinstance(layer, keras.Model) for layer in ours.layers)

    whole = keras.applications.MobileNet(weights=None)
    whole.save_weights(tmp_path / "m.weights.h5")
    loaded = registry.load_model("MobileNet", str(tmp_path / "m.weights.h5"), local_file=Path)
    x = pixels(loaded)
    wanted = whole(keras.applications.mobilenet.preprocess_input(x.copy()))
    np.testing.assert_allclose(loaded(x), wanted, rtol=1e-4, atol=1e-6)
    assert plain.output_shape == ours.output_shape


def test_features_are_what_the_network_sees_below_its_top():
    plain = keras.applications.MobileNetV2(
        weights=None, alpha=1.0, input_shape=(32, 32, 3), include_top=False
    )
    ours = applications.build_features("MobileNetV2", (32, 32))
    ours.set_weights(plain.get_weights())
    x = pixels(ours)

    wanted = plain(keras.applications.mobilenet_v2.preprocess_input(x.copy()))
    np.testing.assert_allclose(ours(x), wanted, rtol=1e-4, atol=1e-6)
    assert not any(isinstance(layer, keras.Model) for layer in ours.layers)


@pytest.mark.parametrize(
    ("num_classes", "multi_label", "activation"),
    [(1, False, "sigmoid"), (3, False, "softmax"), (3, True, "sigmoid")],
)
def test_the_last_activation_is_that_of_the_classes(num_classes, multi_label, activation):
    with skip_weight_allocation():
        model = applications.build_application(
            "MobileNet", num_classes, (32, 32), multi_label=multi_label
        )

    assert model.layers[-1].activation.__name__ == activation


def test_an_efficientnet_is_the_one_that_imagenets_weights_were_made_for(monkeypatch, tmp_path):
    ours = applications.build_application("EfficientNetB0", 1000, (224, 224))
    x = pixels(ours)
    ours.save(tmp_path / "efficientnetb0.h5")
    monkeypatch.setattr(
        "keras.src.utils.file_utils.get_file", lambda name, *_, **__: tmp_path / name
    )
    theirs = keras.applications.EfficientNetB0(weights="imagenet")

    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-7)
    again = keras.Model(ours.input, ours.layers[-1].output)  # no second graph through its layers
    np.testing.assert_array_equal(again(x), ours(x))


IMAGENET_SCRIPT = """
import json, sys
import keras, numpy as np
from cvbatch.models import applications as a

whole = keras.applications.MobileNet(weights=None)
below = keras.applications.MobileNet(weights=None, include_top=False, input_shape=(224, 224, 3))
below.set_weights(whole.get_weights()[: len(below.get_weights())])
folder = a.keras_cache()
folder.mkdir(parents=True)
whole.save(folder / "mobilenet_1_0_224_tf.h5")
below.save(folder / "mobilenet_1_0_224_tf_no_top.h5")
trained = whole.get_weights()

def same(model):
    return [np.array_equal(x, y) for x, y in zip(model.get_weights(), trained, strict=False)]

named = a.build_application("MobileNet", 1000, (224, 224), "imagenet")
smaller = a.build_application("MobileNet", 1000, (64, 96), "imagenet")
other = a.build_application("MobileNet", 3, (64, 64), "imagenet")
features = a.build_features("MobileNet", (64, 64), "imagenet")
print(json.dumps({
    "named": all(same(named)), "smaller": all(same(smaller)), "other": same(other)[:-2],
    "head": [list(w.shape) for w in other.weights[-2:]], "features": all(same(features)),
    "sizes": [m.input_shape[1:3] for m in (named, smaller, other, features)],
}))
"""


def test_imagenets_weights_in_the_cache_serve_other_sizes_and_classes_offline(tmp_path):
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", IMAGENET_SCRIPT],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])

    assert said["named"]
    assert said["smaller"]
    assert said["features"]
    assert all(said["other"])  # all below the head
    assert said["head"] == [[1, 1, 1024, 3], [3]]
    assert said["sizes"] == [[224, 224], [64, 96], [64, 64], [64, 64]]


def test_a_head_made_for_one_size_is_not_taken_to_another():
    def head(side):
        return keras.Sequential([keras.Input((side, side, 3)), layers.Flatten(), layers.Dense(2)])

    with pytest.raises(ModelError, match=r"VGG16 .* ImageNet head at 5×5.*made for 224×224"):
        applications._carry_whole(head(4), head(5), "VGG16")


def test_a_failed_download_names_the_file_and_where_to_put_it(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    address = "http://127.0.0.1:9/mobilenet_weights.h5"

    def refuse(**_):
        return keras.utils.get_file("m.h5", address, cache_dir=tmp_path)

    monkeypatch.setattr(keras.applications, "MobileNet", refuse)
    with pytest.raises(ModelError, match=f"fetch mobilenet_weights.h5 .*{tmp_path}/models"):
        registry.load_model("MobileNet", "imagenet", local_file=Path)
