"""Heatmaps of a region's and of a box's score are those of a tape over the textbook's sum."""

import numpy as np
import pytest

from tests.support import networks

pytestmark = pytest.mark.keras


def textbook(model, features, image, score_of):
    """Return Grad-CAM's map where `score_of(outputs)` is the number that is explained."""
    import keras
    import tensorflow as tf

    from tests.support.reference_arrays import grad_cam

    both = keras.Model(model.inputs, [features, model.output])
    with tf.GradientTape() as tape:
        seen, said = both([image[None].astype("float32")], training=False)
        score = score_of(said)
    gradient = tape.gradient(score, seen)
    return grad_cam(seen[0].numpy(), gradient[0].numpy())


def located(model, images, task, sizes=None, **asked):
    """Return what the explanation's own way says, with one class table."""
    from cvbatch.config.explain import parse_explanation
    from cvbatch.core.types import ImageBatch, InputKey
    from cvbatch.explain.introspection import Network
    from cvbatch.explain.spec import NetworkFacts

    classes = asked.pop("names")
    job = parse_explanation(
        {
            "model": {"task": task, "model": "a.keras"},
            "source": {"uri": "x"},
            "sink": {"uri": "y"},
            "gradcam": asked,
            "run": {"batch_size": 4},
        }
    )
    size = model.input_shape[1:3]
    count = len(images)
    height, width = sizes or size
    batch = ImageBatch(
        "c", [str(i) for i in range(count)], [""] * count, np.full(count, width, np.int32),
        np.full(count, height, np.int32), {}, {InputKey(*size, "stretch"): images},
    )  # fmt: skip
    network = Network(model, job, NetworkFacts(classes, size, {}, {}))
    network.check()
    return [found.gradcam for found in network.explain(batch)]


def feature_of(model, path):
    layer = model
    for name in path.split("/"):
        layer = layer.get_layer(name)
    return layer.output


NAMES = ("sky", "sea", "sand")


def softmax_logits(model):
    """Return the segmenter with its softmax taken off: the logits are what is summed."""
    import keras

    last = model.layers[-1]
    bare = keras.layers.Conv2D.from_config({**last.get_config(), "activation": None})
    logits = bare(model.layers[-2].output)
    bare.set_weights(last.get_weights())
    return keras.Model(model.inputs, logits)


@pytest.mark.parametrize("box", [None, [0.25, 0.125, 0.75, 0.5]])
def test_a_segmenters_region(box):
    import tensorflow as tf

    model = networks.segmenter()
    images = networks.random_images(3, (32, 24))
    asked = {} if box is None else {"box": box}
    answers = located(model, images, "segmentation", names=NAMES, classes=["sea", "sand"], **asked)
    bare = softmax_logits(model)
    features = bare.layers[-2].output
    for image, found in zip(images, answers, strict=True):
        assert [one.label for one in found] == ["sea", "sand"]
        for one in found:

            def score_of(logits, class_id=one.class_id):
                if box is None:
                    region = tf.cast(tf.argmax(logits, -1) == class_id, tf.float32)
                else:  # of 24 × 32 pixels, x 6..18, y 4..16
                    region = np.zeros((1, 32, 24), np.float32)
                    region[:, 4:16, 6:18] = 1
                return tf.reduce_sum(logits[..., class_id] * region)

            score = float(score_of(bare(image[None].astype("float32"))))
            np.testing.assert_allclose(one.score, score, rtol=1e-3, atol=1e-3)
            wanted = textbook(bare, features, image, score_of)
            np.testing.assert_allclose(one.values, wanted, atol=1e-4)


def test_the_classes_of_most_pixels_are_shown_where_none_are_named():
    model = networks.segmenter()
    images = networks.random_images(2, (32, 24))
    answers = located(model, images, "segmentation", names=NAMES, top_k=3)
    predicted = np.asarray(model(images.astype("float32"))).argmax(-1)
    for found, classes in zip(answers, predicted, strict=True):
        areas = [int((classes == one.class_id).sum()) for one in found]
        assert areas == sorted(areas, reverse=True)
        assert sum(areas) == 32 * 24


def test_a_detectors_best_box():
    import tensorflow as tf

    model = networks.detector()
    images = networks.random_images(2, (32, 32))
    answers = located(model, images, "detection", names=("cup", "hat"), classes=["hat"],
                      sizes=(64, 128))  # fmt: skip
    said = model(images.astype("float32"))
    for row, (image, (one,)) in enumerate(zip(images, answers, strict=True)):
        scores, boxes = np.asarray(said["scores"])[row], np.asarray(said["boxes"])[row]
        best = scores[:, 1].argmax()
        assert one.label == "hat"
        np.testing.assert_allclose(one.score, scores[best, 1], rtol=1e-5)
        np.testing.assert_allclose(one.box_in_input, boxes[best], rtol=1e-5)
        wanted_box = np.clip(boxes[best] * [4, 2, 4, 2], 0, [128, 64, 128, 64])
        np.testing.assert_allclose(one.box, wanted_box, rtol=1e-5)
        features = feature_of(model, one.layer)
        wanted = textbook(
            model, features, image, lambda said: tf.reduce_max(said["scores"][..., 1])
        )
        np.testing.assert_allclose(one.values, wanted, atol=1e-4)


def test_a_detectors_box_that_is_given():
    model = networks.detector()
    images = networks.random_images(2, (32, 32), seed=3)
    boxes = np.asarray(model(images.astype("float32"))["boxes"])
    number = 5
    fractions = (boxes[0, number] / 32).tolist()
    (found, _) = located(model, images, "detection", names=("cup", "hat"), box=fractions, top_k=2)
    for one in found:
        np.testing.assert_allclose(one.box, boxes[0, number], rtol=1e-4)


def deep_map(make):
    import tensorflow as tf

    from cvbatch.explain.region_scores import find_deep_map
    from cvbatch.inference.gradcam import record_calls

    found = []

    def trace(images):
        model = make()
        with record_calls(model) as calls:
            scores = tf.reduce_sum(model(images, training=False), axis=(1, 2))
        found.append(calls.path[find_deep_map(calls, scores, "auto")])
        return images

    tf.function(trace, autograph=False).get_concrete_function(tf.zeros((1, 32, 32, 3)))
    return found[0]


def test_the_bottleneck_of_a_segmenter_is_what_auto_means():
    import keras
    from keras import layers

    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same")(image)
    x = layers.Conv2D(4, 3, strides=2, padding="same")(x)
    x = layers.ReLU(name="deep")(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x)
    x = layers.Conv2DTranspose(2, 3, strides=2, padding="same")(x)
    model = keras.Model(image, x)
    assert deep_map(lambda: model) == "deep"


def test_a_head_is_not_what_it_reads():
    import keras
    from keras import layers

    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=4, name="read")(image)
    x = layers.Conv2D(6, 1, name="head")(x)
    model = keras.Model(image, layers.Activation("sigmoid")(x))
    assert deep_map(lambda: model) == "read"


def test_a_network_of_one_convolution_has_but_that():
    import keras
    from keras import layers

    image = keras.Input((32, 32, 3))
    model = keras.Model(image, layers.Conv2D(2, 3, name="only")(image))
    assert deep_map(lambda: model) == "only"
