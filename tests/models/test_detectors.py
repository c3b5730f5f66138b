"""Detectors and their training views, compared with decoders written as loops."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops

from cvbatch.core.errors import ModelError
from cvbatch.inference.engines import ENGINES
from cvbatch.models import detectors
from cvbatch.models.box_decoding import BoxDecode, GridDecode, WindowDecode
from cvbatch.models.graph_surgery import with_image_size
from cvbatch.models.precision import with_precision

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
ANCHORS = ((0.25, 0.5), (0.5, 0.125))
SIZE = (32, 48)
WINDOW, STRIDE = (16, 24), 8


def sigmoid(t):
    return 1 / (1 + math.exp(-t))


def xyxy(y, x, height, width):
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def decode_grid(raw, anchors, stride):  # (gh, gw, A·5 + C) → (N, 4), (N, C)
    boxes, scores = [], []
    rows, columns = raw.shape[:2]
    for row in range(rows):
        for column in range(columns):
            cell = raw[row, column].astype(float)
            classes = np.exp(cell[5 * len(anchors) :])
            for a, (height, width) in enumerate(anchors):
                ty, tx, th, tw, to = cell[5 * a : 5 * a + 5]
                center = (row + sigmoid(ty)) * stride, (column + sigmoid(tx)) * stride
                sides = height * rows * stride, width * columns * stride
                boxes.append(xyxy(*center, math.exp(th) * sides[0], math.exp(tw) * sides[1]))
                scores.append(classes / classes.sum() * sigmoid(to))
    return np.array(boxes), np.array(scores)


def decode_windows(raw, window, stride):  # (gh, gw, C + 5) → (N, 4), (N, C)
    boxes, scores = [], []
    for row in range(raw.shape[0]):
        for column in range(raw.shape[1]):
            *classes, objectness, cy, cx, sh, sw = raw[row, column].astype(float)
            y, x = row * stride + cy * window[0], column * stride + cx * window[1]
            boxes.append(xyxy(y, x, sh**2 * window[0], sw**2 * window[1]))
            scores.append(np.array(classes) * objectness)
    return np.array(boxes), np.array(scores)


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    """Replace the backbone by one of stride 8 with few weights, so that tests are fast."""

    def build(name, image_size, weights=None):
        if name != "tiny":
            return original(name, image_size, weights)
        image = keras.Input((*image_size, 3), name="image")
        x = layers.Rescaling(1 / 127.5, -1)(image)
        for filters in (4, 6, 5):
            x = layers.Conv2D(filters, 3, 2, padding="same", activation="relu")(x)
        return keras.Model(image, x, name=name)

    original = detectors.build_backbone
    monkeypatch.setattr(detectors, "build_backbone", build)
    keras.utils.set_random_seed(0)


def tiny_dense():
    return detectors.dense_localizer(3, "tiny", units=7, window=WINDOW)


NETWORKS = {
    "yolo": lambda: detectors.yolo(3, SIZE, ANCHORS, width=2),
    "localizer": lambda: detectors.localizer(3, SIZE, "tiny"),
    "sliding_fcn": lambda: detectors.to_sliding_fcn(tiny_dense(), SIZE),
}


def images(size, count=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype("float32")


def arrays_of(model, pixels):
    return {name: np.asarray(value) for name, value in model(pixels).items()}


def assert_close(outputs, boxes, scores):
    np.testing.assert_allclose(outputs["boxes"], boxes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs["scores"], scores, rtol=1e-4, atol=1e-6)


def test_yolo_decodes_its_training_view():
    model = NETWORKS["yolo"]()
    raw = np.asarray(detectors.training_view(model)(images(SIZE)))
    outputs = arrays_of(model, images(SIZE))

    assert raw.shape == (2, 2, 3, 2 * 5 + 3)
    assert outputs["boxes"].shape == (2, 12, 4)
    assert outputs["scores"].shape == (2, 12, 3)
    decoded = [decode_grid(image, ANCHORS, stride=16) for image in raw]
    assert_close(outputs, *map(np.stack, zip(*decoded, strict=True)))


def test_localizer_decodes_its_training_view():
    model = NETWORKS["localizer"]()
    raw = {k: np.asarray(v) for k, v in detectors.training_view(model)(images(SIZE)).items()}
    outputs = arrays_of(model, images(SIZE))

    assert {name: value.shape for name, value in raw.items()} == {"classes": (2, 3), "box": (2, 4)}
    cells = np.concatenate([raw["classes"], np.ones((2, 1)), raw["box"]], axis=1)
    decoded = [decode_windows(row[None, None], SIZE, stride=0) for row in cells]
    assert_close(outputs, *map(np.stack, zip(*decoded, strict=True)))


def test_sliding_fcn_decodes_its_training_view():
    model = NETWORKS["sliding_fcn"]()
    raw = np.asarray(detectors.training_view(model)(images(SIZE)))
    outputs = arrays_of(model, images(SIZE))

    assert raw.shape == (2, 3, 4, 3 + 1 + 4)
    assert outputs["boxes"].shape == (2, 12, 4)
    decoded = [decode_windows(image, WINDOW, STRIDE) for image in raw]
    assert_close(outputs, *map(np.stack, zip(*decoded, strict=True)))


def test_decoding_is_exact_for_large_values_of_both_signs():
    rng = np.random.default_rng(1)
    raw = rng.normal(0, 3, (1, 2, 2, 13)).astype("float32")
    assert_close(
        {k: v[0] for k, v in arrays_of(GridDecode(ANCHORS, 8), raw).items()},
        *decode_grid(raw[0], ANCHORS, 8),
    )
    raw = rng.normal(0, 3, (1, 2, 3, 9)).astype("float32")
    assert_close(
        {k: v[0] for k, v in arrays_of(WindowDecode(WINDOW, 8), raw).items()},
        *decode_windows(raw[0], WINDOW, 8),
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_detector_and_training_view_share_weights(name):
    model = NETWORKS[name]()
    view = detectors.training_view(model)

    assert model.count_params() == view.count_params()
    assert all(a is b for a, b in zip(model.variables, view.variables, strict=True))


def test_a_yolo_cell_has_45_values_for_20_classes():
    assert detectors.training_view(detectors.yolo(20, width=1)).output_shape == (None, 26, 26, 45)


@pytest.mark.parametrize(("size", "grid"), [((16, 24), (1, 1)), ((16, 48), (1, 4)), (SIZE, (3, 4))])
def test_every_cell_equals_the_dense_network_on_its_window(size, grid):
    dense = tiny_dense()
    features = keras.Model(dense.input, dense.get_layer("flatten").input)
    head = keras.Model(dense.get_layer("flatten").input, dense.output)
    raw = np.asarray(detectors.training_view(detectors.to_sliding_fcn(dense, size))(images(size)))
    assert raw.shape == (2, *grid, 8)

    feature_map = np.asarray(with_image_size(features, size)(images(size)))
    for row, column in np.ndindex(grid):
        dense_outputs = head(feature_map[:, row : row + 2, column : column + 3])
        expected = np.concatenate(
            [dense_outputs[k] for k in ("classes", "objectness", "box")], axis=1
        )
        np.testing.assert_allclose(raw[:, row, column], expected, rtol=1e-4, atol=1e-6)


def test_a_window_of_224_has_8_by_8_positions_in_448():
    with keras.StatelessScope(initialize_variables=False):
        small, large = (detectors.sliding_fcn(20, (side, side), units=2) for side in (224, 448))

    assert detectors.training_view(small).output_shape == (None, 1, 1, 20 + 1 + 4)
    assert detectors.training_view(large).output_shape == (None, 8, 8, 20 + 1 + 4)
    assert small.count_params() == large.count_params()


@pytest.mark.parametrize("size", [(8, 24), (20, 24), (16, 28)])
def test_image_sizes_that_do_not_fit_the_stride_are_refused(size):
    with pytest.raises(ModelError, match=r"window of 16×24 slides in steps of 8"):
        detectors.to_sliding_fcn(tiny_dense(), size)


@pytest.mark.parametrize("name", ["yolo", "localizer", "sliding_fcn"])
def test_another_image_size_shares_weights_and_decodes_to_its_pixels(name, tmp_path):
    model, size = NETWORKS[name](), (64, 80)
    larger = with_image_size(model, size)
    raw = detectors.training_view(larger)(images(size))
    larger.save(tmp_path / "larger.keras")
    loaded = keras.saving.load_model(tmp_path / "larger.keras", safe_mode=True)
    outputs = arrays_of(larger, images(size))

    assert all(a is b for a, b in zip(model.variables, larger.variables, strict=True))
    if name == "localizer":
        box = np.concatenate([raw["classes"], np.ones((2, 1)), raw["box"]], axis=1)
        decoded = [decode_windows(row[None, None], size, 0) for row in box]
    elif name == "yolo":
        decoded = [decode_grid(image, ANCHORS, 16) for image in np.asarray(raw)]
    else:
        decoded = [decode_windows(image, WINDOW, STRIDE) for image in np.asarray(raw)]
    assert_close(outputs, *map(np.stack, zip(*decoded, strict=True)))
    assert_close(arrays_of(loaded, images(size)), outputs["boxes"], outputs["scores"])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_detector_loads_in_safe_mode_with_its_training_view(name, tmp_path):
    model = NETWORKS[name]()
    model.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras", safe_mode=True)

    for pair in ((model, loaded), map(detectors.training_view, (model, loaded))):
        expected, actual = (keras.tree.flatten(m(images(SIZE))) for m in pair)
        for a, b in zip(expected, actual, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NETWORKS)
def test_litert_computes_the_same(name):
    model, pixels = NETWORKS[name](), images(SIZE).astype("uint8")

    def graph(tensor):
        return model(ops.cast(tensor, "float32"), training=False)

    payload, names = ENGINES["litert"].compile(graph, *pixels.shape[:3])
    outputs = ENGINES["litert"].load(payload, names, 1)(pixels)
    assert_close(outputs, **arrays_of(model, pixels.astype("float32")))


@pytest.mark.parametrize("name", NETWORKS)
def test_box_scores_have_gradients_at_the_last_feature_map(name):
    import tensorflow as tf

    model = NETWORKS[name]()
    last = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)][
        {"yolo": -2, "localizer": -1, "sliding_fcn": -5}[name]
    ]
    both = keras.Model(model.input, [last.output, model.output["scores"]])
    with tf.GradientTape() as tape:
        features, scores = both(images(SIZE), training=False)
        total = tf.reduce_sum(tf.reduce_max(scores, axis=(1, 2)))
    gradient = tape.gradient(total, features).numpy()

    assert features.shape[1] * features.shape[2] > 1
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_boxes_are_exact_in_half_precision(name):
    model = NETWORKS[name]()
    half = with_precision(model, "mixed_bfloat16")
    raw, decoder = detectors.training_view(half)(images(SIZE)), model.get_layer("decode")
    flat = [np.asarray(t, "float32") for t in keras.tree.flatten(raw)]
    exact = decoder([*flat, images(SIZE)] if name == "localizer" else flat[0])

    outputs = half(images(SIZE))["boxes"]
    assert outputs.dtype == "float32"
    np.testing.assert_allclose(outputs, exact["boxes"], rtol=1e-5, atol=1e-5)


def test_decoding_layers_are_restored_from_their_configs():
    for layer in (GridDecode([(0.5, 0.25)], 16), BoxDecode(), WindowDecode((224, 160), 32)):
        restored = keras.layers.deserialize(keras.layers.serialize(layer))
        assert type(restored) is type(layer)
        assert restored.get_config() == layer.get_config()


def test_the_localizer_accepts_named_backbones():
    with keras.StatelessScope(initialize_variables=False):
        for backbone in ("VGG16", "EfficientNetB0", "resnet34", "mini_xception"):
            model = detectors.localizer(5, (64, 96), backbone)
            assert model.output["boxes"].shape == (None, 1, 4)
            assert model.output["scores"].shape == (None, 1, 5)


def test_a_model_without_decoding_layer_has_no_training_view():
    image = keras.Input((8, 8, 3))
    with pytest.raises(ModelError, match=r"has no decoding layer"):
        detectors.training_view(keras.Model(image, layers.Conv2D(1, 1)(image)))


@pytest.mark.parametrize("anchors", [[], [[0.1]], [[0.1, 0.2], [0.3, 0]]])
def test_malformed_anchors_are_refused(anchors):
    with pytest.raises(ModelError, match=r"anchors \[.*pair \(height, width\)"):
        detectors.yolo(3, SIZE, anchors)
