"""What every learner promises, on tiny networks: its view is the network, targets are learnt."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from cvbatch.core.errors import ConfigError, ModelError, SourceError
from cvbatch.core.types import VOID_CLASS
from cvbatch.models import detectors, graph_surgery
from cvbatch.models.box_decoding import BoxDecode
from cvbatch.models.googlenet import AUXILIARY_LOSS_WEIGHT, googlenet
from cvbatch.models.lenet import lenet5_original
from cvbatch.models.precision import with_precision
from cvbatch.models.segmenters import encoder_decoder
from cvbatch.train.augmentation import resized_examples
from cvbatch.train.learners.base import LEARNERS, answers
from cvbatch.train.learners.metrics import MetricSet
from tests.support import networks
from tests.support.training_examples import SIZE, example

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not know NumPy 2's `copy`, and Keras passes it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
ANCHORS = ((0.3, 0.3), (0.6, 0.2))
NEAR_ONE = {"rtol": 1e-4, "atol": 1e-5}


def features(size=SIZE, filters=(8, 12, 16)):
    """A backbone of stride 8."""
    image = keras.Input((*size, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1)(image)
    for count in filters:
        x = layers.Conv2D(count, 3, 2, padding="same", activation="relu")(x)
    return image, x


def classifier(num_classes=3, activation="softmax", size=SIZE):
    image, x = features(size)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(num_classes, activation=activation, name="scores")(x))


def segmenter(num_classes=3, activation="softmax", up=8):
    image, x = features()
    x = layers.UpSampling2D(up)(x) if up > 1 else x
    return keras.Model(image, layers.Conv2D(num_classes, 1, activation=activation)(x))


def localizer(num_classes=3):
    image, x = features()
    x = layers.Flatten()(x)
    classes = layers.Dense(num_classes, activation="softmax", name="classes")(x)
    box = layers.Dense(4, name="box")(x)
    return keras.Model(image, BoxDecode(name="decode")([box, classes, image]), name="localizer")


def sliding(num_classes=3):
    image, x = features((32, 48))
    x = layers.Dense(24, activation="relu", name="hidden")(layers.Flatten(name="flatten")(x))
    heads = {
        "classes": layers.Dense(num_classes, activation="softmax", name="classes")(x),
        "objectness": layers.Dense(1, activation="sigmoid", name="objectness")(x),
        "box": layers.Dense(4, name="box")(x),
    }
    return detectors.to_sliding_fcn(keras.Model(image, heads, name="dense"), SIZE)


def grid(num_classes=3):
    return detectors.yolo(num_classes, SIZE, ANCHORS, width=4)


def helped(num_classes=3):
    return googlenet(num_classes, (65, 65), auxiliary=True, width=8)


# name → task, network, options
CASES = {
    "classification": ("classification", classifier, {}),
    "two classes of one unit": ("classification", lambda n: classifier(1, "sigmoid"), {}),
    "multi-label": ("classification", lambda n: classifier(n, "sigmoid"), {"multi_label": True}),
    "with auxiliary heads": ("classification", helped, {}),
    "nested": ("classification", lambda n: networks.nested_classifier(n, SIZE), {}),
    "logits": ("classification", lambda n: classifier(n, None), {}),
    "activation of its own": ("classification", lambda n: lenet5_original(n, (32, 32)), {}),
    "segmentation": ("segmentation", segmenter, {}),
    "encoder_decoder": ("segmentation", lambda n: encoder_decoder(n, SIZE, width=4), {}),
    "segmentation of one unit": ("segmentation", lambda n: segmenter(1, "sigmoid"), {}),
    "coarse segmentation": ("segmentation", lambda n: segmenter(n, up=2), {}),
    "localization": ("localization", localizer, {}),
    "windows": ("detection", sliding, {}),
    "grid": ("detection", grid, {}),
}
NUM_CLASSES = {"two classes of one unit": 2, "segmentation of one unit": 2}
TASKS = ["classification", "multi-label", "segmentation", "localization", "windows", "grid"]


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def learner_of(name):
    task, build, options = CASES[name]
    num_classes = NUM_CLASSES.get(name, 3)
    return LEARNERS[task].build(build(num_classes), num_classes, **options)


def scenes(count=4, size=SIZE, seed=0, num_classes=3):
    """A coloured rectangle on each image: its class is its colour, for all tasks at once."""
    rng = np.random.default_rng(seed)
    colours = np.array([(230, 30, 30), (30, 230, 30), (30, 30, 230)])
    found = []
    for i in range(count):
        class_id = i % num_classes
        height, width = rng.integers(20, 33, 2)
        top, left = (
            int(rng.integers(0, n - m)) for n, m in zip(size, (height, width), strict=True)
        )
        xyxy = (left, top, left + int(width), top + int(height))
        mask = np.zeros(size, np.uint8)
        mask[xyxy[1] : xyxy[3], xyxy[0] : xyxy[2]] = class_id
        one = example([(xyxy, class_id)], size, [class_id], mask, f"image {i}", i)
        pixels = (one.pixels // 4 + 90).astype(np.uint8)
        pixels[xyxy[1] : xyxy[3], xyxy[0] : xyxy[2]] = colours[class_id]
        found.append(replace(one, pixels=pixels))
    return found


def of(learner, seed=0):
    """Scenes of the size and the channels that the learner's network takes."""
    _, *size, channels = learner.model.input_shape
    given = scenes(size=tuple(size), seed=seed, num_classes=learner.num_classes)
    return [replace(one, pixels=one.pixels[..., :channels]) for one in given]


def stacked(examples):
    return np.stack([one.pixels for one in examples]).astype("float32")


def total(learner, outputs, targets):
    found = learner.losses(outputs, targets)
    assert found.keys() == learner.loss_weights.keys()
    return sum(ops.mean(found[name]) * weight for name, weight in learner.loss_weights.items())


def taught(learner, examples, steps, rate=0.01):
    """Train on one batch with plain Adam; return the first and the last loss."""
    pixels = tf.constant(stacked(examples))
    targets = {k: tf.constant(v) for k, v in learner.targets(examples).items()}
    optimizer = keras.optimizers.Adam(rate)
    weights = learner.training_model.trainable_variables
    optimizer.build(weights)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = total(learner, learner.training_model(pixels, training=True), targets)
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    curve = [float(step()) for _ in range(steps)]
    return curve[0], curve[-1]


@pytest.mark.parametrize("name", CASES)
def test_the_view_is_the_network_before_its_activation(name):
    learner = learner_of(name)
    given = of(learner)
    raw = learner.training_model(stacked(given), training=False)
    said = learner.model(stacked(given), training=False)
    assert {id(v) for v in learner.training_model.variables} == {id(v) for v in learner.model.variables}
    assert len(learner.training_model.variables) == len(learner.model.variables)
    if isinstance(said, dict) and "boxes" in said:
        decoder = learner.model.get_layer("decode")
        if name == "localization":
            again = decoder([raw["box"], ops.softmax(raw["classes"]), stacked(given)])
        elif name == "windows":
            parts = [ops.softmax(raw["classes"]), ops.sigmoid(raw["objectness"]), raw["box"]]
            again = decoder(ops.concatenate(parts, axis=-1))
        else:
            again = decoder(raw["raw"])
        for key, values in said.items():
            np.testing.assert_allclose(values, again[key], rtol=1e-4, atol=1e-3)
        return
    for key, logits in raw.items():
        scores = said[key] if isinstance(said, dict) else said
        is_sigmoid = name == "multi-label" or logits.shape[-1] == 1
        activation = ops.sigmoid if is_sigmoid else ops.softmax
        expected = logits if name == "logits" else activation(logits)
        np.testing.assert_allclose(scores, expected, **NEAR_ONE)


@pytest.mark.parametrize("name", CASES)
def test_targets_and_losses_have_a_row_for_each_image(name):
    learner = learner_of(name)
    given = of(learner)
    targets = learner.targets(given)
    losses = learner.losses(learner.training_model(stacked(given)), targets)
    assert {len(values) for values in targets.values()} == {4}
    assert losses.keys() == learner.loss_weights.keys()
    for values in losses.values():
        assert (values.shape, values.dtype) == ((4,), tf.float32)
        assert np.isfinite(values).all()
    shapes = {k: v.shape[1:] for k, v in targets.items()}
    assert {k: v.shape[1:] for k, v in learner.targets([]).items()} == shapes
    for row in range(4):
        for key, values in learner.targets(given[row : row + 1]).items():
            np.testing.assert_array_equal(values[0], targets[key][row])


@pytest.mark.parametrize("name", CASES)
def test_scores_of_parts_merge_to_those_of_the_whole(name):
    learner = learner_of(name)
    given = of(learner)
    said = answers(learner.model, stacked(given))

    def rows(chosen):
        part = keras.tree.map_structure(lambda values: values[chosen], said)
        return learner.evaluate(part, given[chosen])

    whole = rows(slice(None))
    merged = learner.empty_metrics().merge(rows(slice(3, 4)), rows(slice(0, 0)), rows(slice(0, 3)))
    again = type(whole).from_state(json.loads(json.dumps(merged.to_state())))
    assert learner.metric in learner.summarize(whole)
    for other in (merged, again):
        assert learner.summarize(other) == learner.summarize(whole)
    assert np.isnan(learner.summarize(learner.empty_metrics())[learner.metric])


def test_measures_of_different_settings_do_not_merge():
    one, other = (
        LEARNERS["segmentation"].build(segmenter(n), n).empty_metrics() for n in (2, 3)
    )  # fmt: skip
    with pytest.raises(ValueError, match="num_classes"):
        one.merge(other)
    assert MetricSet.of().to_state() == {}


# --- what is learnt -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "figure"),
    [
        ("classification", 80, 1.0),
        ("multi-label", 80, 1.0),
        ("two classes of one unit", 80, 1.0),
        ("segmentation", 120, 0.6),
        ("localization", 150, 0.8),
        ("windows", 300, 0.99),
        ("grid", 150, 0.99),
    ],
)
def test_a_batch_is_learnt_by_heart(name, steps, figure):
    """The saved network, which decodes by itself, is good after its view was trained."""
    learner = learner_of(name)
    given = of(learner)
    for layer in learner.model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # few steps: the statistics must follow
    first, last = taught(learner, given, steps)
    said = answers(learner.model, stacked(given))
    assert last < first / 3
    assert learner.summarize(learner.evaluate(said, given))[learner.metric] >= figure


@pytest.mark.parametrize("name", ["segmentation", "grid", "windows"])
def test_another_image_size_trains_the_same_weights(name):
    learner = learner_of(name)
    larger = (96, 144)
    given = resized_examples(of(learner), larger)
    network = graph_surgery.with_image_size(learner.training_model, larger)
    targets = learner.targets(given)
    outputs = network(stacked(given))
    assert float(total(learner, outputs, targets)) > 0
    assert {id(v) for v in network.variables} == {id(v) for v in learner.model.variables}
    shapes = {key: tuple(values.shape) for key, values in outputs.items()}
    if name == "segmentation":
        assert targets["mask"].shape == shapes["scores"][:3] == (4, *larger)
    elif name == "grid":
        assert targets["numbers"].shape[:3] == shapes["raw"][:3] == (4, 6, 9)
    else:
        assert targets["objectness"].shape == shapes["box"][:3] == (4, 9, 13)


@pytest.mark.parametrize("name", TASKS)
def test_half_precision_is_trained_through(name):
    task, build, options = CASES[name]
    half = with_precision(build(3), "mixed_float16")
    learner = LEARNERS[task].build(half, 3, **options)
    given = of(learner)
    weights = learner.training_model.trainable_variables
    with tf.GradientTape() as tape:
        outputs = learner.training_model(stacked(given), training=True)
        loss = total(learner, outputs, learner.targets(given))
    assert loss.dtype == tf.float32
    assert {str(values.dtype) for values in keras.tree.flatten(outputs)} == {"<dtype: 'float16'>"}
    assert {str(weight.dtype) for weight in weights} == {"float32"}
    gradients = tape.gradient(loss, weights)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients[-2:])


@pytest.mark.parametrize("name", TASKS)
def test_a_frozen_last_layer_is_frozen_in_the_view(name):
    learner = learner_of(name)
    before = len(learner.training_model.trainable_variables)
    last = learner.training_model.layers[-1]
    last.trainable = False
    assert len(learner.training_model.trainable_variables) == before - 2
    assert len(learner.model.trainable_variables) == before - 2
    last.trainable = True
    assert len(learner.model.trainable_variables) == before


def test_a_penalty_on_the_last_weights_is_still_there():
    image, x = features()
    x = layers.GlobalAveragePooling2D()(x)
    dense = layers.Dense(3, activation="softmax", kernel_regularizer="l2")
    learner = LEARNERS["classification"].build(keras.Model(image, dense(x)), 3)
    (penalty,) = learner.training_model.losses
    assert float(penalty) == pytest.approx(0.01 * float(np.square(dense.kernel).sum()), rel=1e-5)


# --- what the losses are ------------------------------------------------------------------------


def test_auxiliary_heads_learn_the_same_and_count_less():
    learner = learner_of("with auxiliary heads")
    given = of(learner)
    assert learner.loss_weights == {
        "scores": 1.0,
        "auxiliary_1": AUXILIARY_LOSS_WEIGHT,
        "auxiliary_2": AUXILIARY_LOSS_WEIGHT,
    }
    said = answers(learner.model, stacked(given))
    losses = learner.losses(learner.training_model(stacked(given)), learner.targets(given))
    for name, scores in said.items():
        expected = -np.log(scores[np.arange(4), [0, 1, 2, 0]])
        np.testing.assert_allclose(losses[name], expected, rtol=1e-4)


def test_the_localizers_loss_is_8_parts_class_2_parts_box():
    learner = learner_of("localization")
    given = of(learner)
    view = detectors.training_view(learner.model)(stacked(given))
    loss = float(total(learner, learner.training_model(stacked(given)), learner.targets(given)))
    boxes = np.array([one.boxes_xyxy[0] for one in given]) / [96, 64, 96, 64]
    wanted = np.stack(
        [
            boxes[:, [1, 3]].mean(axis=1),
            boxes[:, [0, 2]].mean(axis=1),
            np.sqrt(boxes[:, 3] - boxes[:, 1]),
            np.sqrt(boxes[:, 2] - boxes[:, 0]),
        ],
        axis=1,
    )
    classes = -np.log(np.asarray(view["classes"])[np.arange(4), [0, 1, 2, 0]]).mean()
    box = np.square(np.asarray(view["box"]) - wanted).mean()
    assert loss == pytest.approx(0.8 * classes + 0.2 * box, rel=1e-4)


def test_ignored_and_void_pixels_are_not_learnt_or_measured():
    learner = LEARNERS["segmentation"].build(segmenter(), 3, ignored=2, class_weights=[1, 3, 1])
    mask = np.zeros(SIZE, np.uint8)
    mask[:10], mask[10:20], mask[20:30] = 2, VOID_CLASS, 1
    given = [replace(scenes(1)[0], mask=mask)]
    scores = answers(learner.model, stacked(given))[0]
    loss = learner.losses(learner.training_model(stacked(given)), learner.targets(given))["scores"]
    cost = -np.log(np.take_along_axis(scores, mask[..., None].astype(int) % 3, axis=-1))[20:, :, 0]
    cost[:10] *= 3
    np.testing.assert_allclose(loss, [cost.mean()], rtol=1e-4)
    figures = learner.summarize(learner.evaluate(scores[None], given))
    assert figures["accuracy"] == pytest.approx((scores.argmax(-1) == mask)[20:].mean())


def test_a_coarse_segmenter_is_measured_at_the_masks_own_size():
    learner = learner_of("coarse segmentation")
    given = of(learner)
    assert learner.targets(given)["mask"].shape == (4, 16, 24)
    said = answers(learner.model, stacked(given))
    enlarged = tf.image.resize(said, SIZE).numpy().argmax(-1)
    truth = np.stack([one.mask for one in given])
    found = learner.summarize(learner.evaluate(said, given))["accuracy"]
    assert found == pytest.approx((enlarged == truth).mean(), abs=1e-3)


# --- how good answers are -----------------------------------------------------------------------


def test_accuracy_is_that_of_the_best_class():
    learner = learner_of("classification")
    said = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]], "f")
    figures = learner.summarize(learner.evaluate(said, scenes()))  # classes 0, 1, 2, 0
    assert figures["accuracy"] == 0.25
    assert figures.keys() == {"accuracy", "macro_f1"}
    many = LEARNERS["classification"].build(classifier(300), 300)
    assert many.summarize(many.empty_metrics()).keys() == {"accuracy", "top_5"}


@pytest.mark.parametrize(("name", "middle"), [("sigmoid", 0.5), (None, 0.0)])
def test_one_unit_says_the_second_class_above_its_middle(name, middle):
    learner = LEARNERS["classification"].build(classifier(1, name), 2)
    given = scenes(num_classes=2)  # classes 0, 1, 0, 1
    said = np.array([[middle - 0.1], [middle + 0.1], [middle + 0.1], [middle + 0.2]], "f")
    assert learner.summarize(learner.evaluate(said, given))["accuracy"] == 0.75


@pytest.mark.parametrize("name", ["grid", "windows"])
def test_the_true_boxes_are_perfect_and_others_are_not(name):
    learner = learner_of(name)
    given = scenes()
    boxes = np.stack([one.boxes_xyxy for one in given])
    scores = np.eye(3, dtype=np.float32)[[one.box_class for one in given]]
    perfect = learner.evaluate({"boxes": boxes, "scores": scores}, given)
    assert learner.summarize(perfect) == {"ap50": 1.0, "ap": 1.0, "ap75": 1.0}
    moved = learner.evaluate({"boxes": boxes + 40, "scores": scores}, given)
    assert learner.summarize(moved)["ap50"] == 0.0
    # The same box twice: one of them is suppressed, or it would count as wrong.
    twice = {"boxes": np.tile(boxes, (1, 2, 1)), "scores": np.tile(scores, (1, 2, 1))}
    assert learner.summarize(learner.evaluate(twice, given))["ap50"] == 1.0


def test_an_image_without_objects_is_learnt_and_measured():
    for name in ("grid", "windows"):
        learner = learner_of(name)
        empty = [replace(example(image_id="a"), pixels=scenes(1)[0].pixels)]
        found = learner.losses(learner.training_model(stacked(empty)), learner.targets(empty))
        assert float(found["objectness"][0]) + float(found.get("no_object", [0])[0]) > 0
        said = {"boxes": np.zeros((1, 5, 4), "f"), "scores": np.zeros((1, 5, 3), "f")}
        assert np.isnan(learner.summarize(learner.evaluate(said, empty))["ap50"])


# --- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "other number of classes": ("classification", classifier, 4, {}, "3 outputs for 4 classes"),
    "softmax for many": ("classification", classifier, 3, {"multi_label": True}, "want a sigmoid"),
    "sigmoids for one": (
        "classification", lambda: classifier(3, "sigmoid"), 3, {}, "want a softmax",
    ),
    "one unit for many": (
        "classification", lambda: classifier(1, "sigmoid"), 2, {"multi_label": True},
        "1 outputs for 2 classes",
    ),
    "maps for labels": ("classification", segmenter, 3, {}, "wants class scores"),
    "labels for maps": ("segmentation", classifier, 3, {}, "wants class scores per pixel"),
    "classes of a segmenter": ("segmentation", segmenter, 2, {}, "3 outputs for 2 classes"),
    "a classifier localizes": ("localization", classifier, 3, {}, "no layer BoxDecode"),
    "a grid localizes": ("localization", grid, 3, {}, "no layer BoxDecode"),
    "a localizer detects": ("detection", localizer, 3, {}, "take yolo or sliding_fcn"),
    "classes of a grid": ("detection", grid, 20, {}, "tells 3 classes apart, but the data has 20"),
    "classes of a localizer": ("localization", localizer, 2, {}, "tells 3 classes apart"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_do_not_fit_are_refused(name):
    task, build, num_classes, options, words = REFUSED[name]
    with pytest.raises(ModelError, match=words):
        LEARNERS[task].build(build(), num_classes, **options)


def test_an_activation_in_an_odd_layer_is_refused_with_a_remedy():
    image, x = features()
    x = layers.Conv2DTranspose(3, 8, 8, padding="same", activation="softmax", name="odd")(x)
    with pytest.raises(ModelError, match=r"'odd' .*put that in a layer behind it"):
        LEARNERS["segmentation"].build(keras.Model(image, x), 3)


@pytest.mark.parametrize("weights", [[1, 2], [1, 1, -1]])
def test_class_weights_are_one_for_each_class(weights):
    with pytest.raises(ConfigError, match="one for each of 3 classes"):
        LEARNERS["segmentation"].build(segmenter(), 3, class_weights=weights)


def test_a_localizer_says_which_image_has_no_box():
    learner = learner_of("localization")
    with pytest.raises(SourceError, match="'b' has 0 boxes"):
        learner.targets([scenes(1)[0], example(image_id="b")])
