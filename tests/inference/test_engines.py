"""Engines compared with Keras; Grad-CAM compared with a GradientTape."""

import subprocess
import sys

import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ModelError
from cvbatch.inference.engines import ENGINES, UnsupportedGraphError
from cvbatch.inference.litert import _missing_operations
from tests.support import networks
from tests.support.serving import serving_graph

pytestmark = pytest.mark.keras
TOLERANCE = 1e-4


def config(task="classification", **fields):
    job = {"source": {"uri": "in"}, "sink": {"uri": "out"}}
    return parse_job({**job, "models": [{"task": task, "model": "a.keras", **fields}]}).models[0]


def run(engine, model, model_config, images):
    graph = serving_graph(model, model_config)
    payload, names = ENGINES[engine].compile(graph, len(images), *images.shape[1:3])
    return ENGINES[engine].load(payload, names, 1)(images), graph


@pytest.fixture(params=sorted(ENGINES))
def engine(request):
    return request.param


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_scores_and_heatmaps_of_a_sequential_network(engine, score):
    model, images = networks.plain_classifier(), networks.random_images(4, (33, 32))
    heatmap = {"top_k": 2, "score": score}
    results, graph = run(engine, model, config(heatmap=heatmap), images)
    keras_scores = model(images.astype("float32")).numpy()
    np.testing.assert_allclose(results["scores"], keras_scores, atol=TOLERANCE)
    np.testing.assert_array_equal(results["heatmap_classes"][:, 0], keras_scores.argmax(axis=1))
    assert graph.heatmap_layer == "last"
    if score == "probability":
        for rank in range(2):
            expected = networks.textbook_grad_cam(
                model, model.get_layer("last").output, images, class_rank=rank
            )
            np.testing.assert_allclose(results["heatmaps"][:, rank], expected, atol=TOLERANCE)


@pytest.mark.parametrize("size", [(16, 16), (19, 17)])  # odd: windows do not cover the last row
def test_heatmaps_through_average_pooling(engine, size):
    import keras
    from keras import layers

    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((*size, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(6, 3, activation="tanh", padding="same", name="last"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    images = networks.random_images(3, size)
    results, graph = run(engine, model, config(heatmap={}), images)
    assert graph.heatmap_layer == "last"
    expected = networks.textbook_grad_cam(model, model.get_layer("last").output, images)
    np.testing.assert_allclose(results["heatmaps"][:, 0], expected, atol=TOLERANCE)


def test_heatmaps_of_the_sum_after_a_shortcut(engine):
    import keras
    from keras import layers

    keras.utils.set_random_seed(8)
    image = keras.Input((16, 16, 3))
    branch = layers.Conv2D(5, 3, padding="same", name="branch")(layers.Rescaling(1 / 255)(image))
    other = layers.Conv2D(5, 1, name="other")(image)
    for total, name in ((layers.Add(name="total")([branch, other]), "total"), (branch + other, "")):
        scores = layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling2D()(total))
        model = keras.Model(image, scores)
        images = networks.random_images(2, (16, 16))
        results, graph = run(engine, model, config(heatmap={}), images)
        assert graph.heatmap_layer == (name or model.operations[-3].name)
        expected = networks.textbook_grad_cam(model, total, images)
        np.testing.assert_allclose(results["heatmaps"][:, 0], expected, atol=TOLERANCE)


def test_heatmaps_of_a_map_that_the_scores_also_depend_on_without_pooling(engine):
    import keras
    from keras import layers

    keras.utils.set_random_seed(9)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(5, 3, padding="same", name="features")(layers.Rescaling(1 / 255)(image))
    gate = layers.Dense(5, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    flat = layers.Flatten()(x * gate)
    model = keras.Model(image, layers.Dense(4, activation="softmax")(flat))
    images = networks.random_images(2, (8, 8))
    results, _ = run(engine, model, config(heatmap={"layer": "features"}), images)
    expected = networks.textbook_grad_cam(model, model.get_layer("features").output, images)
    np.testing.assert_allclose(results["heatmaps"][:, 0], expected, atol=TOLERANCE)


def test_scores_and_heatmaps_of_a_nested_network(engine):
    model, images = networks.nested_classifier(), networks.random_images(3, (32, 32))
    results, graph = run(engine, model, config(heatmap={"layer": "auto"}), images)
    assert graph.heatmap_layer == "inner/act"
    # The reference cannot reach inner layers, so the nested model is unrolled.
    import keras

    image = keras.Input((32, 32, 3))
    features = image
    for layer in model.get_layer("inner").layers:
        features = layer(features)
    scores = model.layers[-1](keras.layers.GlobalAveragePooling2D()(features))
    flat = keras.Model(image, scores)
    np.testing.assert_allclose(
        results["scores"], flat(images.astype("float32")).numpy(), atol=TOLERANCE
    )
    expected = networks.textbook_grad_cam(flat, features, images)
    np.testing.assert_allclose(results["heatmaps"][:, 0], expected, atol=TOLERANCE)


def test_heatmap_layer_by_path_or_name(engine):
    model, images = networks.nested_classifier(), networks.random_images(2, (32, 32))
    for layer in ("inner/act", "act"):
        _, graph = run(engine, model, config(heatmap={"layer": layer}), images)
        assert graph.heatmap_layer == "inner/act"


def test_auto_layer_of_a_network_with_several_outputs(engine):
    model, images = networks.two_headed(), networks.random_images(3, (32, 32))
    results, graph = run(engine, model, config(heatmap={}), images)
    assert graph.heatmap_layer == "features"  # `maps` is later, but no score depends on it
    expected = networks.textbook_grad_cam(
        model, model.get_layer("features").output, images, output="classes"
    )
    np.testing.assert_allclose(results["heatmaps"][:, 0], expected, atol=TOLERANCE)


def test_heatmap_without_positive_values_is_zero(engine):
    import keras

    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(2, 3, kernel_initializer="zeros"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    results, _ = run(engine, model, config(heatmap={}), networks.random_images(2, (8, 8)))
    assert (results["heatmaps"] == 0).all()


def test_one_sigmoid_unit_is_two_classes(engine):
    import keras

    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(1, "sigmoid")]
    )
    images = networks.random_images(4, (8, 8))
    results, _ = run(engine, model, config(rescale={"scale": 0.01}), images)
    positive = model(images.astype("float32") * 0.01).numpy()[:, 0]
    np.testing.assert_allclose(results["scores"][:, 1], positive, atol=TOLERANCE)
    np.testing.assert_allclose(results["scores"].sum(axis=1), 1, atol=TOLERANCE)


def test_logits_are_activated_in_the_graph(engine):
    import keras

    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
         keras.layers.Dense(3)]
    )  # fmt: skip
    images = networks.random_images(4, (8, 8))
    logits = model(images.astype("float32")).numpy()
    results, _ = run(engine, model, config(), images)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(results["scores"], softmax, atol=TOLERANCE)
    results, _ = run(engine, model, config(multi_label=True), images)
    np.testing.assert_allclose(results["scores"], 1 / (1 + np.exp(-logits)), atol=TOLERANCE)


def test_mask_is_the_argmax_of_class_maps(engine):
    model, images = networks.segmenter(), networks.random_images(2, (32, 24))
    results, _ = run(engine, model, config("segmentation", mask_size="model"), images)
    expected = model(images.astype("float32")).numpy().argmax(axis=-1)
    assert results["mask"].dtype == np.uint8
    assert (results["mask"] == expected).mean() > 0.999


def test_outputs_of_detector_and_localizer_equal_keras(engine):
    images = networks.random_images(3, (32, 32))
    for model, task in ((networks.detector(), "detection"), (networks.localizer(), "localization")):
        results, _ = run(engine, model, config(task), images)
        expected = model(images.astype("float32"))
        assert sorted(results) == sorted(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(results[name], array.numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_detector_with_one_box_can_be_a_localizer(engine, score):
    import keras

    inner = networks.localizer()
    outputs = {
        "boxes": keras.ops.expand_dims(inner.output["box"], 1),
        "scores": keras.ops.expand_dims(inner.output["scores"], 1),
    }
    model = keras.Model(inner.input, outputs)
    images = networks.random_images(3, (32, 32))
    model_config = config("localization", heatmap={"score": score})
    results, _ = run(engine, model, model_config, images)
    expected, _ = run(engine, inner, model_config, images)
    assert sorted(results) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(results[name], array, atol=TOLERANCE)


def test_litert_reports_unsupported_operations():
    import tensorflow as tf

    def unsupported(pixels):
        return {"scores": tf.linalg.logdet(tf.cast(pixels[..., :1, 0], tf.float32) + 1.0)[:, None]}

    with pytest.raises(UnsupportedGraphError) as error:
        ENGINES["litert"].compile(unsupported, 1, 1, 4)
    assert str(error.value) == "Cholesky, MatrixDiagPartV3"


def test_an_operation_that_litert_has_for_fewer_dimensions_is_reported_with_them():
    import tensorflow as tf

    def permuted(pixels):
        cells = tf.reshape(tf.cast(pixels, tf.float32), (2, 2, 2, 2, 2, 2, 3))
        return {"boxes": tf.transpose(cells, (0, 2, 1, 4, 3, 6, 5))}

    with pytest.raises(UnsupportedGraphError) as error:
        ENGINES["litert"].compile(permuted, 2, 4, 8)
    assert str(error.value) == "Transpose of 7 dimensions"


def test_a_message_without_operations_gives_its_first_error():
    message = 'loc("/site-packages/keras/numpy.py":1:1): error: shapes differ\n  tf.shape(x)[0],\n'
    assert _missing_operations(message) == "shapes differ"


@pytest.mark.runs(
    "SSD decoded with keras.ops and NumPy priors", "as it is; LiteRT computes it in float32"
)
def test_numpy_priors_in_float64_run_in_litert():
    """Keras computes in float64 with them, for which LiteRT has no kernels."""
    import keras
    from keras import layers, ops

    priors = np.random.default_rng(0).uniform(0.2, 0.8, (16, 4))
    assert priors.dtype == np.float64
    image = keras.Input((32, 32, 3))
    x = layers.Reshape((16, 7))(layers.Conv2D(7, 8, 8)(layers.Rescaling(1 / 255)(image)))
    center = x[..., :2] * 0.1 * priors[:, 2:] + priors[:, :2]
    half = ops.exp(x[..., 2:4] * 0.2) * priors[:, 2:] / 2
    corners = [center[..., 0] - half[..., 0], center[..., 1] - half[..., 1]]
    corners += [center[..., 0] + half[..., 0], center[..., 1] + half[..., 1]]
    boxes = ops.transpose(ops.stack(corners), (1, 2, 0))
    model = keras.Model(image, {"boxes": boxes, "scores": ops.softmax(x[..., 4:])[..., 1:]})
    assert model.output["boxes"].dtype == "float64"
    images = networks.random_images(2, (32, 32))
    results, _ = run("litert", model, config("detection", box_format="rel_xyxy"), images)
    expected = model(images.astype("float32"))
    for name in ("boxes", "scores"):
        np.testing.assert_allclose(results[name], expected[name].numpy(), atol=1e-5)


def test_wrong_outputs_are_reported_with_shapes():
    from cvbatch.inference.graph import resolve

    with pytest.raises(ModelError) as error:
        resolve(networks.segmenter(), config("detection"))
    assert "boxes (B, N, 4)" in str(error.value)
    assert "(B, 32, 24, 3)" in str(error.value)
    with pytest.raises(ModelError, match=r"requires one output of class scores \(B, classes\)"):
        resolve(networks.segmenter(), config())


def test_unknown_heatmap_layer_is_refused_with_a_suggestion():
    from cvbatch.inference.graph import ServingGraph

    with pytest.raises(ModelError, match="the nearest is 'inner/act'"):
        ServingGraph(networks.nested_classifier(), config(heatmap={"layer": "inner/akt"}), "none")


def test_mixed_precision_approximates_float32():
    from cvbatch.models.precision import with_precision

    model, images = networks.nested_classifier(), networks.random_images(2, (32, 32))
    exact, _ = run("tensorflow", model, config(heatmap={}), images)
    for policy in ("mixed_float16", "mixed_bfloat16"):
        mixed, _ = run("tensorflow", with_precision(model, policy), config(heatmap={}), images)
        assert mixed["scores"].dtype == np.float32
        np.testing.assert_allclose(mixed["scores"], exact["scores"], atol=0.02)
        assert not np.array_equal(mixed["scores"], exact["scores"])


def test_litert_program_runs_without_importing_tensorflow(tmp_path):
    images = networks.random_images(1, (32, 32))
    graph = serving_graph(networks.nested_classifier(), config())
    payload, names = ENGINES["litert"].compile(graph, *images.shape[:3])
    (tmp_path / "payload").write_bytes(payload)
    code = (
        "import sys, pathlib, numpy as np; from cvbatch.inference.engines import ENGINES;"
        f"p = pathlib.Path({str(tmp_path / 'payload')!r}).read_bytes();"
        f"r = ENGINES['litert'].load(p, {names!r}, 1)(np.zeros((1, 32, 32, 3), np.uint8));"
        "print(r['scores'].shape, 'tensorflow' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "(1, 7) False"


@pytest.mark.parametrize("name", ["demo_classifier", "demo_segmenter", "demo_detector"])
def test_engines_agree_on_the_demo_networks(name):
    from cvbatch.core.types import InputKey
    from cvbatch.demo.render import render_scene
    from cvbatch.geometry.resize import make_placement, resize_image
    from cvbatch.models import registry

    task = registry.find_entry(name).task
    model = registry.load_model(name, "demo", local_file=None)
    key = InputKey(*model.input_shape[1:3], "stretch")
    scenes = [render_scene(seed).image for seed in range(4)]
    images = np.stack([resize_image(i, make_placement(*i.shape[:2], key)) for i in scenes])
    model_config = config(task, **({"heatmap": {}} if task == "classification" else {}))
    litert, _ = run("litert", model, model_config, images)
    tensorflow, _ = run("tensorflow", model, model_config, images)
    assert litert.keys() == tensorflow.keys()
    for output, array in litert.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, tensorflow[output], rtol=1e-4, atol=TOLERANCE)
        else:
            assert (array == tensorflow[output]).mean() > 0.9999
