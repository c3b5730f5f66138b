"""No score gets a second activation: what is reported equals the Keras model's own output."""

from __future__ import annotations

import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ModelError
from tests.support import networks

pytestmark = pytest.mark.keras
SIZE = (16, 16)
CLASSES = 5


def config(task="classification", **fields):
    job = {"source": {"uri": "in"}, "sink": {"uri": "out"}}
    return parse_job({**job, "models": [{"task": task, "model": "a.keras", **fields}]}).models[0]


def features(image, seed=1, channels=6):
    """Feature map (B, 16, 16, channels) whose values differ from image to image."""
    from keras import initializers, layers

    kernel = initializers.RandomNormal(stddev=1.0, seed=seed)
    scaled = layers.Rescaling(1 / 255)(image)
    return layers.Conv2D(channels, 5, 2, "same", activation="relu", kernel_initializer=kernel)(
        scaled
    )


def dense(image, activation, units=CLASSES, seed=1):
    from keras import initializers, layers

    pooled = layers.GlobalAveragePooling2D()(features(image, seed))
    kernel = initializers.RandomNormal(stddev=1.0, seed=seed + 10)
    return layers.Dense(units, activation=activation, kernel_initializer=kernel)(pooled)


def maps(image, activation, units=3, seed=1):
    from keras import initializers, layers

    kernel = initializers.RandomNormal(stddev=2.0, seed=seed + 20)
    return layers.Conv2D(units, 1, activation=activation, kernel_initializer=kernel)(
        features(image, seed)
    )


def model_of(build):
    import keras

    image = keras.Input((*SIZE, 3))
    return keras.Model(image, build(image))


def nested(image):
    import keras

    inner = keras.Input((*SIZE, 3))
    return keras.Model(inner, dense(inner, "softmax"), name="inner")(image)


def sequential(image):
    import keras
    from keras import layers

    tail = keras.Sequential([layers.Dense(CLASSES), layers.Activation("softmax")])
    return tail(layers.Flatten()(features(image)))


def ensemble_of_models(image):
    import keras
    from keras import layers

    members = []
    for seed in range(3):
        inner = keras.Input((*SIZE, 3))
        members.append(keras.Model(inner, dense(inner, "softmax", seed=seed))(image))
    return layers.Average()(members)


def flip_averaged(image):
    import keras
    from keras import layers, ops

    inner = keras.Input((*SIZE, 3))
    network = keras.Model(inner, maps(inner, "softmax"))
    flipped = ops.flip(network(ops.flip(image, axis=2)), axis=2)
    return layers.Average()([network(image), flipped])


def weighted(image):
    from keras import layers

    heads = [dense(image, "softmax", seed=seed) for seed in (1, 2)]
    return layers.Add()([heads[0] * 0.25, heads[1] * 0.75])


def stacked(image):
    from keras import ops

    heads = [dense(image, "softmax", seed=seed) for seed in (1, 2, 3)]
    return ops.mean(ops.stack(heads, axis=1), axis=1)


def summed(image):
    from keras import ops

    heads = [dense(image, "softmax", seed=seed) for seed in (1, 2)]
    return ops.sum(ops.stack(heads, axis=0), axis=0) / 2


def kl():
    """Keras' layers, imported at first use."""
    from keras import layers

    return layers


def ko():
    """Keras' operations, imported at first use."""
    from keras import ops

    return ops


def permuted(image):
    column = kl().Reshape((CLASSES, 1))(dense(image, "softmax"))
    return kl().Flatten()(kl().Permute((2, 1))(column))


MULTI = {"multi_label": True}
PROBABILITIES = {
    "softmax in the dense layer": (lambda x: dense(x, "softmax"), {}),
    "Activation layer": (lambda x: kl().Activation("softmax")(dense(x, None)), {}),
    "Softmax layer": (lambda x: kl().Softmax()(dense(x, None)), {}),
    "ops.softmax": (lambda x: ko().softmax(dense(x, None)), {}),
    "ops.sigmoid": (lambda x: ko().sigmoid(dense(x, None)), MULTI),
    "exp of log_softmax": (lambda x: ko().exp(ko().log_softmax(dense(x, None))), {}),
    "linear Activation": (lambda x: kl().Activation("linear")(dense(x, "softmax")), {}),
    "dropout": (lambda x: kl().Dropout(0.5)(dense(x, "softmax")), {}),
    "cast": (lambda x: ko().cast(ko().cast(dense(x, "softmax"), "float64"), "float32"), {}),
    "nested model": (nested, {}),
    "Sequential in a functional model": (sequential, {}),
    "average of two heads": (
        lambda x: kl().Average()([dense(x, "softmax", seed=s) for s in (1, 2)]), {}),
    "average of three models": (ensemble_of_models, {}),
    "weighted average": (weighted, {}),
    "mean of a stack": (stacked, {}),
    "sum of a stack, halved": (summed, {}),
    "reshape": (lambda x: kl().Reshape((CLASSES,))(kl().Reshape((1, CLASSES))(dense(x, "softmax"))),
                {}),
    "flatten": (lambda x: kl().Flatten()(kl().Reshape((1, 1, CLASSES))(dense(x, "softmax"))), {}),
    "permute": (permuted, {}),
    "squeeze": (lambda x: ko().squeeze(ko().expand_dims(dense(x, "softmax"), 1), 1), {}),
    "slice": (lambda x: dense(x, "softmax")[:, 1:], {}),
    "concatenated sigmoids": (
        lambda x: kl().Concatenate()([dense(x, "sigmoid", 1, seed=s) for s in (1, 2, 3)]), MULTI),
    "concatenated softmaxes": (
        lambda x: kl().Concatenate()([dense(x, "softmax", 3, seed=s) for s in (1, 2)]), MULTI),
    "average of sigmoids": (
        lambda x: kl().Average()([dense(x, "sigmoid", seed=s) for s in (1, 2)]), MULTI),
    "product of sigmoids": (
        lambda x: kl().Multiply()([dense(x, "sigmoid", seed=s) for s in (1, 2)]), MULTI),
    "mask": (lambda x: dense(x, "sigmoid") * np.array([1, 0, 1, 1, 0], "float32"), MULTI),
    "maximum": (lambda x: kl().Maximum()([dense(x, "sigmoid", seed=s) for s in (1, 2)]), MULTI),
    "one minus sigmoid": (lambda x: 1 - dense(x, "sigmoid"), MULTI),
    "clip": (lambda x: ko().clip(dense(x, "softmax"), 1e-7, 1 - 1e-7), {}),
    "average pooling of maps": (lambda x: kl().GlobalAveragePooling2D()(maps(x, "softmax")), {}),
    "maximum of maps": (lambda x: kl().GlobalMaxPooling2D()(maps(x, "sigmoid")), MULTI),
    "one sigmoid": (lambda x: dense(x, "sigmoid", 1), {}),
    "average of one sigmoid": (
        lambda x: kl().Average()([dense(x, "sigmoid", 1, seed=s) for s in (1, 2)]), {}),
    "where": (lambda x: ko().where(dense(x, "sigmoid") > 0.5, dense(x, "sigmoid", seed=3), 0.0),
              MULTI),
}  # fmt: skip
MAPS = {
    "softmax": lambda x: maps(x, "softmax"),
    "softmax of float16": lambda x: ko().cast(
        ko().softmax(ko().cast(maps(x, None), "float16")), "float32"
    ),
    "flip test-time augmentation": flip_averaged,
    "crop": lambda x: kl().Cropping2D(2)(maps(x, "softmax")),
    "nearest resize": lambda x: kl().Resizing(16, 16, "nearest")(maps(x, "softmax")),
    "bilinear resize": lambda x: kl().Resizing(16, 16)(maps(x, "softmax")),
    "ops.image.resize": lambda x: ko().image.resize(maps(x, "softmax"), (16, 16)),
    "up-sampling": lambda x: kl().UpSampling2D(2)(maps(x, "softmax")),
    "bilinear up-sampling": lambda x: kl().UpSampling2D(2, interpolation="bilinear")(
        maps(x, "softmax")
    ),
    "average pooling": lambda x: kl().AveragePooling2D(3, 1, "same")(maps(x, "softmax")),
    "padding": lambda x: kl().ZeroPadding2D(1)(maps(x, "softmax")),
    "one sigmoid": lambda x: maps(x, "sigmoid", 1),
    "one sigmoid, enlarged": lambda x: kl().UpSampling2D(2)(maps(x, "sigmoid", 1)),
    "one sigmoid, averaged": lambda x: kl().Average()(
        [maps(x, "sigmoid", 1, seed=s) for s in (1, 2)]
    ),
}


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(3)
    colors = random.uniform(0, 255, (4, 1, 1, 3))
    return (0.5 * colors + 0.5 * networks.random_images(4, SIZE)).astype(np.uint8)


def serve(model, model_config, images):
    """Return decision and outputs of the serving graph, as the builder makes it."""
    import tensorflow as tf

    from cvbatch.inference.activation_check import decide
    from cvbatch.inference.graph import ServingGraph, resolve

    model_config, _ = resolve(model, model_config)
    decision = decide(model, model_config, images, checks_boxes=True)
    graph = ServingGraph(model, model_config, decision.activation)
    outputs = tf.function(graph, autograph=False)(tf.constant(images))
    return decision, {name: tensor.numpy() for name, tensor in outputs.items()}


def own_output(model, images):
    return np.asarray(model(images.astype("float32"), training=False), np.float32)


@pytest.mark.parametrize("form", PROBABILITIES)
def test_reported_scores_are_the_models_own(form, images):
    build, fields = PROBABILITIES[form]
    model = model_of(build)
    decision, results = serve(model, config(**fields), images)
    expected = own_output(model, images)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the images differ, so a mix-up would be seen
    if expected.shape[1] == 1:
        expected = np.concatenate([1 - expected, expected], axis=1)
    np.testing.assert_allclose(results["scores"], expected, atol=1e-5)
    assert decision.activation == "none"
    assert "probabilities" in decision.reason


@pytest.mark.parametrize("form", MAPS)
def test_maps_are_the_models_own(form, images):
    model = model_of(MAPS[form])
    expected = own_output(model, images)
    decision, results = serve(
        model, config("segmentation", tiles={}, image_size=list(SIZE)), images
    )
    assert decision.activation == "none"
    found = results["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.max() <= 1 + 1e-5
    if expected.shape[3] > 1 and form != "padding":
        np.testing.assert_allclose(found.sum(axis=3), 1, atol=2e-3)


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


LOGITS = {
    "dense": (lambda x: dense(x, None), {}, softmax),
    "average of logits": (
        lambda x: kl().Average()([dense(x, None, seed=s) for s in (1, 2)]), {}, softmax),
    "temperature": (lambda x: dense(x, None) / 2.0, {}, softmax),
    "log_softmax": (lambda x: ko().log_softmax(dense(x, None)), {}, softmax),
    "pooled maps": (lambda x: kl().GlobalAveragePooling2D()(maps(x, None)), {}, softmax),
    "gated": (lambda x: dense(x, None) * dense(x, "sigmoid", seed=2), {}, softmax),
    "residual": (lambda x: dense(x, None) + dense(x, "softmax", seed=2), {}, softmax),
    "hidden sigmoid": (lambda x: kl().Dense(4)(dense(x, "sigmoid")), {}, softmax),
    "multi-label": (lambda x: dense(x, None), MULTI, sigmoid),
    "one unit": (lambda x: dense(x, None, 1), {}, lambda x: np.hstack([sigmoid(-x), sigmoid(x)])),
    "explicit sigmoid": (lambda x: dense(x, None), {"activation": "sigmoid"}, sigmoid),
    "explicit softmax": (lambda x: dense(x, None), {"activation": "softmax"}, softmax),
    "relu": (lambda x: dense(x, "relu"), {}, softmax),
    "explicit none": (lambda x: ko().clip(dense(x, None), 0, 1), {"activation": "none"},
                      lambda x: x),
}  # fmt: skip


@pytest.mark.parametrize("form", LOGITS)
def test_logits_get_their_activation_once(form, images):
    build, fields, activation = LOGITS[form]
    model = model_of(build)
    _, results = serve(model, config(**fields), images)
    np.testing.assert_allclose(
        results["scores"], activation(own_output(model, images).astype(float)), atol=1e-5
    )


def normalized(image):
    powers = kl().Activation("softplus")(dense(image, None))
    return powers / ko().sum(powers, axis=-1, keepdims=True)


def stacked_by_a_layer(image):
    """An average of two heads, written as a dense layer with fixed weights."""
    heads = kl().Concatenate()([dense(image, "softmax", 3, seed=s) for s in (1, 2)])
    average = kl().Dense(3, use_bias=False)
    result = average(heads)
    average.set_weights([np.vstack([np.eye(3), np.eye(3)]).astype("float32") / 2])
    return result


REFUSED = {
    "softmax over the images": (lambda x: ko().softmax(dense(x, None), axis=0), {}, "rows sum"),
    "softmax halved": (lambda x: dense(x, "softmax") / 2.0, {}, "sum to 0.5"),
    "normalised by hand": (normalized, {}, "rows sum to 1"),
    "hard sigmoid": (
        lambda x: kl().Activation("hard_sigmoid")(dense(x, None)), MULTI, "truediv may return"),
    "clipped logits": (lambda x: ko().clip(dense(x, None), 0, 1), MULTI, "0 to 1"),
    "average by a dense layer": (stacked_by_a_layer, {}, "MatMul"),
    "logits that should be probabilities": (
        lambda x: dense(x, None), {"activation": "none"}, "activation: softmax"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_clear_is_refused_with_the_figures_and_the_key(form, images):
    build, fields, text = REFUSED[form]
    with pytest.raises(ModelError, match="activation: ") as caught:
        serve(model_of(build), config(**fields), images)
    assert text in str(caught.value)
    assert "a.keras" in str(caught.value)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_softmax_over_rows_of_a_map_is_refused(axis, images):
    model = model_of(lambda x: ko().softmax(maps(x, None), axis=axis))
    with pytest.raises(ModelError, match="not over the classes"):
        serve(model, config("segmentation"), images)


def detector(activation):
    def build(image):
        flat = kl().Flatten()(features(image))
        boxes = kl().Reshape((4, 4))(kl().Dense(16, activation="sigmoid")(flat))
        scores = kl().Reshape((4, 3))(kl().Dense(12, activation=activation)(flat))
        return {"boxes": boxes, "scores": scores}

    return model_of(build)


def test_logits_of_a_detector_need_the_key(images):
    with pytest.raises(ModelError, match="activation: sigmoid or softmax"):
        serve(detector(None), config("detection", box_format="rel_center_xywh"), images)
    model = detector(None)
    _, results = serve(
        model, config("detection", activation="sigmoid", box_format="rel_center_xywh"), images
    )
    own = model(images.astype("float32"))["scores"].numpy()
    np.testing.assert_allclose(results["scores"], sigmoid(own), atol=1e-5)
    decision, _ = serve(
        detector("sigmoid"), config("detection", box_format="rel_center_xywh"), images
    )
    assert decision.activation == "none"


def test_a_network_without_finite_scores_is_judged_by_its_graph(images):
    model = model_of(lambda x: kl().Softmax()(dense(x, None)))
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    decision, _ = serve(model, config(), images)
    assert decision.activation == "none"
    assert "not finite" in decision.reason


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_an_ensemble_has_heatmaps(score, images):
    model = model_of(ensemble_of_models)
    heatmap = {"score": score, "layer": "auto"}
    _, results = serve(model, config(heatmap=heatmap), images)
    assert np.isfinite(results["heatmaps"]).all()
    assert results["heatmaps"].max() == pytest.approx(1)


@pytest.mark.parametrize("form", ["average of two heads", "clip", "average of one sigmoid", "mask"])
def test_training_recognises_the_same_probabilities(form, images):
    from cvbatch.models.graph_surgery import flatten
    from cvbatch.train.learners.logits import logits_of

    build, fields = PROBABILITIES[form]
    model = flatten(model_of(build))
    head = logits_of(model, model.output)
    is_independent = bool(fields) or model.output.shape[1] == 1
    assert head.activation == ("sigmoid" if is_independent else "softmax")
    import keras

    logits = keras.Model(model.input, head.tensor)(images.astype("float32")).numpy()
    activation = sigmoid if is_independent else softmax
    np.testing.assert_allclose(activation(logits), own_output(model, images), atol=1e-5)


def test_training_takes_other_outputs_as_logits():
    from cvbatch.train.learners.logits import logits_of

    model = model_of(lambda x: dense(x, None) / 2.0)
    head = logits_of(model, model.output)
    assert (head.tensor is model.output, head.activation) == (True, "")
