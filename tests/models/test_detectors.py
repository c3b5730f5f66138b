"""The two views of the grid detector, against a decoding written out cell by cell."""

import math

import keras
import numpy as np
import pytest

from cvbatch.models import detectors

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not know NumPy 2's `copy`, and Keras passes it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
ANCHORS = ((0.25, 0.5), (0.5, 0.125))
SIZE = (32, 48)


def decode_slowly(raw, anchors_px, stride):  # (gh, gw, A·5 + C) → (N, 4), (N, C)
    boxes, scores = [], []
    for row in range(raw.shape[0]):
        for column in range(raw.shape[1]):
            cell = raw[row, column].astype(float)
            classes = np.exp(cell[5 * len(anchors_px) :])
            for a, (height, width) in enumerate(anchors_px):
                ty, tx, th, tw, to = cell[5 * a : 5 * a + 5]
                y = (row + 1 / (1 + math.exp(-ty))) * stride
                x = (column + 1 / (1 + math.exp(-tx))) * stride
                h, w = math.exp(th) * height, math.exp(tw) * width
                boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
                scores.append(classes / classes.sum() / (1 + math.exp(-to)))
    return np.array(boxes), np.array(scores)


def test_the_serving_view_is_the_training_view_decoded():
    model = detectors.yolo(3, SIZE, ANCHORS, width=2)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype("float32")
    raw = np.asarray(detectors.training_view(model)(pixels))
    served = {name: np.asarray(value) for name, value in model(pixels).items()}

    assert raw.shape == (2, 2, 3, 2 * 5 + 3)
    assert served["boxes"].shape == (2, 12, 4)
    assert served["scores"].shape == (2, 12, 3)
    for i in range(2):
        boxes, scores = decode_slowly(raw[i], [(8, 24), (16, 6)], stride=16)
        np.testing.assert_allclose(served["boxes"][i], boxes, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(served["scores"][i], scores, rtol=1e-5, atol=1e-6)


def test_decoding_holds_for_large_numbers_of_either_sign():
    raw = np.random.default_rng(1).normal(0, 3, (1, 2, 2, 13)).astype("float32")
    decoded = detectors.GridDecode([(8, 24), (16, 6)], 8)(raw)
    boxes, scores = decode_slowly(raw[0], [(8, 24), (16, 6)], stride=8)

    np.testing.assert_allclose(decoded["boxes"][0], boxes, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(decoded["scores"][0], scores, rtol=1e-4, atol=1e-6)


def test_the_views_share_their_weights():
    model = detectors.yolo(3, SIZE, ANCHORS, width=2)
    view = detectors.training_view(model)

    assert model.count_params() == view.count_params()
    assert all(a is b for a, b in zip(model.variables, view.variables, strict=True))


def test_a_cell_holds_the_books_45_numbers():
    assert detectors.training_view(detectors.yolo(20, width=1)).output_shape == (None, 26, 26, 45)


def test_the_layer_is_made_again_from_its_config():
    layer = detectors.GridDecode([(8.0, 24.0)], 16)
    again = keras.layers.deserialize(keras.layers.serialize(layer))

    assert (again.anchors_px, again.stride) == ([[8.0, 24.0]], 16)
