"""Networks of keras.applications: preprocessing in the graph, ImageNet weights, errors."""

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
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def pixels(model):
    shape = (1, *model.input_shape[1:])
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


@pytest.mark.parametrize("kind", ["tf", "torch", "caffe", "included"])
def test_preprocessing_in_the_graph_equals_keras(kind):
    modules = {
        "tf": keras.applications.mobilenet_v2,
        "torch": keras.applications.densenet,
        "caffe": keras.applications.vgg16,
        "included": keras.applications.efficientnet,
    }
    inputs = keras.Input((4, 5, 3))
    model = keras.Model(inputs, layers.Identity()(applications.preprocess(inputs, kind)))
    x = pixels(model)

    np.testing.assert_allclose(model(x), modules[kind].preprocess_input(x.copy()), atol=1e-4)


def test_the_table_has_all_applications_of_keras():
    names = {name for name in dir(keras.applications) if name[0].isupper()}

    assert set(applications.APPLICATIONS) == names


def test_an_application_is_flat_and_loads_weights_of_keras_network(tmp_path):
    plain = keras.applications.MobileNet(
        weights=None, alpha=0.25, input_shape=(32, 32, 3), classes=2
    )
    network = registry.build("MobileNet", 2, (32, 32))
    assert not any(isinstance(layer, keras.Model) for layer in network.layers)

    reference = keras.applications.MobileNet(weights=None)
    reference.save_weights(tmp_path / "m.weights.h5")
    loaded = registry.load_model("MobileNet", str(tmp_path / "m.weights.h5"), local_file=Path)
    x = pixels(loaded)
    expected = reference(keras.applications.mobilenet.preprocess_input(x.copy()))
    np.testing.assert_allclose(loaded(x), expected, rtol=1e-4, atol=1e-6)
    assert plain.output_shape == network.output_shape


def test_features_equal_the_network_without_its_top():
    plain = keras.applications.MobileNetV2(
        weights=None, alpha=1.0, input_shape=(32, 32, 3), include_top=False
    )
    features = applications.build_features("MobileNetV2", (32, 32))
    features.set_weights(plain.get_weights())
    x = pixels(features)

    expected = plain(keras.applications.mobilenet_v2.preprocess_input(x.copy()))
    np.testing.assert_allclose(features(x), expected, rtol=1e-4, atol=1e-6)
    assert not any(isinstance(layer, keras.Model) for layer in features.layers)


@pytest.mark.parametrize(
    ("num_classes", "multi_label", "activation"),
    [(1, False, "sigmoid"), (3, False, "softmax"), (3, True, "sigmoid")],
)
def test_the_last_activation_depends_on_the_classes(num_classes, multi_label, activation):
    with skip_weight_allocation():
        model = applications.build_application(
            "MobileNet", num_classes, (32, 32), multi_label=multi_label
        )

    assert model.layers[-1].activation.__name__ == activation


def test_an_efficientnet_equals_keras_network_with_imagenet_weights(monkeypatch, tmp_path):
    network = applications.build_application("EfficientNetB0", 1000, (224, 224))
    x = pixels(network)
    network.save(tmp_path / "efficientnetb0.h5")
    monkeypatch.setattr(
        "keras.src.utils.file_utils.get_file", lambda name, *_, **__: tmp_path / name
    )
    reference = keras.applications.EfficientNetB0(weights="imagenet")

    np.testing.assert_allclose(network(x), reference(x), rtol=1e-5, atol=1e-7)
    # A layer must not have a second call, whose output `layer.output` could be.
    rebuilt = keras.Model(network.input, network.layers[-1].output)
    np.testing.assert_array_equal(rebuilt(x), network(x))


IMAGENET_SCRIPT = """
import json, sys
import keras, numpy as np
from cvbatch.models import applications as a

full = keras.applications.MobileNet(weights=None)
headless = keras.applications.MobileNet(weights=None, include_top=False, input_shape=(224, 224, 3))
headless.set_weights(full.get_weights()[: len(headless.get_weights())])
folder = a.keras_cache()
folder.mkdir(parents=True)
full.save(folder / "mobilenet_1_0_224_tf.h5")
headless.save(folder / "mobilenet_1_0_224_tf_no_top.h5")
trained = full.get_weights()

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


def test_cached_imagenet_weights_load_offline_for_other_sizes_and_classes(tmp_path):
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(
        [sys.executable, "-c", IMAGENET_SCRIPT],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(process.stdout.splitlines()[-1])

    assert report["named"]
    assert report["smaller"]
    assert report["features"]
    assert all(report["other"])  # all weights below the head
    assert report["head"] == [[1, 1, 1024, 3], [3]]
    assert report["sizes"] == [[224, 224], [64, 96], [64, 64], [64, 64]]


def test_a_head_for_one_image_size_is_refused_at_another():
    def head(side):
        return keras.Sequential([keras.Input((side, side, 3)), layers.Flatten(), layers.Dense(2)])

    with pytest.raises(ModelError, match=r"VGG16 .* ImageNet head at 5×5.*trained for 224×224"):
        applications._copy_all_weights(head(4), head(5), "VGG16")


def test_a_failed_download_names_the_file_and_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    url = "http://127.0.0.1:9/mobilenet_weights.h5"

    def download(**_):
        return keras.utils.get_file("m.h5", url, cache_dir=tmp_path)

    monkeypatch.setattr(keras.applications, "MobileNet", download)
    with pytest.raises(ModelError, match=f"download mobilenet_weights.h5 .*{tmp_path}/models"):
        registry.load_model("MobileNet", "imagenet", local_file=Path)
