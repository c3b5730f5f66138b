"""Targets are the inverse of decoding: raw outputs made of them decode to the true boxes."""

import subprocess
import sys

import numpy as np
import pytest

from cvbatch.core.errors import SourceError
from cvbatch.core.types import VOID_CLASS
from cvbatch.train.learners import targets
from tests.support.training_examples import BOXES, SIZE, example, random_boxes

ANCHORS = np.array([(0.25, 0.5), (0.5, 0.125), (0.1, 0.1)])
STRIDE, GRID = 16, (4, 6)
WINDOW, WINDOW_STRIDE, WINDOWS = (32, 48), 8, (5, 7)
CONFIDENT = 20.0  # a logit
RANDOM = {f"random {seed}": random_boxes(np.random.default_rng(seed), 6) for seed in range(4)}


def of_grid(*examples, max_boxes=100):
    return targets.grid_targets(examples, GRID, STRIDE, ANCHORS, 3, max_boxes)


def of_windows(*examples):
    return targets.window_targets(examples, WINDOWS, WINDOW, WINDOW_STRIDE, 3)


def logit(share):
    share = np.clip(share.astype(float), 1e-9, 1 - 1e-9)
    return np.log(share / (1 - share))


def center_of(xyxy):
    return np.array([(xyxy[1] + xyxy[3]) / 2, (xyxy[0] + xyxy[2]) / 2])


def with_area(boxes):
    return [(box, c) for box, c in boxes if box[2] > box[0] and box[3] > box[1]]


def test_no_images():
    assert targets.single_labels([], 3).shape == (0,)
    assert targets.multi_hot_labels([], 3).shape == (0, 3)
    assert targets.masks([], (4, 5), 3).shape == (0, 4, 5)
    assert {k: v.shape for k, v in targets.single_boxes([], SIZE, 3).items()} == {
        "class_id": (0,),
        "box": (0, 4),
    }
    assert {len(values) for values in (of_grid() | of_windows()).values()} == {0}


def test_labels_are_indices_or_multi_hot():
    assert targets.single_labels([example(labels=[2]), example(labels=[0])], 3).tolist() == [2, 0]
    many = targets.multi_hot_labels([example(labels=[2, 0]), example()], 3)
    assert many.tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("labels", [[], [0, 1]])
def test_exclusive_classes_need_one_label(labels):
    with pytest.raises(SourceError, match=rf"'cat.jpg' has {len(labels)} labels"):
        targets.single_labels([example(labels=labels, image_id="cat.jpg")], 3)


@pytest.mark.parametrize("class_id", [-1, 3, 254])
def test_unknown_classes_are_refused(class_id):
    boxes = [((10, 10, 30, 30), class_id)]
    valid = [example(labels=[0], boxes=[((10, 10, 30, 30), 0)])]
    mask = np.full(SIZE, class_id % 256, np.uint8)
    for invalid, make in (
        (example(labels=[class_id]), lambda given: targets.single_labels(given, 3)),
        (example(labels=[class_id]), lambda given: targets.multi_hot_labels(given, 3)),
        (example(boxes), lambda given: targets.single_boxes(given, SIZE, 3)),
        (example(boxes), lambda given: of_grid(*given)),
        (example(boxes), lambda given: of_windows(*given)),
    ):
        with pytest.raises(SourceError, match=rf"image 1 of the batch has class id {class_id}"):
            make([*valid, invalid])
    if class_id >= 0:
        with pytest.raises(SourceError, match=f"class id {class_id}, but the network has 3"):
            targets.masks([example(mask=mask)], SIZE, 3)


def test_unknown_and_ignored_pixels_are_void():
    mask = np.array([[0, 1, 2], [VOID_CLASS, 1, 0]], np.uint8)
    given = [example(size=(2, 3), mask=mask)]
    assert targets.masks(given, (2, 3), 3)[0].tolist() == mask.tolist()
    assert targets.masks(given, (2, 3), 3, ignored=1)[0].tolist() == [[0, 255, 2], [255, 255, 0]]
    assert targets.masks(given, (2, 3), 2, ignored=2)[0, 0].tolist() == [0, 1, 255]
    enlarged = np.kron(mask, np.ones((4, 4), np.uint8))
    np.testing.assert_array_equal(
        targets.masks([example(mask=enlarged, size=(8, 12))], (2, 3), 3)[0], mask
    )
    with pytest.raises(SourceError, match="has no mask"):
        targets.masks([*given, example()], (2, 3), 3)


@pytest.mark.parametrize("boxes", [[], BOXES["twice the same"]])
def test_a_localizer_needs_one_box(boxes):
    with pytest.raises(SourceError, match=rf"has {len(boxes)} boxes, but a localizer requires one"):
        targets.single_boxes([example(boxes)], SIZE, 3)


@pytest.mark.parametrize("name", ["one", "larger than the image", "a centre outside", "of no area"])
def test_localizer_targets_follow_their_formula(name):
    ((left, top, right, bottom), class_id) = BOXES[name][0]
    arrays = targets.single_boxes([example(BOXES[name][:1])], SIZE, 3)
    assert arrays["class_id"].tolist() == [class_id]
    expected = [
        (top + bottom) / 2 / 64,
        (left + right) / 2 / 96,
        ((bottom - top) / 64) ** 0.5,
        ((right - left) / 96) ** 0.5,
    ]
    np.testing.assert_allclose(arrays["box"], [expected], rtol=1e-6)


@pytest.mark.parametrize("name", [*BOXES, *RANDOM])
def test_a_box_is_in_the_cell_of_its_centre_and_its_best_anchor(name):
    """The reference is a loop over cells and anchors."""
    boxes = with_area((BOXES | RANDOM)[name])
    arrays = of_grid(example((BOXES | RANDOM)[name]))
    counts = np.zeros(GRID, int)
    for xyxy, _ in boxes:
        cell = np.clip(center_of(xyxy) // STRIDE, 0, np.array(GRID) - 1).astype(int)
        counts[tuple(cell)] += 1
    has_box = arrays["numbers"][0, ..., 4]
    np.testing.assert_array_equal(has_box.sum(-1), np.minimum(counts, len(ANCHORS)))
    assert set(np.unique(has_box)) <= {0, 1}
    assert 0 <= arrays["numbers"][..., :2].min() <= arrays["numbers"][..., :2].max() <= 1
    np.testing.assert_array_equal(arrays["numbers"][0][has_box == 0], 0)
    np.testing.assert_array_equal(arrays["classes"][0].sum(-1) > 0, counts > 0)
    for row, column in np.argwhere(counts == 1):
        ((box, class_id),) = (
            (b, c)
            for b, c in boxes
            if (np.clip(center_of(b) // STRIDE, 0, np.array(GRID) - 1) == (row, column)).all()
        )
        height, width = (box[3] - box[1]) / 64, (box[2] - box[0]) / 96
        ious = []
        for anchor_height, anchor_width in ANCHORS:
            shared = min(height, anchor_height) * min(width, anchor_width)
            ious.append(shared / (height * width + anchor_height * anchor_width - shared))
        assert has_box[row, column].argmax() == np.argmax(ious)
        assert arrays["classes"][0, row, column].tolist() == np.eye(3)[class_id].tolist()


def test_boxes_with_the_same_anchor_share_the_cell():
    arrays = of_grid(example(BOXES["two in one cell, alike"]))["numbers"][0, 1, 1]
    assert arrays[:, 4].sum() == 2
    # Both match the first anchor, (16, 48) pixels, best; the better match gets it.
    near, far = ((6, 16, 54, 32), 0), ((10, 16, 50, 32), 1)
    numbers = of_grid(example([far, near]))["numbers"][0, 1, 1]
    assert numbers[:, 4].tolist() == [1, 1, 0]
    np.testing.assert_allclose(numbers[0, 2:4], 0, atol=1e-6)
    mixed = of_grid(example(BOXES["two in one cell, of two classes"]))["classes"][0, 1, 1]
    assert mixed.tolist() == [0.5, 0, 0.5]
    crowded = of_grid(example(BOXES["more in a cell than anchors"]))
    assert crowded["numbers"][0, 1, 1, :, 4].tolist() == [1, 1, 1]


def test_targets_do_not_import_tensorflow():
    names = (
        "cvbatch.train.learners.targets, cvbatch.train.augmentation, cvbatch.train.learners.metrics"
    )
    code = f"import sys, {names}; print(*({{'tensorflow', 'keras', 'ray'}} & set(sys.modules)))"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == []


@pytest.mark.parametrize("name", BOXES)
def test_targets_do_not_depend_on_the_order_of_boxes(name):
    forward, reverse = of_grid(example(BOXES[name])), of_grid(example(BOXES[name][::-1]))
    for key, values in forward.items():
        np.testing.assert_array_equal(values, reverse[key])
    forward, reverse = of_windows(example(BOXES[name])), of_windows(example(BOXES[name][::-1]))
    for key, values in forward.items():
        np.testing.assert_array_equal(values, reverse[key])


def test_targets_of_an_image_do_not_depend_on_the_batch():
    examples = [example(boxes) for boxes in BOXES.values()]
    for make in (of_grid, of_windows):
        together = make(*examples)
        for row, single in enumerate(examples):
            for key, values in make(single).items():
                np.testing.assert_array_equal(values[0], together[key][row])


def test_only_the_largest_boxes_are_listed():
    boxes = BOXES["many"]
    listed = of_grid(example(boxes))["boxes"][0]
    area = (listed[:, 2] - listed[:, 0]) * (listed[:, 3] - listed[:, 1])
    assert (np.diff(area) <= 0).all()
    assert sorted(map(tuple, listed[: len(boxes)].tolist())) == sorted(b for b, _ in boxes)
    assert not listed[len(boxes) :].any()
    few = of_grid(example(boxes), max_boxes=4)["boxes"][0]
    np.testing.assert_array_equal(few, listed[:4])


@pytest.mark.parametrize("name", [*BOXES, *RANDOM])
def test_an_object_is_in_the_window_with_the_nearest_centre(name):
    """The reference is a search over all windows, along each axis."""
    boxes = with_area((BOXES | RANDOM)[name])
    objectness = of_windows(example((BOXES | RANDOM)[name]))["objectness"][0]
    expected = np.zeros(WINDOWS)
    for xyxy, _ in boxes:
        distance = np.abs(_window_centers() - center_of(xyxy))  # (5, 7, 2)
        near = (distance < WINDOW_STRIDE).all(-1)
        expected[near & (expected == 0)] = -1
    for xyxy, _ in boxes:
        distance = np.abs(_window_centers() - center_of(xyxy))
        best = np.argwhere((distance == distance.min(axis=(0, 1))).all(-1))
        assert any(objectness[tuple(at)] == 1 for at in best)  # two windows may be equally near
        at = max(best.tolist(), key=lambda position: objectness[tuple(position)])
        expected[tuple(at)] = 1
    np.testing.assert_array_equal(objectness, expected)


def _window_centers():
    rows, columns = np.mgrid[: WINDOWS[0], : WINDOWS[1]] * WINDOW_STRIDE
    return np.stack([rows + WINDOW[0] / 2, columns + WINDOW[1] / 2], axis=-1)


def test_of_two_objects_in_a_window_the_nearer_is_the_target():
    middle = (24 + 8, 16 + 8)  # x, y of the window at row 1, column 1
    boxes = [((*middle, middle[0] + 4, middle[1] + 4), 0), ((28, 20, 36, 28), 2)]
    arrays = of_windows(example(boxes))
    assert arrays["objectness"][0, 1, 1] == 1
    assert arrays["class_id"][0, 1, 1] == 2
    np.testing.assert_allclose(arrays["box"][0, 1, 1], [0.5, 0.5, 0.5, (1 / 6) ** 0.5], rtol=1e-6)


@pytest.mark.parametrize("name", [*BOXES, *RANDOM])
@pytest.mark.keras
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_grid_targets_decode_to_the_true_boxes(name):
    from cvbatch.models.box_decoding import GridDecode

    boxes = with_area((BOXES | RANDOM)[name])
    arrays = of_grid(example((BOXES | RANDOM)[name]))
    numbers, classes = arrays["numbers"], arrays["classes"]
    is_box = numbers[..., 4:5] == 1
    raw = np.concatenate(
        [logit(numbers[..., :2]), numbers[..., 2:4], np.where(is_box, CONFIDENT, -CONFIDENT)],
        axis=-1,
    ).reshape(1, *GRID, -1)
    raw = np.concatenate([raw, np.log(classes + 1e-9)], axis=-1).astype(np.float32)
    decoded = {k: np.asarray(v[0]) for k, v in GridDecode(ANCHORS, STRIDE)(raw).items()}

    is_predicted = decoded["scores"].sum(axis=1) > 0.5
    assert is_predicted.sum() == numbers[..., 4].sum()
    true_boxes = []
    for xyxy, class_id in boxes:
        center = np.clip(center_of(xyxy), 0, SIZE)  # a centre outside is moved to the edge
        half = np.array([xyxy[3] - xyxy[1], xyxy[2] - xyxy[0]]) / 2
        true_boxes.append((np.concatenate([center - half, center + half])[[1, 0, 3, 2]], class_id))
    is_of_one_class = np.repeat(classes.max(axis=-1).reshape(-1) == 1, len(ANCHORS))
    for row in np.flatnonzero(is_predicted):
        box, scores = decoded["boxes"][row], decoded["scores"][row]
        likely = [scores[c] for xyxy, c in true_boxes if np.allclose(box, xyxy, atol=1e-3)]
        assert max(likely) > (0.999 if is_of_one_class[row] else 0.3)
    for xyxy, _ in true_boxes if len(true_boxes) == is_predicted.sum() else []:
        assert np.isclose(decoded["boxes"][is_predicted], xyxy, atol=1e-3).all(axis=1).any()


@pytest.mark.parametrize("name", [*BOXES, *RANDOM])
@pytest.mark.keras
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_window_targets_decode_to_the_true_boxes(name):
    from cvbatch.models.box_decoding import WindowDecode

    boxes = with_area((BOXES | RANDOM)[name])
    arrays = of_windows(example((BOXES | RANDOM)[name]))
    is_object = arrays["objectness"] == 1
    parts = [np.eye(3)[arrays["class_id"]], is_object[..., None], arrays["box"]]
    raw = np.concatenate(parts, axis=-1).astype(np.float32)
    decoded = {k: np.asarray(v[0]) for k, v in WindowDecode(WINDOW, WINDOW_STRIDE)(raw).items()}

    predicted = {tuple(np.round(box, 2)) for box in decoded["boxes"][is_object.reshape(-1)]}
    true_boxes = {tuple(np.round(np.float32(xyxy), 2)) for xyxy, _ in boxes}
    assert len(predicted) == is_object.sum()
    for box, scores in zip(decoded["boxes"], decoded["scores"], strict=True):
        if scores.max() == 1:
            near = [c for xyxy, c in boxes if np.allclose(box, xyxy, atol=1e-3)]
            assert scores.argmax() in near
    if len(true_boxes) == is_object.sum():  # no window has two objects
        np.testing.assert_allclose(sorted(predicted), sorted(true_boxes), atol=0.02)


@pytest.mark.parametrize("name", ["one", "larger than the image", "a centre outside"])
@pytest.mark.keras
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_localizer_targets_decode_to_the_true_box(name):
    from cvbatch.models.box_decoding import BoxDecode

    ((xyxy, class_id),) = BOXES[name]
    arrays = targets.single_boxes([example(BOXES[name])], SIZE, 3)
    scores = np.eye(3, dtype=np.float32)[arrays["class_id"]]
    decoded = BoxDecode()([arrays["box"], scores, np.zeros((1, *SIZE, 3), np.float32)])
    np.testing.assert_allclose(decoded["boxes"], [[xyxy]], atol=1e-3)
    assert np.asarray(decoded["scores"])[0, 0].argmax() == class_id
