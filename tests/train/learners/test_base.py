"""Laws of every learner on tiny networks: targets, losses, metrics, errors."""

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
from cvbatch.train.learners.base import LEARNERS
from cvbatch.train.learners.classification import ClassOptions
from cvbatch.train.learners.losses import ClassLoss
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
    """Return the input and the output of a backbone of stride 8."""
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


def with_auxiliary_heads(num_classes=3):
    return googlenet(num_classes, (65, 65), auxiliary=True, width=8)


# name → task, network, options
CASES = {
    "classification": ("classification", classifier, {}),
    "two classes of one unit": ("classification", lambda n: classifier(1, "sigmoid"), {}),
    "multi-label": ("classification", lambda n: classifier(n, "sigmoid"), {"multi_label": True}),
    "with auxiliary heads": ("classification", with_auxiliary_heads, {}),
    "nested": ("classification", lambda n: networks.nested_classifier(n, SIZE), {}),
    "logits": ("classification", lambda n: classifier(n, None), {}),
    "separate activation layer": ("classification", lambda n: lenet5_original(n, (32, 32)), {}),
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
    """Return images with a coloured rectangle each; the colour is the class, for all tasks."""
    rng = np.random.default_rng(seed)
    colours = np.array([(230, 30, 30), (30, 230, 30), (30, 30, 230)])
    examples = []
    for i in range(count):
        class_id = i % num_classes
        height, width = rng.integers(20, 33, 2)
        top, left = (
            int(rng.integers(0, n - m)) for n, m in zip(size, (height, width), strict=True)
        )
        xyxy = (left, top, left + int(width), top + int(height))
        mask = np.zeros(size, np.uint8)
        mask[xyxy[1] : xyxy[3], xyxy[0] : xyxy[2]] = class_id
        scene = example([(xyxy, class_id)], size, [class_id], mask, f"image {i}", i)
        pixels = (scene.pixels // 4 + 90).astype(np.uint8)
        pixels[xyxy[1] : xyxy[3], xyxy[0] : xyxy[2]] = colours[class_id]
        examples.append(replace(scene, pixels=pixels))
    return examples


def scenes_for(learner, seed=0):
    """Return scenes with the size and channels of the learner's network."""
    _, *size, channels = learner.model.input_shape
    examples = scenes(size=tuple(size), seed=seed, num_classes=learner.num_classes)
    return [replace(e, pixels=e.pixels[..., :channels]) for e in examples]


def stacked(examples):
    return np.stack([example.pixels for example in examples]).astype("float32")


def predict(model, pixels):
    """Return a model's outputs as NumPy arrays."""
    return keras.tree.map_structure(ops.convert_to_numpy, model(pixels, training=False))


def total(learner, outputs, targets):
    losses = learner.losses(outputs, targets)
    assert losses.keys() == learner.loss_weights.keys()
    return sum(ops.mean(losses[name]) * weight for name, weight in learner.loss_weights.items())


def train(learner, examples, steps, rate=0.01):
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
def test_the_training_model_is_the_network_before_its_activation(name):
    learner = learner_of(name)
    examples = scenes_for(learner)
    raw = learner.training_model(stacked(examples), training=False)
    outputs = learner.model(stacked(examples), training=False)
    assert {id(v) for v in learner.training_model.variables} == {
        id(v) for v in learner.model.variables
    }
    assert len(learner.training_model.variables) == len(learner.model.variables)
    if isinstance(outputs, dict) and "boxes" in outputs:
        decoder = learner.model.get_layer("decode")
        if name == "localization":
            decoded = decoder([raw["box"], ops.softmax(raw["classes"]), stacked(examples)])
        elif name == "windows":
            parts = [ops.softmax(raw["classes"]), ops.sigmoid(raw["objectness"]), raw["box"]]
            decoded = decoder(ops.concatenate(parts, axis=-1))
        else:
            decoded = decoder(raw["raw"])
        for key, values in outputs.items():
            np.testing.assert_allclose(values, decoded[key], rtol=1e-4, atol=1e-3)
        return
    for key, logits in raw.items():
        scores = outputs[key] if isinstance(outputs, dict) else outputs
        is_sigmoid = name == "multi-label" or logits.shape[-1] == 1
        activation = ops.sigmoid if is_sigmoid else ops.softmax
        expected = logits if name == "logits" else activation(logits)
        np.testing.assert_allclose(scores, expected, **NEAR_ONE)


@pytest.mark.parametrize("name", CASES)
def test_targets_and_losses_have_a_row_per_image(name):
    learner = learner_of(name)
    examples = scenes_for(learner)
    targets = learner.targets(examples)
    losses = learner.losses(learner.training_model(stacked(examples)), targets)
    assert {len(values) for values in targets.values()} == {4}
    assert losses.keys() == learner.loss_weights.keys()
    for values in losses.values():
        assert (values.shape, values.dtype) == ((4,), tf.float32)
        assert np.isfinite(values).all()
    shapes = {k: v.shape[1:] for k, v in targets.items()}
    assert {k: v.shape[1:] for k, v in learner.targets([]).items()} == shapes
    for row in range(4):
        for key, values in learner.targets(examples[row : row + 1]).items():
            np.testing.assert_array_equal(values[0], targets[key][row])


@pytest.mark.parametrize("name", CASES)
def test_metrics_of_parts_merge_to_those_of_all_images(name):
    learner = learner_of(name)
    examples = scenes_for(learner)
    outputs = predict(learner.model, stacked(examples))

    def rows(chosen):
        part = keras.tree.map_structure(lambda values: values[chosen], outputs)
        return learner.evaluate(part, examples[chosen])

    together = rows(slice(None))
    merged = learner.empty_metrics().merge(rows(slice(3, 4)), rows(slice(0, 0)), rows(slice(0, 3)))
    restored = type(together).from_state(json.loads(json.dumps(merged.to_state())))
    assert learner.metric in learner.summarize(together)
    for metrics in (merged, restored):
        assert learner.summarize(metrics) == learner.summarize(together)
    assert np.isnan(learner.summarize(learner.empty_metrics())[learner.metric])


def test_metrics_with_different_settings_do_not_merge():
    one, other = (
        LEARNERS["segmentation"].build(segmenter(n), n).empty_metrics() for n in (2, 3)
    )  # fmt: skip
    with pytest.raises(ValueError, match="num_classes"):
        one.merge(other)
    assert MetricSet.of().to_state() == {}


# --- training


@pytest.mark.parametrize(
    ("name", "steps", "minimum"),
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
def test_training_on_one_batch_fits_it(name, steps, minimum):
    """Training the training model trains the saved network, which decodes its outputs."""
    learner = learner_of(name)
    examples = scenes_for(learner)
    for layer in learner.model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # the statistics must converge in few steps
    first, last = train(learner, examples, steps)
    outputs = predict(learner.model, stacked(examples))
    assert last < first / 3
    assert learner.summarize(learner.evaluate(outputs, examples))[learner.metric] >= minimum


@pytest.mark.parametrize("name", ["segmentation", "grid", "windows"])
def test_another_image_size_trains_the_same_weights(name):
    learner = learner_of(name)
    larger = (96, 144)
    examples = resized_examples(scenes_for(learner), larger)
    network = graph_surgery.with_image_size(learner.training_model, larger)
    targets = learner.targets(examples)
    outputs = network(stacked(examples))
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
def test_gradients_in_half_precision_are_finite_and_not_0(name):
    task, build, options = CASES[name]
    half = with_precision(build(3), "mixed_float16")
    learner = LEARNERS[task].build(half, 3, **options)
    examples = scenes_for(learner)
    weights = learner.training_model.trainable_variables
    with tf.GradientTape() as tape:
        outputs = learner.training_model(stacked(examples), training=True)
        loss = total(learner, outputs, learner.targets(examples))
    assert loss.dtype == tf.float32
    assert {str(values.dtype) for values in keras.tree.flatten(outputs)} == {"<dtype: 'float16'>"}
    assert {str(weight.dtype) for weight in weights} == {"float32"}
    gradients = tape.gradient(loss, weights)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients[-2:])


@pytest.mark.parametrize("name", TASKS)
def test_a_frozen_last_layer_is_frozen_in_the_training_model(name):
    learner = learner_of(name)
    before = len(learner.training_model.trainable_variables)
    last = learner.training_model.layers[-1]
    last.trainable = False
    assert len(learner.training_model.trainable_variables) == before - 2
    assert len(learner.model.trainable_variables) == before - 2
    last.trainable = True
    assert len(learner.model.trainable_variables) == before


def test_the_training_model_keeps_regularization_of_the_last_layer():
    image, x = features()
    x = layers.GlobalAveragePooling2D()(x)
    dense = layers.Dense(3, activation="softmax", kernel_regularizer="l2")
    learner = LEARNERS["classification"].build(keras.Model(image, dense(x)), 3)
    (penalty,) = learner.training_model.losses
    assert float(penalty) == pytest.approx(0.01 * float(np.square(dense.kernel).sum()), rel=1e-5)


# --- losses


def test_auxiliary_heads_have_the_same_loss_and_a_smaller_weight():
    learner = learner_of("with auxiliary heads")
    examples = scenes_for(learner)
    assert learner.loss_weights == {
        "scores": 1.0,
        "auxiliary_1": AUXILIARY_LOSS_WEIGHT,
        "auxiliary_2": AUXILIARY_LOSS_WEIGHT,
    }
    outputs = predict(learner.model, stacked(examples))
    losses = learner.losses(learner.training_model(stacked(examples)), learner.targets(examples))
    for name, scores in outputs.items():
        expected = -np.log(scores[np.arange(4), [0, 1, 2, 0]])
        np.testing.assert_allclose(losses[name], expected, rtol=1e-4)


def test_the_localizer_loss_weights_class_and_box():
    learner = learner_of("localization")
    examples = scenes_for(learner)
    view = detectors.training_view(learner.model)(stacked(examples))
    loss = float(
        total(learner, learner.training_model(stacked(examples)), learner.targets(examples))
    )
    boxes = np.array([e.boxes_xyxy[0] for e in examples]) / [96, 64, 96, 64]
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


def test_ignored_and_void_pixels_are_excluded():
    options = ClassOptions(loss=ClassLoss(class_weights=(1, 3, 1)))
    learner = LEARNERS["segmentation"].build(segmenter(), 3, ignored=2, options=options)
    mask = np.zeros(SIZE, np.uint8)
    mask[:10], mask[10:20], mask[20:30] = 2, VOID_CLASS, 1
    examples = [replace(scenes(1)[0], mask=mask)]
    scores = predict(learner.model, stacked(examples))[0]
    loss = learner.losses(learner.training_model(stacked(examples)), learner.targets(examples))[
        "scores"
    ]
    cost = -np.log(np.take_along_axis(scores, mask[..., None].astype(int) % 3, axis=-1))[20:, :, 0]
    cost[:10] *= 3
    np.testing.assert_allclose(loss, [cost.mean()], rtol=1e-4)
    values = learner.summarize(learner.evaluate(scores[None], examples))
    assert values["accuracy"] == pytest.approx((scores.argmax(-1) == mask)[20:].mean())


@pytest.mark.parametrize("num_classes", [3, 150])  # an array of OpenCV has at most 128 channels
def test_a_coarse_segmenter_is_evaluated_at_the_input_size(num_classes):
    learner = LEARNERS["segmentation"].build(segmenter(num_classes, up=2), num_classes)
    examples = scenes()
    assert learner.targets(examples)["mask"].shape == (4, 16, 24)
    outputs = predict(learner.model, stacked(examples))
    enlarged = tf.image.resize(outputs, SIZE).numpy().argmax(-1)
    labels = np.stack([e.mask for e in examples])
    accuracy = learner.summarize(learner.evaluate(outputs, examples))["accuracy"]
    assert accuracy == pytest.approx((enlarged == labels).mean(), abs=1e-3)


# --- metrics


def test_accuracy_is_that_of_the_best_class():
    learner = learner_of("classification")
    outputs = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]], "f")
    values = learner.summarize(learner.evaluate(outputs, scenes()))  # classes 0, 1, 2, 0
    assert values["accuracy"] == 0.25
    assert values.keys() == {"accuracy", "macro_f1"}
    many = LEARNERS["classification"].build(classifier(300), 300)
    assert many.summarize(many.empty_metrics()).keys() == {"accuracy", "top_5"}


@pytest.mark.parametrize(("activation", "threshold"), [("sigmoid", 0.5), (None, 0.0)])
def test_one_unit_predicts_the_second_class_above_its_threshold(activation, threshold):
    learner = LEARNERS["classification"].build(classifier(1, activation), 2)
    examples = scenes(num_classes=2)  # classes 0, 1, 0, 1
    outputs = np.array(
        [[threshold - 0.1], [threshold + 0.1], [threshold + 0.1], [threshold + 0.2]], "f"
    )
    assert learner.summarize(learner.evaluate(outputs, examples))["accuracy"] == 0.75


@pytest.mark.parametrize("name", ["grid", "windows"])
def test_true_boxes_have_an_ap_of_1_and_others_of_0(name):
    learner = learner_of(name)
    examples = scenes()
    boxes = np.stack([e.boxes_xyxy for e in examples])
    scores = np.eye(3, dtype=np.float32)[[e.box_class for e in examples]]
    perfect = learner.evaluate({"boxes": boxes, "scores": scores}, examples)
    assert learner.summarize(perfect) == {"ap50": 1.0, "ap": 1.0, "ap75": 1.0}
    corner = [replace(e, boxes_xyxy=e.boxes_xyxy * [0, 0, 1, 1]) for e in examples]
    beyond = {"boxes": boxes * [0, 0, 1, 1] - np.float32([50, 50, 0, 0]), "scores": scores}
    assert learner.summarize(learner.evaluate(beyond, corner))["ap"] == 1.0  # clipped to the image
    moved = learner.evaluate({"boxes": boxes + 40, "scores": scores}, examples)
    assert learner.summarize(moved)["ap50"] == 0.0
    # Duplicates are suppressed; otherwise they would be false positives.
    twice = {"boxes": np.tile(boxes, (1, 2, 1)), "scores": np.tile(scores, (1, 2, 1))}
    assert learner.summarize(learner.evaluate(twice, examples))["ap50"] == 1.0


def test_an_image_without_objects_has_a_loss_and_no_metric():
    for name in ("grid", "windows"):
        learner = learner_of(name)
        empty = [replace(example(image_id="a"), pixels=scenes(1)[0].pixels)]
        losses = learner.losses(learner.training_model(stacked(empty)), learner.targets(empty))
        assert float(losses["objectness"][0]) + float(losses.get("no_object", [0])[0]) > 0
        outputs = {"boxes": np.zeros((1, 5, 4), "f"), "scores": np.zeros((1, 5, 3), "f")}
        assert np.isnan(learner.summarize(learner.evaluate(outputs, empty))["ap50"])


# --- errors

REFUSED = {
    "other number of classes": ("classification", classifier, 4, {}, "3 outputs for 4 classes"),
    "softmax for many": ("classification", classifier, 3, {"multi_label": True},
                         "require a sigmoid"),
    "sigmoids for one": (
        "classification", lambda: classifier(3, "sigmoid"), 3, {}, "require a softmax",
    ),
    "one unit for many": (
        "classification", lambda: classifier(1, "sigmoid"), 2, {"multi_label": True},
        "1 outputs for 2 classes",
    ),
    "maps for labels": ("classification", segmenter, 3, {}, "requires class scores"),
    "labels for maps": ("segmentation", classifier, 3, {}, "requires class scores per pixel"),
    "classes of a segmenter": ("segmentation", segmenter, 2, {}, "3 outputs for 2 classes"),
    "a classifier localizes": ("localization", classifier, 3, {}, "no layer BoxDecode"),
    "a grid localizes": ("localization", grid, 3, {}, "no layer BoxDecode"),
    "a localizer detects": ("detection", localizer, 3, {}, "use yolo or sliding_fcn"),
    "classes of a grid": ("detection", grid, 20, {}, "has 3 classes, but the data has 20"),
    "classes of a localizer": ("localization", localizer, 2, {}, "has 3 classes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_do_not_fit_are_refused(name):
    task, build, num_classes, options, words = REFUSED[name]
    with pytest.raises(ModelError, match=words):
        LEARNERS[task].build(build(), num_classes, **options)


def test_an_activation_inside_another_layer_is_refused():
    image, x = features()
    x = layers.Conv2DTranspose(3, 8, 8, padding="same", activation="softmax", name="odd")(x)
    with pytest.raises(ModelError, match=r"'odd' .*use a separate layer after it"):
        LEARNERS["segmentation"].build(keras.Model(image, x), 3)


@pytest.mark.parametrize("weights", [(1, 2), (1, 1, -1)])
@pytest.mark.parametrize(
    ("task", "build"), [("segmentation", segmenter), ("classification", classifier)]
)
def test_class_weights_need_one_per_class(task, build, weights):
    options = ClassOptions(loss=ClassLoss(class_weights=weights))
    with pytest.raises(ConfigError, match="one for each of 3 classes"):
        LEARNERS[task].build(build(), 3, options=options)


def test_an_image_without_a_box_is_named():
    learner = learner_of("localization")
    with pytest.raises(SourceError, match="'b' has 0 boxes"):
        learner.targets([scenes(1)[0], example(image_id="b")])
