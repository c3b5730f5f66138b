"""Every loss, compared with loops over plain numbers, for normal and extreme inputs."""

import math

import numpy as np
import pytest
import tensorflow as tf

from cvbatch.core.types import VOID_CLASS
from cvbatch.models.box_decoding import GridDecode
from cvbatch.train.learners import losses, targets
from tests.support.training_examples import BOXES, SIZE, example, random_boxes

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not know NumPy 2's `copy`, and Keras passes it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
ANCHORS = [(0.25, 0.5), (0.5, 0.125), (0.1, 0.1)]
STRIDE, GRID = 16, (4, 6)
WINDOW, WINDOW_STRIDE, WINDOWS = (32, 48), 8, (5, 7)
IGNORE_IOU = 0.4
DECODE = GridDecode(ANCHORS, STRIDE)
# One image per edge case and a few random ones; their losses are compared one by one.
IMAGES = list(BOXES.values()) + [random_boxes(np.random.default_rng(s), 5) for s in range(4)]
EXAMPLES = [example(boxes) for boxes in IMAGES]
WEIGHTS = np.array([1.0, 0.0, 2.5], np.float32)
UNWEIGHTED = losses.ClassLoss()
WEIGHTED = losses.ClassLoss(class_weights=tuple(WEIGHTS.tolist()))


# --- reference losses in plain Python


def cross_entropy(logits, class_id):
    peak = max(logits)
    return peak + math.log(sum(math.exp(x - peak) for x in logits)) - logits[class_id]


def softmax(logits):
    return [math.exp(-cross_entropy(logits, k)) for k in range(len(logits))]


def binary(logit, target):
    return max(logit, 0) + math.log1p(math.exp(-abs(logit))) - logit * target


def sigmoid(t):
    return 1 / (1 + math.exp(-t)) if t > -700 else 0.0


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if width * height > 0 else 0.0


def reference_pixels(logits, mask, weights):
    total, count = 0.0, 0
    for row, column in np.ndindex(mask.shape):
        if mask[row, column] != VOID_CLASS:
            class_id = int(mask[row, column])
            total += weights[class_id] * cross_entropy(logits[row, column].tolist(), class_id)
            count += 1
    return total / count if count else 0.0


def reference_dice(logits, mask):
    """One minus the overlap of scores and mask, of each class in the mask."""
    pixels = [at for at in np.ndindex(mask.shape) if mask[at] != VOID_CLASS]
    scores = {at: softmax(logits[at].tolist()) for at in pixels}
    terms = []
    for k in sorted({int(mask[at]) for at in pixels}):
        shared = sum(scores[at][k] for at in pixels if mask[at] == k)
        total = sum(scores[at][k] + (mask[at] == k) for at in pixels)
        terms.append(1 - 2 * shared / total)
    return sum(terms) / len(terms) if terms else 0.0


def reference_windows(outputs, wanted, weights=(1.0, 1.0, 1.0)):
    sums = {"objectness": 0.0, "classes": 0.0, "box": 0.0}
    for at in np.ndindex(WINDOWS):
        objectness = wanted["objectness"][at]
        if objectness >= 0:
            sums["objectness"] += binary(float(outputs["objectness"][at][0]), objectness)
        if objectness == 1:
            class_id = int(wanted["class_id"][at])
            value = cross_entropy(outputs["classes"][at].tolist(), class_id)
            sums["classes"] += weights[class_id] * value
            differences = outputs["box"][at].astype(float) - wanted["box"][at]
            sums["box"] += sum(float(d) ** 2 for d in differences) / 4
    return sums


def reference_grid(raw, wanted, boxes, weights=(1.0, 1.0, 1.0)):
    """`boxes`: all boxes of the image, also those without an area."""
    sums = {"coordinates": 0.0, "objectness": 0.0, "no_object": 0.0, "classes": 0.0}
    num_anchors = len(ANCHORS)
    for row, column in np.ndindex(GRID):
        cell = raw[row, column].astype(float).tolist()
        classes = cell[5 * num_anchors :]
        for class_id, share in enumerate(wanted["classes"][row, column].tolist()):
            if share:
                sums["classes"] += weights[class_id] * share * cross_entropy(classes, class_id)
        for a, (height, width) in enumerate(ANCHORS):
            ty, tx, th, tw, to = cell[5 * a : 5 * a + 5]
            oy, ox, lh, lw, has_box = wanted["numbers"][row, column, a].tolist()
            if has_box:
                sums["coordinates"] += (sigmoid(ty) - oy) ** 2 + (sigmoid(tx) - ox) ** 2
                sums["coordinates"] += (th - lh) ** 2 + (tw - lw) ** 2
                sums["objectness"] += binary(to, 1)
                continue
            y, x = (row + sigmoid(ty)) * STRIDE, (column + sigmoid(tx)) * STRIDE
            h = math.exp(min(th, 12)) * height * GRID[0] * STRIDE  # larger than any image
            w = math.exp(min(tw, 12)) * width * GRID[1] * STRIDE
            predicted = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            if max((iou(predicted, box) for box, _ in boxes), default=0.0) <= IGNORE_IOU:
                sums["no_object"] += binary(to, 0)
    return sums


# --- cases


def numbers(shape, scale, seed=0):
    """Return random numbers; at a large scale only −scale, 0 and scale."""
    rng = np.random.default_rng(seed)
    if scale > 100:
        return (rng.integers(-1, 2, shape) * scale).astype(np.float32)
    return rng.normal(0, scale, shape).astype(np.float32)


def segmentation(scale):
    rng = np.random.default_rng(1)
    mask = rng.choice(np.array([0, 1, 2, VOID_CLASS], np.uint8), (5, 4, 6))
    mask[1] = VOID_CLASS
    mask[2] = 1  # a class of weight 0
    logits = numbers((5, 4, 6, 3), scale)
    expected = {
        "pixels": [reference_pixels(logits[i], mask[i], WEIGHTS) for i in range(5)],
        "dice": [reference_dice(logits[i], mask[i]) for i in range(5)],
    }

    def loss(logits, mask):
        pixels = WEIGHTED.of_pixels(logits["maps"], mask["mask"])
        return {"pixels": pixels, "dice": losses.dice_loss(logits["maps"], mask["mask"])}

    return loss, {"maps": logits}, {"mask": mask}, expected


def windows(scale, class_loss=UNWEIGHTED, weights=(1.0, 1.0, 1.0)):
    wanted = targets.window_targets(EXAMPLES, WINDOWS, WINDOW, WINDOW_STRIDE, 3)
    shape = (len(EXAMPLES), *WINDOWS)
    outputs = {"classes": 3, "objectness": 1, "box": 4}
    outputs = {k: numbers((*shape, n), scale, n) for k, n in outputs.items()}
    reference = [
        reference_windows(
            *({k: v[i] for k, v in part.items()} for part in (outputs, wanted)), weights
        )
        for i in range(len(EXAMPLES))
    ]
    return (
        lambda outputs, wanted: losses.window_losses(outputs, wanted, class_loss),
        outputs,
        wanted,
        {k: [s[k] for s in reference] for k in reference[0]},
    )


def grid(scale, class_loss=UNWEIGHTED, weights=(1.0, 1.0, 1.0)):
    wanted = targets.grid_targets(EXAMPLES, GRID, STRIDE, np.array(ANCHORS), 3)
    raw = numbers((len(EXAMPLES), *GRID, 5 * len(ANCHORS) + 3), scale)
    reference = [
        reference_grid(raw[i], {k: v[i] for k, v in wanted.items()}, boxes, weights)
        for i, boxes in enumerate(IMAGES)
    ]

    def loss(outputs, wanted):
        return losses.grid_losses(outputs["raw"], wanted, DECODE, IGNORE_IOU, class_loss)

    return loss, {"raw": raw}, wanted, {k: [s[k] for s in reference] for k in reference[0]}


def labels(scale):
    logits, class_id = numbers((6, 4), scale), np.array([0, 1, 2, 3, 0, 1], np.int32)
    holds = np.random.default_rng(2).integers(0, 2, (6, 4)).astype(np.float32)
    holds[0] = 0
    expected = {
        "single": [cross_entropy(x.tolist(), c) for x, c in zip(logits, class_id, strict=True)],
        "many": [
            sum(binary(float(x), t) for x, t in zip(*row, strict=True)) / 4
            for row in zip(logits, holds, strict=True)
        ],
        "two": [
            binary(float(x[0]), float(c == 1)) for x, c in zip(logits, class_id % 2, strict=True)
        ],
    }

    def loss(outputs, wanted):
        x, c = outputs["x"], wanted["class_id"]
        return {
            "single": losses.class_cross_entropy(x, c),
            "many": losses.ClassLoss().of_labels(x, wanted["holds"]),
            "two": losses.class_cross_entropy(losses.as_two_classes(x[:, :1]), c % 2),
        }

    return loss, {"x": logits}, {"class_id": class_id, "holds": holds}, expected


def single_box(scale):
    examples = [e for e in EXAMPLES if len(e.boxes_xyxy) == 1]
    wanted = targets.single_boxes(examples, SIZE, 3)
    predicted = numbers((len(examples), 4), scale)
    expected = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(*row, strict=True)) / 4
        for row in zip(predicted, wanted["box"], strict=True)
    ]

    def loss(outputs, wanted):
        return {"box": losses.box_error(outputs["box"], wanted["box"])}

    return loss, {"box": predicted}, wanted, {"box": expected}


CASES = {
    "labels": labels,
    "segmentation": segmentation,
    "single_box": single_box,
    "windows": windows,
    "grid": grid,
    "weighted windows": lambda scale: windows(scale, WEIGHTED, WEIGHTS.tolist()),
    "weighted grid": lambda scale: grid(scale, WEIGHTED, WEIGHTS.tolist()),
}


@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 1e4])
@pytest.mark.parametrize("name", CASES)
def test_a_loss_equals_the_reference(name, scale):
    loss, outputs, wanted, expected = CASES[name](scale)
    actual = loss(*(
        {k: tf.constant(v) for k, v in part.items()} for part in (outputs, wanted)
    ))  # fmt: skip
    assert actual.keys() == expected.keys()
    for key, values in actual.items():
        assert values.dtype == tf.float32
        np.testing.assert_allclose(values, expected[key], rtol=2e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_finite(name, dtype, scale):
    loss, outputs, wanted, _ = CASES[name](scale)
    predicted = {k: tf.constant(v, dtype) for k, v in outputs.items()}
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        terms = loss(predicted, {k: tf.constant(v) for k, v in wanted.items()})
        total = sum(tf.reduce_sum(values) for values in terms.values())
    for values in terms.values():
        assert values.dtype == tf.float32
        assert np.isfinite(values).all()
    for gradient in tape.gradient(total, predicted).values():
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", CASES)
def test_the_loss_of_an_image_does_not_depend_on_the_batch(name):
    loss, outputs, wanted, _ = CASES[name](1.0)
    count = len(next(iter(outputs.values())))

    def losses_of(rows):
        terms = loss(
            *({k: tf.constant(v[rows]) for k, v in part.items()} for part in (outputs, wanted))
        )
        return {k: np.asarray(v) for k, v in terms.items()}

    together, order = losses_of(np.arange(count)), np.random.default_rng(0).permutation(count)
    permuted = losses_of(order)
    for key, values in together.items():
        np.testing.assert_allclose(permuted[key], values[order], rtol=1e-6, atol=1e-7)
    for row in range(count):
        for key, values in losses_of(np.array([row])).items():
            np.testing.assert_allclose(values, together[key][row : row + 1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_loss_is_the_same(name):
    loss, outputs, wanted, _ = CASES[name](1.0)
    inputs = [{k: tf.constant(v) for k, v in part.items()} for part in (outputs, wanted)]
    compiled = tf.function(loss, autograph=False)(*inputs)
    for key, values in loss(*inputs).items():
        np.testing.assert_allclose(compiled[key], values, rtol=1e-6, atol=1e-6)


def test_void_pixels_and_classes_of_weight_0_have_no_loss():
    loss, outputs, wanted, _ = segmentation(3.0)
    values = np.asarray(loss(outputs, wanted)["pixels"])
    assert values[1] == values[2] == 0
    assert (values[[0, 3, 4]] > 0).all()


def test_correct_predictions_have_no_loss():
    """Raw outputs that decode to the true boxes; sigmoids never reach 0 or 1 exactly."""
    examples = [example(BOXES[name]) for name in ("none", "one", "larger than the image")]
    wanted = targets.grid_targets(examples, GRID, STRIDE, np.array(ANCHORS), 3)
    offsets = np.clip(wanted["numbers"][..., :2], 1e-6, 1 - 1e-6)
    is_box = wanted["numbers"][..., 4:]
    raw = np.concatenate(
        [
            np.log(offsets / (1 - offsets)),
            wanted["numbers"][..., 2:4],
            np.where(is_box == 1, 30.0, -30.0),
        ],
        axis=-1,
    )
    raw = np.concatenate([raw.reshape(3, *GRID, -1), 30 * wanted["classes"]], axis=-1)
    for values in losses.grid_losses(raw.astype(np.float32), wanted, DECODE, 0.6).values():
        np.testing.assert_allclose(values, 0, atol=1e-5)


def test_an_anchor_without_a_box_may_predict_one_that_overlaps():
    """A neighbouring cell predicts the true box: above the IoU limit this has no loss."""
    boxes = [((8, 8, 56, 24), 0)]  # 48 wide, 16 high: its centre in the cell at row 1, column 2
    wanted = targets.grid_targets([example(boxes)], GRID, STRIDE, np.array(ANCHORS), 3)
    (at,) = np.argwhere(wanted["numbers"][0, ..., 4] == 1)
    assert at.tolist() == [1, 2, 0]
    raw = np.full((1, *GRID, 18), -30.0, np.float32)
    raw[0, 1, 1, :5] = -8, 8, 0, 0, 3  # centre at y 16, x 32, of the anchor's size: the true box
    values = {
        limit: float(losses.grid_losses(raw, wanted, DECODE, limit)["no_object"][0])
        for limit in (0.9, 0.9999)
    }
    assert values[0.9] < 1e-3
    assert values[0.9999] == pytest.approx(binary(3, 0), abs=0.01)


def test_label_losses_equal_keras():
    import keras

    loss, outputs, wanted, _ = labels(2.0)
    terms = loss(outputs, wanted)
    scores = keras.ops.softmax(outputs["x"])
    np.testing.assert_allclose(
        terms["single"],
        keras.losses.sparse_categorical_crossentropy(wanted["class_id"], scores),
        rtol=1e-4,
    )
    many = keras.losses.binary_crossentropy(wanted["holds"], keras.ops.sigmoid(outputs["x"]))
    np.testing.assert_allclose(terms["many"], many, rtol=1e-4)
