"""Segmenters: scores for every pixel, parameters, padding, skip connections, saving."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from cvbatch.core.errors import ModelError
from cvbatch.inference.engines import ENGINES
from cvbatch.models import segmenters

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
FCNS = {"fcn32s": segmenters.fcn32s, "fcn16s": segmenters.fcn16s, "fcn8s": segmenters.fcn8s}
SIZE = (32, 64)


def small(name, size=SIZE, backbone="residual_like", num_classes=3, **options):
    keras.utils.set_random_seed(0)
    return FCNS[name](num_classes, size, backbone=backbone, **options)


def images(size, count=2, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype("float32")


@pytest.fixture(autouse=True)
def residual_like(monkeypatch):
    """Replace the backbone by a small one with strides up to 32, so that tests are fast."""

    def build(name, image_size, weights=None):
        assert (name, weights) == ("residual_like", None)
        image = keras.Input((*image_size, 3), name="image")
        x = layers.Rescaling(1 / 127.5, -1)(image)
        for i, filters in enumerate((4, 4, 6, 6, 8)):
            x = layers.Conv2D(filters, 3, 2, padding="same", activation="relu", name=f"c{i}")(x)
        return keras.Model(image, x, name=name)

    monkeypatch.setattr(segmenters, "build_backbone", build)


def with_skips(model, value=0.3):
    """Give the skips' score layers random weights instead of zeros."""
    for stride in (16, 8):
        names = {layer.name for layer in model.layers}
        if f"score_{stride}" in names:
            kernel = model.get_layer(f"score_{stride}").kernel
            rng = np.random.default_rng(stride)
            kernel.assign(rng.normal(0, value, kernel.shape))
    return model


def test_the_smallest_encoder_decoder_scores_every_pixel():
    model = segmenters.encoder_decoder(3, (8, 8), width=2)
    outputs = np.asarray(model(images((8, 8))))

    assert outputs.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(outputs.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", FCNS)
@pytest.mark.parametrize("size", [(32, 32), (33, 95), (64, 40)])
def test_fcns_score_every_pixel_at_any_size(name, size):
    outputs = np.asarray(small(name, size)(images(size)))

    assert outputs.shape == (2, *size, 3)
    np.testing.assert_allclose(outputs.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", FCNS)
def test_padding_is_zeros_at_the_right_and_bottom_and_is_cropped(name):
    odd, multiple = with_skips(small(name, (40, 70))), with_skips(small(name, (64, 96)))
    odd.set_weights(multiple.get_weights())
    pixels = images((40, 70))
    padded = np.zeros((2, 64, 96, 3), "float32")
    padded[:, :40, :70] = pixels

    expected = np.asarray(multiple(padded))[:, :40, :70]
    np.testing.assert_allclose(odd(pixels), expected, rtol=1e-5, atol=1e-6)


def test_fcn32s_resizes_its_scores_except_at_the_border():
    model = small("fcn32s", (160, 192))
    scores = keras.Model(model.input, model.get_layer("score_32").output)(images((160, 192)))
    resized = ops.image.resize(scores, (160, 192), interpolation="bilinear")
    inner = np.s_[:, 16:-16, 16:-16]

    expected = np.asarray(ops.softmax(resized))[inner]
    outputs = np.asarray(model(images((160, 192))))[inner]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "stride"), [("fcn16s", 16), ("fcn8s", 8)])
def test_a_skip_adds_the_scores_of_its_map(name, stride):
    model = small(name)
    kernel = model.get_layer(f"score_{stride}").kernel
    before = model.get_layer(f"fuse_{stride}")
    fused = keras.Model(model.input, [*before.input, before.output])
    assert not np.asarray(fused(images(SIZE))[1]).any()  # zeros before training

    kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    coarse, skip, both = (np.asarray(t) for t in fused(images(SIZE)))
    features = keras.Model(model.input, model.get_layer(f"c{ {16: 3, 8: 2}[stride] }").output)
    expected = np.asarray(features(images(SIZE))) @ np.asarray(kernel)[0, 0]
    assert skip.shape[1:3] == (SIZE[0] // stride, SIZE[1] // stride)
    np.testing.assert_allclose(skip, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both, coarse + skip, rtol=1e-5)


def test_parameter_counts_of_vgg16_with_21_classes_are_exact():
    features = 14_714_688
    connected = (7 * 7 * 512 * 4096 + 4096) + (4096 * 4096 + 4096)
    score_32, score_16, score_8 = ((channels * 21 + 21) for channels in (4096, 512, 256))
    up_32, up_16, up_8, up_2 = ((2 * f) ** 2 * 21 * 21 for f in (32, 16, 8, 2))
    base = features + connected + score_32
    expected = {
        "fcn32s": base + up_32,
        "fcn16s": base + up_2 + score_16 + up_16,
        "fcn8s": base + up_2 + score_16 + up_2 + score_8 + up_8,
    }
    with keras.StatelessScope(initialize_variables=False):
        counted = {name: build(21).count_params() for name, build in FCNS.items()}

    assert counted == expected
    assert counted == {"fcn32s": 136_152_917, "fcn16s": 134_815_994, "fcn8s": 134_489_759}


def test_vgg_skips_start_at_the_papers_pools():
    with keras.StatelessScope(initialize_variables=False):
        model = segmenters.fcn8s(2, SIZE, units=4)
    skips = {stride: model.get_layer(f"score_{stride}").input for stride in (16, 8)}

    assert skips[16] is model.get_layer("block4_pool").output
    assert skips[8] is model.get_layer("block3_pool").output
    assert model.get_layer("fc1").kernel.shape == (7, 7, 512, 4)
    assert model.get_layer("drop2").output.shape == (None, 1, 2, 4)


def test_vgg_fully_connected_weights_are_copied(monkeypatch):
    def vgg_like(name, num_classes, image_size, weights):
        assert (name, num_classes, weights) == ("VGG16", 1000, "imagenet")
        image = keras.Input((*image_size, 3))
        x = layers.AveragePooling2D(32, name="block4_pool")(image)
        x = layers.Flatten()(layers.Conv2D(2, 1)(x))
        x = layers.Dense(6, activation="relu", name="fc2")(layers.Dense(6, name="fc1")(x))
        built.append(keras.Model(image, layers.Dense(5)(x)))
        return built[-1]

    built = []
    monkeypatch.setattr(segmenters, "build_application", vgg_like)
    monkeypatch.setattr(segmenters, "_VGG_UNITS", 6)
    model = segmenters.fcn32s(2, SIZE, backbone_weights="imagenet", units=6)

    for name in ("fc1", "fc2"):
        dense, convolution = built[0].get_layer(name), model.get_layer(name)
        kernel = np.asarray(dense.kernel).reshape(convolution.kernel.shape)
        np.testing.assert_array_equal(convolution.kernel, kernel)
        np.testing.assert_array_equal(convolution.bias, dense.bias)


@pytest.mark.parametrize("name", FCNS)
def test_a_saved_segmenter_loads_in_safe_mode(name, tmp_path):
    model = with_skips(small(name, (40, 33)))
    model.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras", safe_mode=True)

    np.testing.assert_array_equal(loaded(images((40, 33))), model(images((40, 33))))


@pytest.mark.parametrize("name", FCNS)
def test_litert_computes_the_same(name):
    model, pixels = with_skips(small(name, (40, 33))), images((40, 33)).astype("uint8")

    def graph(tensor):
        return {"scores": model(ops.cast(tensor, "float32"), training=False)}

    payload, names = ENGINES["litert"].compile(graph, *pixels.shape[:3])
    outputs = ENGINES["litert"].load(payload, names, 1)(pixels)["scores"]
    np.testing.assert_allclose(outputs, model(pixels.astype("float32")), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FCNS)
def test_scores_have_gradients_at_the_deepest_feature_map(name):
    import tensorflow as tf

    model = small(name)
    both = keras.Model(model.input, [model.get_layer("c4").output, model.output])
    with tf.GradientTape() as tape:
        features, scores = both(images(SIZE), training=False)
        total = tf.reduce_sum(scores[..., 0])
    gradient = tape.gradient(total, features).numpy()

    assert gradient.shape == features.shape
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_one_class_is_a_sigmoid():
    assert small("fcn32s", num_classes=1).layers[-1].activation is keras.activations.sigmoid


def test_a_backbone_without_the_required_strides_is_refused(monkeypatch):
    monkeypatch.undo()
    with (
        keras.StatelessScope(initialize_variables=False),
        pytest.raises(ModelError, match=r"no feature map of stride 32 at 64×96"),
    ):
        segmenters.fcn8s(2, (64, 96), backbone="residual_convnet")
