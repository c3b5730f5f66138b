"""Grad-CAM of segmenters and detectors, compared with a GradientTape over the explained score."""

import numpy as np
import pytest

from tests.support import networks

pytestmark = pytest.mark.keras


def grad_cam_by_tape(model, features, image, score_of):
    """Return the Grad-CAM map where `score_of(outputs)` is the explained score."""
    import keras
    import tensorflow as tf

    from tests.support.reference_arrays import grad_cam

    extractor = keras.Model(model.inputs, [features, model.output])
    with tf.GradientTape() as tape:
        maps, outputs = extractor([image[None].astype("float32")], training=False)
        score = score_of(outputs)
    gradient = tape.gradient(score, maps)
    return grad_cam(maps[0].numpy(), gradient[0].numpy())


def explain(model, images, task, class_names, size=None, fields=None, **gradcam):
    """Return the ClassHeatmaps of each image.

    size: of the originals, height and width; fields: keys of the model's section.
    """
    from cvbatch.config.explain import parse_explanation
    from cvbatch.core.types import ImageBatch, InputKey
    from cvbatch.explain.introspection import Network
    from cvbatch.explain.spec import NetworkFacts
    from cvbatch.inference.activation_check import decide
    from cvbatch.inference.graph import resolve

    job = parse_explanation(
        {
            "model": {"task": task, "model": "a.keras", **(fields or {})},
            "source": {"uri": "x"},
            "sink": {"uri": "y"},
            "gradcam": gradcam,
            "run": {"batch_size": 4},
        }
    )
    input_size = model.input_shape[1:3]
    count = len(images)
    height, width = size or input_size
    batch = ImageBatch(
        "c", [str(i) for i in range(count)], [""] * count, np.full(count, width, np.int32),
        np.full(count, height, np.int32), {}, {InputKey(*input_size, "stretch"): images},
    )  # fmt: skip
    decision = decide(model, resolve(model, job.model)[0], images, checks_boxes=False)
    facts = NetworkFacts(class_names, input_size, {}, {}, decision.activation)
    network = Network(model, job, facts)
    network.check()
    return [explanation.gradcam for explanation in network.explain(batch)]


def feature_of(model, path):
    layer = model
    for name in path.split("/"):
        layer = layer.get_layer(name)
    return layer.output


CLASSES = ("sky", "sea", "sand")


def softmax_logits(model):
    """Return the segmenter without its softmax."""
    import keras

    last = model.layers[-1]
    without_softmax = keras.layers.Conv2D.from_config({**last.get_config(), "activation": None})
    logits = without_softmax(model.layers[-2].output)
    without_softmax.set_weights(last.get_weights())
    return keras.Model(model.inputs, logits)


@pytest.mark.parametrize("box", [None, [0.25, 0.125, 0.75, 0.5]])
def test_heatmaps_of_a_segmenter_explain_the_logits_of_a_region(box):
    import tensorflow as tf

    model = networks.segmenter()
    images = networks.random_images(3, (32, 24))
    fields = {"classes": ["sea", "sand"]} | ({} if box is None else {"box": box})
    explained = explain(model, images, "segmentation", CLASSES, **fields)
    logits_model = softmax_logits(model)
    features = logits_model.layers[-2].output
    for image, heatmaps in zip(images, explained, strict=True):
        assert [heatmap.label for heatmap in heatmaps] == ["sea", "sand"]
        for heatmap in heatmaps:

            def score_of(logits, class_id=heatmap.class_id):
                if box is None:
                    region = tf.cast(tf.argmax(logits, -1) == class_id, tf.float32)
                else:  # the box is x 6..18, y 4..16 of 24 × 32 pixels
                    region = np.zeros((1, 32, 24), np.float32)
                    region[:, 4:16, 6:18] = 1
                return tf.reduce_sum(logits[..., class_id] * region)

            score = float(score_of(logits_model(image[None].astype("float32"))))
            np.testing.assert_allclose(heatmap.score, score, rtol=1e-3, atol=1e-3)
            expected = grad_cam_by_tape(logits_model, features, image, score_of)
            np.testing.assert_allclose(heatmap.values, expected, atol=1e-4)


def test_top_k_of_a_segmenter_are_the_classes_of_most_pixels():
    model = networks.segmenter()
    images = networks.random_images(2, (32, 24))
    explained = explain(model, images, "segmentation", CLASSES, top_k=3)
    predicted = np.asarray(model(images.astype("float32"))).argmax(-1)
    for heatmaps, mask in zip(explained, predicted, strict=True):
        areas = [int((mask == heatmap.class_id).sum()) for heatmap in heatmaps]
        assert areas == sorted(areas, reverse=True)
        assert sum(areas) == 32 * 24


def test_heatmap_of_a_detector_explains_the_best_box():
    import tensorflow as tf

    model = networks.detector()
    images = networks.random_images(2, (32, 32))
    explained = explain(model, images, "detection", ("cup", "hat"), size=(64, 128), classes=["hat"])
    outputs = model(images.astype("float32"))
    for row, (image, (heatmap,)) in enumerate(zip(images, explained, strict=True)):
        scores, boxes = np.asarray(outputs["scores"])[row], np.asarray(outputs["boxes"])[row]
        best = scores[:, 1].argmax()
        assert heatmap.label == "hat"
        np.testing.assert_allclose(heatmap.score, scores[best, 1], rtol=1e-5)
        np.testing.assert_allclose(heatmap.box_in_input, boxes[best], rtol=1e-5)
        expected_box = np.clip(boxes[best] * [4, 2, 4, 2], 0, [128, 64, 128, 64])
        np.testing.assert_allclose(heatmap.box, expected_box, rtol=1e-5)
        features = feature_of(model, heatmap.layer)
        expected = grad_cam_by_tape(
            model, features, image, lambda outputs: tf.reduce_max(outputs["scores"][..., 1])
        )
        np.testing.assert_allclose(heatmap.values, expected, atol=1e-4)


def test_heatmap_of_a_detector_explains_the_candidate_nearest_to_the_configured_box():
    model = networks.detector()
    images = networks.random_images(2, (32, 32), seed=3)
    boxes = np.asarray(model(images.astype("float32"))["boxes"])
    candidate = 5
    fractions = (boxes[0, candidate] / 32).tolist()
    (heatmaps, _) = explain(model, images, "detection", ("cup", "hat"), box=fractions, top_k=2)
    for heatmap in heatmaps:
        np.testing.assert_allclose(heatmap.box, boxes[0, candidate], rtol=1e-4)


def auto_layer(model):
    """Return the path of the layer that `layer: auto` selects."""
    import tensorflow as tf

    from cvbatch.explain.region_scores import find_deep_map
    from cvbatch.inference.gradcam import record_calls

    paths = []

    def trace(images):
        with record_calls(model) as calls:
            scores = tf.reduce_sum(model(images, training=False), axis=(1, 2))
        paths.append(calls.paths[find_deep_map(calls, scores, "auto")])
        return images

    tf.function(trace, autograph=False).get_concrete_function(tf.zeros((1, 32, 32, 3)))
    return paths[0]


def test_auto_selects_the_bottleneck_of_a_segmenter():
    import keras
    from keras import layers

    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same")(image)
    x = layers.Conv2D(4, 3, strides=2, padding="same")(x)
    x = layers.ReLU(name="deep")(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x)
    x = layers.Conv2DTranspose(2, 3, strides=2, padding="same")(x)
    model = keras.Model(image, x)
    assert auto_layer(model) == "deep"


def test_auto_selects_the_input_of_a_head():
    import keras
    from keras import layers

    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=4, name="backbone")(image)
    x = layers.Conv2D(6, 1, name="head")(x)
    model = keras.Model(image, layers.Activation("sigmoid")(x))
    assert auto_layer(model) == "backbone"


def test_auto_selects_the_only_convolution():
    import keras
    from keras import layers

    image = keras.Input((32, 32, 3))
    model = keras.Model(image, layers.Conv2D(2, 3, name="only")(image))
    assert auto_layer(model) == "only"


def yolo_of(model):
    """Return a detector with boxes xyxy and scores as one with a head (B, 4 + C, N)."""
    import keras
    from keras import layers, ops

    low, high = model.output["boxes"][..., :2], model.output["boxes"][..., 2:]
    columns = [(low + high) / 2, high - low, model.output["scores"]]
    table = ops.transpose(layers.Concatenate()(columns), (0, 2, 1))
    return keras.Model(model.input, layers.Activation("linear")(table))


def suppressed_of(model):
    """Return a detector that returns its boxes with their best class only."""
    import keras
    from keras import ops

    scores = model.output["scores"]
    outputs = {"boxes": model.output["boxes"], "confidence": ops.max(scores, axis=-1)}
    return keras.Model(model.input, {**outputs, "labels": ops.argmax(scores, axis=-1)})


@pytest.mark.parametrize(
    ("build", "fields"), [(yolo_of, {"detector": "yolo_v8"}), (suppressed_of, {})]
)
def test_heatmaps_of_a_detector_do_not_depend_on_the_format_of_its_outputs(build, fields):
    model, images = networks.detector(), networks.random_images(3, (32, 32))
    expected = explain(model, images, "detection", ("a", "b"), top_k=1)
    found = explain(build(model), images, "detection", ("a", "b"), fields=fields, top_k=1)
    for (heatmap,), (other,) in zip(found, expected, strict=True):
        assert (heatmap.class_id, heatmap.label) == (other.class_id, other.label)
        np.testing.assert_allclose(heatmap.values, other.values, atol=1e-5)
        np.testing.assert_allclose(heatmap.box, other.box, atol=1e-4)
        assert heatmap.score == pytest.approx(other.score, abs=1e-6)


def test_rows_of_pixels_are_explained_like_a_map():
    import keras

    model, images = networks.segmenter(), networks.random_images(2, (32, 24))
    flat = keras.Model(model.input, keras.layers.Reshape((-1, 3))(model.output))
    names = ("a", "b", "c")
    for of_map, of_rows in zip(
        explain(model, images, "segmentation", names),
        explain(flat, images, "segmentation", names),
        strict=True,
    ):
        assert of_rows[0].class_id == of_map[0].class_id
        np.testing.assert_allclose(of_rows[0].values, of_map[0].values, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_class_ids_have_no_gradient(dtype):
    import tensorflow as tf

    from cvbatch.config.explain import parse_explanation
    from cvbatch.core.errors import ModelError
    from cvbatch.explain.class_scores import CLASS_SCORES
    from cvbatch.explain.spec import NetworkFacts

    model = {"task": "segmentation", "model": "a.keras", "classes": "names.txt"}
    job = parse_explanation(
        {"model": model, "source": {"uri": "x"}, "sink": {"uri": "y"}, "gradcam": {}}
    )
    facts = NetworkFacts(("a", "b", "c"), (4, 4), {}, {}, "none", "")
    outputs = {"output": tf.zeros((1, 4, 4, 1), dtype)}
    with pytest.raises(ModelError, match="explain the network without its arg-max"):
        CLASS_SCORES["segmentation"].scores(job, facts, outputs, None)
