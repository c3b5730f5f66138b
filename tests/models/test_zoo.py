"""Every network has the parameters it must have, and whatever cannot be loaded is refused."""

import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.errors import ModelError
from cvbatch.models import applications, zoo
from cvbatch.models.card import DEMO_FILES, read_card, write_card

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not know NumPy 2's `copy`, and Keras passes it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def pixels(model):
    shape = (1, *model.input_shape[1:])
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.keras"
    model = zoo.build("encoder_decoder", 2, (16, 16))
    model.save(path)
    return path, model


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("mini_xception", 1, 721_857),
        ("encoder_decoder", 3, 2_880_643),
        ("MobileNetV2", 1000, 3_538_984),
    ],
)
def test_a_network_has_exactly_its_parameters(name, num_classes, parameters):
    assert zoo.build(name, num_classes).count_params() == parameters


def test_a_segmenter_answers_for_every_pixel():
    answer = np.asarray((model := zoo.build("encoder_decoder", 3, (16, 24)))(pixels(model)))

    assert answer.shape == (1, 16, 24, 3)
    np.testing.assert_allclose(answer.sum(axis=-1), 1, rtol=1e-5)


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
    ours = zoo.build("MobileNet", 2, (32, 32))
    assert not any(isinstance(layer, keras.Model) for layer in ours.layers)

    whole = keras.applications.MobileNet(weights=None)
    whole.save_weights(tmp_path / "m.weights.h5")
    loaded = zoo.load_model("MobileNet", str(tmp_path / "m.weights.h5"), local_file=Path)
    x = pixels(loaded)
    wanted = whole(keras.applications.mobilenet.preprocess_input(x.copy()))
    np.testing.assert_allclose(loaded(x), wanted, rtol=1e-4, atol=1e-6)
    assert plain.output_shape == ours.output_shape


def test_a_file_is_fetched_and_loaded_as_it_was_saved(saved):
    path, model = saved
    fetched = []

    def fetch(uri):
        fetched.append(uri)
        return path

    loaded = zoo.load_model("s3://bucket/net.keras", None, local_file=fetch)

    assert fetched == ["s3://bucket/net.keras"]
    np.testing.assert_array_equal(loaded(pixels(model)), model(pixels(model)))


def test_a_detector_with_a_card_loads_in_a_fresh_process(tmp_path):
    path = tmp_path / "detector.keras"
    zoo.build("demo_detector").save(path)
    write_card(path, ("a", "b", "c", "d", "e"), "detection")
    code = (
        "import sys, pathlib\n"
        "from cvbatch.models import zoo\n"
        "model = zoo.load_model(sys.argv[1], None, local_file=pathlib.Path)\n"
        "print({name: value.shape for name, value in model.output.items()})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "{'boxes': (None, 500, 4), 'scores': (None, 500, 5)}"
    assert read_card(path).classes == ("a", "b", "c", "d", "e")


def test_random_weights_are_had_only_by_saying_so():
    assert zoo.load_model("demo_detector", "random", local_file=Path).name == "yolo"
    with pytest.raises(ModelError, match=r"given no weights.*random"):
        zoo.load_model("demo_detector", None, local_file=Path)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("mobilenet-v2", "random", "nearest are .*MobileNetV2"),
        ("demo_detektor", "demo", "nearest are demo_detector"),
        ("###", "random", "no network is called '###'; there are mini_xception"),
        ("yolo", "demo", "demo_classifier.* only"),
        ("yolo", "imagenet", "its own networks only"),
        ("yolo", "somewhere/file.pt", "ending in .weights.h5"),
        ("net.keras", "imagenet", "holds its own; leave weights out"),
        ("net.keras", None, "cannot be loaded"),  # there is no such file
        ("yolo", "missing.weights.h5", "do not fit yolo"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(model, weights, message, tmp_path):
    with pytest.raises(ModelError, match=message) as error:
        zoo.load_model(model, weights, local_file=lambda uri: tmp_path / uri)
    assert "\n" not in str(error.value)


def test_sides_that_a_network_cannot_have_are_refused():
    with pytest.raises(ModelError, match=r"30×32 of encoder_decoder.*multiples of 8"):
        zoo.build("encoder_decoder", 2, (30, 32))
    with pytest.raises(ModelError, match="VGG16 cannot be built"):
        zoo.build("VGG16", 2, (8, 8))


def test_weights_of_another_network_are_refused(saved):
    path, _ = saved
    with pytest.raises(ModelError, match=r"do not fit demo_segmenter.*\(None, 128, 128, 6\)"):
        zoo.load_model("demo_segmenter", str(path), local_file=Path)


@pytest.mark.parametrize("damage", ["text", "cut", "no config", "odd config"])
def test_a_damaged_file_is_refused(saved, damage):
    path, _ = saved
    if damage == "text":
        path.write_text("not a model")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        with zipfile.ZipFile(path, "w") as members:
            members.writestr("metadata.json", "{}")
            if damage == "odd config":
                members.writestr("config.json", '{"class_name": "Nobody", "config": {}}')
    with pytest.raises(ModelError, match=r"net\.keras cannot be loaded"):
        zoo.load_model(str(path), None, local_file=Path)


def test_a_lambda_is_refused(tmp_path):
    path = tmp_path / "code.keras"
    inputs = keras.Input((2,))
    keras.Model(inputs, layers.Lambda(lambda x: x * 2, output_shape=(2,))(inputs)).save(path)

    with pytest.raises(ModelError, match="holds a Lambda layer"):
        zoo.load_model(str(path), None, local_file=Path)


def test_a_failed_download_names_the_file_and_where_to_put_it(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    address = "http://127.0.0.1:9/mobilenet_weights.h5"

    def refuse(**_):
        return keras.utils.get_file("m.h5", address, cache_dir=tmp_path)

    monkeypatch.setattr(keras.applications, "MobileNet", refuse)
    with pytest.raises(ModelError, match=f"fetch mobilenet_weights.h5 .*{tmp_path}/models"):
        zoo.load_model("MobileNet", "imagenet", local_file=Path)


def test_the_demos_networks_are_shipped_small_and_with_their_classes():
    for name, path in DEMO_FILES.items():
        card = read_card(path)
        assert card is not None
        assert card.task == zoo.ZOO[name].task
        assert len(card.classes) == zoo.ZOO[name].num_classes
        assert not zoo.load_model(name, "demo", local_file=Path).compiled
    assert sum(path.stat().st_size for path in DEMO_FILES.values()) < 4_000_000
