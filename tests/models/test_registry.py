"""Building and loading networks: parameters, files, weights, and error messages."""

import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.core.errors import ModelError
from cvbatch.models import registry
from cvbatch.models.cost import skip_weight_allocation
from cvbatch.models.metadata import DEMO_FILES, read_card, write_card

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def pixels(model):
    shape = (1, *model.input_shape[1:])
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.keras"
    model = registry.build("encoder_decoder", 2, (16, 16))
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
def test_parameter_counts_are_exact(name, num_classes, parameters):
    assert registry.build(name, num_classes).count_params() == parameters


def test_a_segmenter_returns_scores_for_every_pixel():
    output = np.asarray((model := registry.build("encoder_decoder", 3, (16, 24)))(pixels(model)))

    assert output.shape == (1, 16, 24, 3)
    np.testing.assert_allclose(output.sum(axis=-1), 1, rtol=1e-5)


def test_a_saved_file_is_fetched_and_loaded(saved):
    path, model = saved
    fetched = []

    def fetch(uri):
        fetched.append(uri)
        return path

    loaded = registry.load_model("s3://bucket/net.keras", None, local_file=fetch)

    assert fetched == ["s3://bucket/net.keras"]
    np.testing.assert_array_equal(loaded(pixels(model)), model(pixels(model)))


def test_a_detector_with_a_card_loads_in_a_fresh_process(tmp_path):
    path = tmp_path / "detector.keras"
    registry.build("demo_detector").save(path)
    write_card(path, ("a", "b", "c", "d", "e"), "detection")
    code = (
        "import sys, cvbatch\n"
        "assert 'keras' not in sys.modules\n"
        "model = cvbatch.load_model(sys.argv[1])\n"
        "print({name: value.shape for name, value in model.output.items()})"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )

    assert process.stdout.strip() == "{'boxes': (None, 500, 4), 'scores': (None, 500, 5)}"
    assert read_card(path).classes == ("a", "b", "c", "d", "e")


# Together these networks use all custom layers, activations and initializers.
WITH_CUSTOM_LAYERS = {
    "lenet5_original": ((32, 32), {}),
    "alexnet": ((67, 67), {"width": 12}),
    "se_googlenet": ((32, 32), {"width": 8}),
    "fcn8s": ((40, 33), {"units": 4, "backbone": "MobileNetV2"}),
    "localizer": ((32, 32), {}),
    "sliding_fcn": ((224, 224), {"units": 4}),
    "yolo": ((32, 32), {"width": 4}),
}


def test_all_custom_layers_load_in_a_fresh_process_that_imports_only_cvbatch(tmp_path):
    for name, (size, options) in WITH_CUSTOM_LAYERS.items():
        model = registry.build(name, 3, size, options)
        model.save(tmp_path / f"{name}.keras")
        output = model(np.full((1, *model.input_shape[1:]), 100.0, np.float32))
        outputs = output if isinstance(output, dict) else {"output": output}
        np.savez(tmp_path / f"{name}.npz", **{key: np.asarray(x) for key, x in outputs.items()})
    code = (
        "import sys, pathlib, cvbatch\n"
        "assert 'keras' not in sys.modules\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.keras')):\n"
        "    model = cvbatch.load_model(path)\n"
        "    import numpy as np\n"
        "    output = model(np.full((1, *model.input_shape[1:]), 100.0, np.float32))\n"
        "    outputs = output if isinstance(output, dict) else {'output': output}\n"
        "    for key, expected in np.load(path.with_suffix('.npz')).items():\n"
        "        np.testing.assert_allclose(outputs[key], expected, rtol=1e-4, atol=1e-5)\n"
        "    print(path.stem)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False
    )

    assert process.stdout.split() == sorted(WITH_CUSTOM_LAYERS), process.stderr[-2000:]


def test_random_weights_must_be_requested():
    assert registry.load_model("demo_detector", "random", local_file=Path).name == "yolo"
    with pytest.raises(ModelError, match=r"has no weights.*random"):
        registry.load_model("demo_detector", None, local_file=Path)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("mobilenet-v2", "random", "'mobilenet-v2'.*MobileNetV2"),
        ("Resnet152", "random", "'Resnet152'.*resnet152 or ResNet152"),
        ("demo_detektor", "demo", "'demo_detektor'.*demo_detector"),
        ("###", "random", "no network is called '###'.*`cvbatch models` lists the names"),
        ("yolo", "demo", "demo_classifier.* only"),
        ("yolo", "imagenet", "exist for networks of keras.applications"),
        ("yolo", "somewhere/file.pt", "ends in .weights.h5"),
        ("net.keras", "imagenet", "contains the network and its weights; remove weights"),
        ("net.keras", None, "net.keras does not exist"),
        ("yolo", "missing.weights.h5", "missing.weights.h5 does not exist"),
    ],
)
def test_wrong_models_and_weights_are_refused_with_a_remedy(model, weights, message, tmp_path):
    with pytest.raises(ModelError, match=message) as error:
        registry.load_model(model, weights, local_file=lambda uri: tmp_path / uri)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("encoder_decoder", (30, 33), r"30×33 .* of encoder_decoder.*of 8; the nearest is 32×32"),
        ("VGG16", (8, 40), r"8×40 .* of VGG16.*at least 32×32; the nearest is 32×40"),
        ("Xception", (70, 70), r"at least 71×71"),
    ],
)
def test_unsupported_image_sizes_are_refused(name, size, message):
    with pytest.raises(ModelError, match=message):
        registry.build(name, 2, size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 3}, "no build option 'widht'; the nearest is 'width'"),
        ({"width": "wide"}, "cannot be built with .* {'width': 'wide'}"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ModelError, match=message):
        registry.build("mini_xception", 2, (64, 64), options)


def test_options_reach_the_builder():
    narrow = registry.build("encoder_decoder", 2, (16, 16), {"width": 2, "num_classes": 5})

    assert narrow.output_shape == (None, 16, 16, 5)
    assert narrow.layers[2].filters == 2


def test_a_network_without_allocated_weights_has_shapes():
    with skip_weight_allocation():
        model = registry.build("VGG16")

    assert model.count_params() == 138_357_544
    assert model.output_shape == (None, 1000)


@pytest.mark.parametrize(
    ("name", "weights", "num_classes", "trained"),
    [
        ("MobileNetV2", "imagenet", None, True),
        ("MobileNetV2", "imagenet", 1000, True),
        ("MobileNetV2", "imagenet", 3, False),
        ("MobileNetV2", "random", 3, True),  # requested
        ("fcn8s", "imagenet", None, False),
        ("anything.keras", None, 3, True),
    ],
)
def test_a_head_for_other_classes_is_untrained(name, weights, num_classes, trained):
    assert registry.is_head_trained(name, weights, num_classes) is trained


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("text", "is not a .keras file .* or is truncated"),
        ("cut", "is not a .keras file .* or is truncated"),
        ("no config", "cannot be loaded as a .keras file of Keras"),
        ("odd config", "needs the class 'Nobody'.*code from outside is not run"),
    ],
)
def test_a_damaged_file_is_refused(saved, damage, message):
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
    with pytest.raises(ModelError, match=message) as error:
        registry.load_model(str(path), None, local_file=Path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_lambda_layer_is_refused(tmp_path):
    path = tmp_path / "code.keras"
    inputs = keras.Input((2,))
    keras.Model(inputs, layers.Lambda(lambda x: x * 2, output_shape=(2,))(inputs)).save(path)

    with pytest.raises(ModelError, match="holds a Lambda layer"):
        registry.load_model(str(path), None, local_file=Path)


def test_the_demo_networks_are_small_and_have_cards():
    for name, path in DEMO_FILES.items():
        card = read_card(path)
        assert card is not None
        assert card.task == registry.ZOO[name].task
        assert len(card.classes) == registry.ZOO[name].num_classes
        assert not registry.load_model(name, "demo", local_file=Path).compiled
    assert sum(path.stat().st_size for path in DEMO_FILES.values()) < 4_000_000
