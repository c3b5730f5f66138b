"""Classifiers: parameters, feature map sizes, minimum image sizes, saving."""

import inspect
import math

import keras
import numpy as np
import pytest

from cvbatch.models import cost, googlenet, lenet, resnets
from cvbatch.models.classifiers import CLASSIFIERS, mini_xception
from cvbatch.models.metadata import DEMO_FILES

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
GREY = {"mnist_convnet", "fashion_convnet", "lenet5", "lenet5_original"}
NARROW = {  # options that make a network small enough to run fast
    name: {"width": 8} for name in CLASSIFIERS if not name.startswith("lenet5")
} | {"resnet152": {"width": 4, "units": (1, 2, 1, 1)}}
MINIMUM = {  # side in pixels, from the last map backwards: a valid 3×3 adds 2, a pool doubles
    "small_convnet": 2 * (2 * (2 * (2 * 3 + 2) + 2) + 2) + 2,
    "small_convnet_150": 2 * (2 * (2 * (2 * 1 + 2) + 2) + 2) + 2,
    "mnist_convnet": 2 * (2 * 3 + 2) + 2,
    "fashion_convnet": 2 * 2 * 2,
    "residual_convnet": 1,  # padded layers keep one pixel
    "mini_xception": 5,
    "lenet5": 2 * (2 * 5 + 4) + 4,
    "lenet5_original": 2 * (2 * 5 + 4) + 4,
    "alexnet": 11 + 4 * ((2 * 3 + 1) - 1),  # 3×3 pools of stride 2 read 3, then 7
    "googlenet": 1,
    "se_googlenet": 1,
    "resnet34": 1,
    "resnet152": 1,
    "se_resnet34": 1,
}


def unallocated(name, *args, **options):
    """Return the network without allocating its weights: enough for shapes and counts."""
    with cost.skip_weight_allocation():
        return CLASSIFIERS[name].build(*args, **options)


def narrow(name, num_classes=3, size=None, **options):
    size = size or (max(MINIMUM[name], 32), max(MINIMUM[name], 32))
    return CLASSIFIERS[name].build(num_classes, size, **NARROW.get(name, {}), **options)


def pixels(model, count=2):
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def maps_of(model, *names):
    return [model.get_layer(name).output.shape[1:] for name in names]


# ---------------------------------------------------------------- all classifiers


def test_all_builders_have_the_same_signature():
    assert set(MINIMUM) == set(CLASSIFIERS)
    for name, entry in CLASSIFIERS.items():
        parameters = inspect.signature(entry.build).parameters
        assert list(parameters)[:2] == ["num_classes", "image_size"], name
        assert parameters["multi_label"].default is False


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("num_classes", [1, 3])
def test_outputs_are_a_softmax_or_one_sigmoid_per_class(name, num_classes):
    model = unallocated(name, num_classes, (MINIMUM[name] + 4, MINIMUM[name] + 9))
    multi_label = unallocated(name, num_classes, (MINIMUM[name], MINIMUM[name]), multi_label=True)
    channels = 1 if name in GREY else 3

    assert model.input.name == "image"
    assert model.input_shape == (None, MINIMUM[name] + 4, MINIMUM[name] + 9, channels)
    assert model.output_shape == multi_label.output_shape == (None, num_classes)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert model.layers[-1].name == "scores"
    expected = "sigmoid" if num_classes == 1 else "softmax"
    assert model.layers[-1].activation.__name__ == expected
    assert multi_label.layers[-1].activation.__name__ == "sigmoid"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_saving_and_loading_keeps_a_classifier(name, tmp_path):
    model = narrow(name)
    model.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras", safe_mode=True)
    images = pixels(model)
    scores = np.asarray(model(images))

    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    assert np.ptp(scores, axis=0).max() > 0  # scores depend on the image
    np.testing.assert_array_equal(loaded(images), scores)


def has_no_empty_map(name, size, **options):
    try:
        model = unallocated(name, 2, size, **options)
    except ValueError as error:
        assert "would be zero or negative" in str(error)
        return False
    shapes = [layer.output.shape for layer in model.layers]
    return all(min(shape[1:3]) > 0 for shape in shapes if len(shape) == 4)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_minimum_size_is_the_smallest_without_an_empty_map(name):
    side = MINIMUM[name]

    assert has_no_empty_map(name, (side, side))
    assert not has_no_empty_map(name, (side - 1, side))
    assert not has_no_empty_map(name, (side, side - 1))


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [("mnist_convnet", {"pools": False}, 7), ("googlenet", {"auxiliary": True}, 65)],
)
def test_options_change_the_minimum_size(name, options, side):
    assert has_no_empty_map(name, (side, side), **options)
    assert not has_no_empty_map(name, (side - 1, side), **options)


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("name", "num_classes", "options", "parameters"),
    [
        ("small_convnet", 1, {}, 991_041),
        ("small_convnet_150", 1, {}, 3_453_121),
        ("mnist_convnet", 10, {}, 104_202),
        ("mnist_convnet", 10, {"pools": False}, 712_202),
        ("fashion_convnet", 10, {}, 1_413_834),
        ("residual_convnet", 1, {}, 297_697),
        ("mini_xception", 1, {}, 721_857),
        ("lenet5", 10, {}, 61_706),
        ("alexnet", 1000, {}, 201_838_952),
        ("resnet34", 10, {}, 21_306_826),
        ("resnet34", 1000, {}, 21_814_696),
        ("resnet152", 1000, {}, 60_419_944),
    ],
)
def test_parameter_counts_are_exact(name, num_classes, options, parameters):
    assert unallocated(name, num_classes, **options).count_params() == parameters


def convolution(channels_in, channels_out, kernel):
    return channels_in * channels_out * kernel**2 + channels_out


def squeeze(channels):
    reduced = channels // 16
    return channels * reduced + reduced + reduced * channels + channels


# Szegedy et al. 2015, table 1: channels in; 1×1; reduction, 3×3; reduction, 5×5; after the pool.
MODULES = [
    (192, 64, 96, 128, 16, 32, 32),
    (256, 128, 128, 192, 32, 96, 64),
    (480, 192, 96, 208, 16, 48, 64),
    (512, 160, 112, 224, 24, 64, 64),
    (512, 128, 128, 256, 24, 64, 64),
    (512, 112, 144, 288, 32, 64, 64),
    (528, 256, 160, 320, 32, 128, 128),
    (832, 256, 160, 320, 32, 128, 128),
    (832, 384, 192, 384, 48, 128, 128),
]


def test_googlenet_parameters_follow_the_papers_table():
    stem = convolution(3, 64, 7) + convolution(64, 64, 1) + convolution(64, 192, 3)
    modules = [
        convolution(c, a, 1) + convolution(c, b, 1) + convolution(b, d, 3)
        + convolution(c, e, 1) + convolution(e, f, 5) + convolution(c, g, 1)
        for c, a, b, d, e, f, g in MODULES
    ]  # fmt: skip
    assert stem == 9_472 + 4_160 + 110_784
    assert modules == [
        163_696, 388_736, 376_176, 449_160, 510_104, 605_376, 868_352, 1_043_456, 1_444_080
    ]  # fmt: skip
    head = 1024 * 1000 + 1000
    assert unallocated("googlenet", 1000).count_params() == stem + sum(modules) + head

    plain = stem + sum(modules) + head
    assert unallocated("googlenet", 1000).count_params() == plain == 6_998_552

    # At 224 an auxiliary head reads 14×14; its pool of 5×5 and stride 3 returns 4×4×128.
    auxiliary = [
        convolution(channels, 128, 1) + (4 * 4 * 128 * 1024 + 1024) + (1024 * 1000 + 1000)
        for channels in (512, 528)
    ]
    with_heads = unallocated("googlenet", 1000, auxiliary=True).count_params()
    assert with_heads == plain + sum(auxiliary) == 13_378_280

    squeezes = [squeeze(a + d + f + g) for _, a, _, d, _, f, g in MODULES]
    squeezed = unallocated("se_googlenet", 1000).count_params()
    assert squeezed == plain + sum(squeezes) == 7_478_655


def test_se_resnet_has_one_squeeze_per_unit():
    squeezes = 3 * squeeze(64) + 4 * squeeze(128) + 6 * squeeze(256) + 3 * squeeze(512)
    # 3·580 + 4·2,184 + 6·8,464 + 3·33,312
    assert squeezes == 161_196
    parameters = unallocated("se_resnet34", 1000).count_params()
    assert parameters == 21_814_696 + squeezes == 21_975_892


def test_the_original_lenet_has_60000_trainable_parameters():
    model = lenet.lenet5_original(10)
    trainable = {
        "c1": 6 * (25 + 1),
        "s2": 6 * (1 + 1),
        "c3": 25 * (6 * 3 + 9 * 4 + 1 * 6) + 16,  # six channels read 3, nine read 4, one reads 6
        "s4": 16 * (1 + 1),
        "c5": 120 * (16 * 25 + 1),
        "f6": 84 * (120 + 1),
    }
    assert sum(trainable.values()) == 60_000
    for name, parameters in trainable.items():
        assert model.get_layer(name).count_params() == parameters
    assert sum(math.prod(weight.shape) for weight in model.trainable_weights) == 60_000
    assert model.count_params() == 60_000 + 10 * 84
    assert [len(inputs) for inputs in lenet.C3_CONNECTIONS] == [3] * 6 + [4] * 9 + [6]
    assert len(set(lenet.C3_CONNECTIONS)) == 16
    for channel in range(6):  # each channel of S2 is read by ten of C3
        assert sum(channel in inputs for inputs in lenet.C3_CONNECTIONS) == 10


# ---------------------------------------------------------------- feature map sizes in the papers


def test_alexnet_maps_match_the_paper():
    names = ("conv_1", "pool_1", "conv_2", "pool_2", "conv_3", "conv_4", "conv_5")
    assert maps_of(unallocated("alexnet", 1000), *names) == [
        (55, 55, 96), (27, 27, 96), (27, 27, 256), (13, 13, 256),
        (13, 13, 384), (13, 13, 384), (13, 13, 256),
    ]  # fmt: skip


def test_googlenet_maps_match_the_paper():
    names = ("conv_1", "pool_1", "conv_2", "pool_2", "pool_3b", "pool_4e")
    modules = [f"inception_{module}_out" for module in ("3a", "3b", "4a", "4d", "4e", "5a", "5b")]
    assert maps_of(unallocated("googlenet", 1000), *names, *modules) == [
        (112, 112, 64), (56, 56, 64), (56, 56, 192), (28, 28, 192), (14, 14, 480), (7, 7, 832),
        (28, 28, 256), (28, 28, 480), (14, 14, 512), (14, 14, 528), (14, 14, 832),
        (7, 7, 832), (7, 7, 1024),
    ]  # fmt: skip


def test_resnet_maps_match_the_paper():
    plain = [f"stage{stage}_unit1_out" for stage in (1, 2, 3, 4)]
    deep = [f"conv{stage}_block3_out" for stage in (2, 3, 4, 5)]
    sides = [(56, 56), (28, 28), (14, 14), (7, 7)]
    widths = (64, 128, 256, 512)

    maps = maps_of(unallocated("resnet34", 10), *plain)
    assert maps == [(*side, width) for side, width in zip(sides, widths, strict=True)]
    maps = maps_of(unallocated("resnet152", 10), *deep)
    assert maps == [(*side, 4 * width) for side, width in zip(sides, widths, strict=True)]


# ---------------------------------------------------------------- single classifiers


def test_resnet152_has_keras_weights_in_the_same_order():
    with cost.skip_weight_allocation():
        reference = keras.applications.ResNet152(weights=None)
    network = unallocated("resnet152", 1000)

    assert [w.shape for w in network.weights] == [w.shape for w in reference.weights]
    names = [layer.name for layer in reference.layers if layer.weights][:-1]
    assert [layer.name for layer in network.layers if layer.weights] == [*names, "scores"]


def test_resnet152_with_the_units_of_resnet50_equals_keras_resnet50():
    reference = keras.applications.ResNet50(weights=None, input_shape=(32, 33, 3), classes=4)
    network = resnets.resnet152(4, (32, 33), units=(3, 4, 6, 3))
    network.set_weights(reference.get_weights())
    images = pixels(network)
    # Preprocessing: to BGR, minus the ImageNet mean.
    expected = reference(keras.applications.resnet.preprocess_input(images.copy()))

    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(network(images), expected, rtol=1e-3, atol=1e-6)


def test_the_demo_file_matches_its_builder():
    shipped = keras.saving.load_model(DEMO_FILES["demo_classifier"], compile=False)
    built = mini_xception(5, (96, 96), width=16, num_blocks=4)
    built.set_weights(shipped.get_weights())
    images = pixels(built)

    assert [type(a) for a in built.layers] == [type(a) for a in shipped.layers]
    np.testing.assert_allclose(built(images), shipped(images), rtol=1e-5)


def test_auxiliary_heads_are_additional_outputs():
    model = googlenet.googlenet(3, (65, 70), auxiliary=True, width=8)
    outputs = model(pixels(model))

    assert list(outputs) == ["scores", "auxiliary_1", "auxiliary_2"]
    for scores in outputs.values():
        np.testing.assert_allclose(np.asarray(scores).sum(axis=1), 1, rtol=1e-5)
    plain = googlenet.googlenet(3, (65, 70), width=8)
    main = [w for layer in model.layers if "auxiliary" not in layer.name for w in layer.weights]
    for weight, value in zip(plain.weights, main, strict=True):
        weight.assign(value)
    np.testing.assert_allclose(plain(pixels(plain)), outputs["scores"], rtol=1e-4, atol=1e-6)
    assert googlenet.AUXILIARY_LOSS_WEIGHT == 0.3


def test_auxiliary_heads_read_the_papers_modules():
    model = unallocated("googlenet", 1000, auxiliary=True)
    assert maps_of(model, "auxiliary_1_pool", "auxiliary_2_pool") == [(4, 4, 512), (4, 4, 528)]
    for head, module in (("auxiliary_1", "4a"), ("auxiliary_2", "4d")):
        source = model.get_layer(f"{head}_pool").input
        assert source is model.get_layer(f"inception_{module}_out").output


@pytest.mark.parametrize(("num_classes", "multi_label"), [(1, False), (1, True), (4, True)])
def test_the_original_lenet_has_independent_sigmoids(num_classes, multi_label):
    """The zero vector scores 0.5, a code scores 1, its negative 0."""
    model = lenet.lenet5_original(num_classes, multi_label=multi_label)
    vector = keras.Input((84,))
    x = vector
    for name in ("rbf", "threshold", "scores"):
        x = model.get_layer(name)(x)
    head = keras.Model(vector, x)
    codes = np.asarray(model.get_layer("rbf").codes)

    np.testing.assert_allclose(head(np.zeros((1, 84))), 0.5)
    np.testing.assert_allclose(np.diag(head(codes)), 1, atol=1e-6)
    np.testing.assert_allclose(np.diag(head(-codes)), 0, atol=1e-6)


def test_the_original_lenet_is_a_softmax_of_negative_distances():
    model = lenet.lenet5_original(10)
    images = pixels(model, 3)
    features = keras.Model(model.input, model.get_layer("f6_tanh").output)(images)
    codes = np.asarray(model.get_layer("rbf").codes)
    distances = ((np.asarray(features)[:, None] - codes) ** 2).sum(axis=-1)
    exponentials = np.exp(-(distances - distances.min(axis=1, keepdims=True)))

    np.testing.assert_allclose(
        model(images), exponentials / exponentials.sum(axis=1, keepdims=True), rtol=1e-3, atol=1e-6
    )
