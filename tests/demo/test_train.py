"""The lesson must say the truth: what the detector is taught decodes to the boxes drawn."""

import keras
import numpy as np
import pytest

from cvbatch.demo import samples, train
from cvbatch.demo.render import render_scene
from cvbatch.models.decoding import GridDecode
from cvbatch.models.zoo import load_model

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not know NumPy 2's `copy`, and Keras passes it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
ANCHORS = np.array([(0.2, 0.2), (0.4, 0.4)], np.float32)


def test_no_boxes_teach_an_empty_grid():
    target = train.grid_target(np.zeros((1, 4, 4)), np.full((1, 4), -1), 5, ANCHORS, 3)

    assert target.shape == (1, 5, 5, 13)
    assert not target.any()


def test_a_network_that_answers_the_target_finds_the_boxes():
    scenes = [render_scene(seed) for seed in range(8)]
    made = samples.make_samples(scenes, [80], 16)
    target = train.grid_target(made.boxes, made.box_class_id, 5, ANCHORS, 5)
    raw = target.copy()
    numbers = raw[..., :10].reshape(8, 5, 5, 2, 5)  # a view
    numbers[..., 0:2] = np.log(numbers[..., 0:2] + 1e-9) - np.log1p(1e-9 - numbers[..., 0:2])
    numbers[..., 4] = np.where(numbers[..., 4] > 0, 20, -20)
    raw[..., 10:] *= 40
    decoded = GridDecode(ANCHORS, 16)(raw)
    boxes, scores = np.asarray(decoded["boxes"]), np.asarray(decoded["scores"])

    for i, scene in enumerate(scenes):
        height, width = scene.mask.shape
        row, class_id = np.nonzero(scores[i] > 0.5)
        got = boxes[i, row] * (np.array([width, height, width, height]) / 80)
        order, wanted = np.lexsort(got.T), np.lexsort(scene.boxes.T)
        np.testing.assert_allclose(got[order], scene.boxes[wanted], atol=1e-2)
        assert class_id[order].tolist() == scene.box_class_id[wanted].tolist()


def test_the_loss_of_the_right_answer_is_near_0_and_falls_towards_it():
    loss = train.grid_loss(2)
    boxes = np.array([[[0.13, 0.11, 0.36, 0.34]]], np.float32)
    target = train.grid_target(boxes, np.array([[2]]), 5, ANCHORS, 3)
    right = target.copy()
    numbers = right[..., :10].reshape(1, 5, 5, 2, 5)  # a view
    is_box = numbers[..., 4] > 0
    offset = numbers[is_box, 0:2]
    numbers[is_box, 0:2] = np.log(offset / (1 - offset))
    numbers[..., 4] = np.where(is_box, 20, -20)
    right[..., 10:] *= 40

    costs = [float(loss(target, part * right)) for part in (0, 0.5, 1)]
    assert costs[0] > costs[1] > costs[2]
    assert costs[2] < 1e-5


@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_boxes_turn_with_their_pixels(is_flipped, quarters):
    square = np.zeros((1, 10, 10), np.uint8)
    square[0, 2:5, 1:8] = 1
    boxes = np.array([[[0.1, 0.2, 0.8, 0.5]]], np.float32)
    ys, xs = np.nonzero(samples.turn(square, is_flipped, quarters)[0])
    turned = samples.turn_boxes(boxes, is_flipped, quarters)[0, 0] * 10

    np.testing.assert_allclose(turned, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1e-5)


def test_lessons_are_the_same_for_the_same_seed_and_differ_from_epoch_to_epoch():
    made = samples.make_samples([render_scene(seed) for seed in range(32)], [24], 16)
    one, other = (train.Batches(made, 24, lambda batch: batch.mask, 32, seed=3) for _ in range(2))
    first, again = one[0], other[0]
    one.on_epoch_end()

    assert len(one) == 1
    assert first[0].shape == (32, 24, 24, 3)
    for a, b, later in zip(first, again, one[0], strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, later)


@pytest.mark.parametrize(
    ("name", "bar"), [("classifier", 0.95), ("segmenter", 0.85), ("detector", 0.85)]
)
def test_the_shipped_networks_are_right_on_scenes_never_seen(name, bar):
    scenes = samples.render_scenes(train.UNSEEN_ARCHIVE + 1, 60)
    model: keras.Model = load_model(f"demo_{name}", "demo", local_file=lambda uri: uri)

    assert train.measure(name, model, scenes) >= bar
