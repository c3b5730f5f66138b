"""Embeddings and values, compared with Keras' own prediction of the same layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.inference.engines import ENGINES
from cvbatch.inference.graph import ServingGraph, resolve
from tests.support import networks

pytestmark = pytest.mark.keras
SIZE = (32, 32)
TOLERANCE = 1e-5


def config(task: str = "embedding", **fields: Any) -> Any:
    job = {"source": {"uri": "in"}, "sink": {"uri": "out"}}
    return parse_job({**job, "models": [{"task": task, "model": "a.keras", **fields}]}).models[0]


def run(model: Any, model_config: Any, images: np.ndarray, engine: str = "tensorflow") -> Any:
    """Return the program's outputs and the graph."""
    resolve(model, model_config)
    graph = ServingGraph(model, model_config, "none")
    payload, names = ENGINES[engine].compile(graph, len(images), *images.shape[1:3])
    return ENGINES[engine].load(payload, names, 1)(images), graph


def keras_values(model: Any, tensor: Any, images: np.ndarray) -> np.ndarray:
    """Return what Keras computes for a tensor of the network."""
    import keras

    part = keras.Model(model.inputs, tensor)
    values: np.ndarray = part.predict(images.astype("float32"), verbose=0)
    return values


IMAGES = networks.random_images(5, SIZE)


@pytest.mark.runs("network for embeddings", "`task: embedding`, `layer: auto`, a layer, or none")
@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_auto_is_the_input_of_the_head(engine: str) -> None:
    model = networks.nested_classifier()
    results, graph = run(model, config(layer="auto"), IMAGES, engine)
    pooled = next(layer for layer in model.layers if "pooling" in layer.name)
    expected = keras_values(model, pooled.output, IMAGES)
    np.testing.assert_allclose(results["embedding"], expected, atol=TOLERANCE)
    assert graph.dimension == expected.shape[1] == 12
    assert graph.vector_source == f"the input of the layer {model.layers[-1].name!r}"


def test_auto_of_a_head_with_hidden_layers_is_the_last_hidden_layer() -> None:
    model = networks.plain_classifier(size=SIZE)
    results, _ = run(model, config(layer="auto"), IMAGES)
    expected = keras_values(model, model.layers[-2].output, IMAGES)
    np.testing.assert_allclose(results["embedding"], expected, atol=TOLERANCE)


@pytest.mark.parametrize(("output", "layer"), [("age", "flat"), ("mood", "pooled")])
def test_auto_is_the_input_of_the_head_of_the_chosen_output(output: str, layer: str) -> None:
    model = networks.age_and_gender()
    results, _ = run(model, config(layer="auto", output=output), IMAGES)
    expected = keras_values(model, model.get_layer(layer).output, IMAGES).reshape(5, -1)
    np.testing.assert_allclose(results["embedding"], expected, atol=TOLERANCE)


def test_auto_of_a_network_of_the_zoo() -> None:
    from cvbatch.models.registry import load_model

    options = {"alpha": 0.25}
    model = load_model("MobileNet", "random", local_file=Path, image_size=SIZE, options=options)
    results, graph = run(model, config(layer="auto"), IMAGES)
    *_, head = [layer for layer in model.layers if type(layer).__name__ == "Conv2D"]
    expected = keras_values(model, head.input, IMAGES).reshape(5, -1)
    np.testing.assert_allclose(results["embedding"], expected, atol=TOLERANCE)
    assert graph.vector_source == "the input of the layer 'conv_preds'"


FEATURES = {  # numbers that the head of each network receives, from the papers
    "alexnet": 4096, "googlenet": 1024, "resnet34": 512, "ConvNeXtTiny": 768, "DenseNet121": 1024,
    "InceptionV3": 2048, "MobileNetV2": 1280, "MobileNetV3Large": 1280, "NASNetMobile": 1056,
    "ResNet50": 2048, "ResNet50V2": 2048, "VGG16": 4096, "Xception": 2048, "EfficientNetB0": 1280,
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("name", FEATURES)
def test_auto_has_the_size_of_the_last_features(name: str) -> None:
    import tensorflow as tf

    from cvbatch.models.registry import load_model

    model = load_model(name, "random", local_file=Path)
    graph = ServingGraph(model, config(layer="auto"), "none")
    pixels = tf.TensorSpec((1, *model.input_shape[1:3], 3), tf.uint8)
    tf.function(graph, autograph=False).get_concrete_function(pixels)
    assert graph.dimension == FEATURES[name]


@pytest.mark.parametrize(("pooling", "normalize"), [("average", True), ("max", False)])
@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_a_feature_map_is_pooled(pooling: str, normalize: bool, engine: str) -> None:
    model = networks.nested_classifier()
    fields = {"layer": "inner/act", "pooling": pooling, "normalize": normalize}
    results, _ = run(model, config(**fields), IMAGES, engine)
    inner = model.get_layer("inner")
    maps = inner.predict(IMAGES.astype("float32"), verbose=0)
    expected = maps.mean((1, 2)) if pooling == "average" else maps.max((1, 2))
    if normalize:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(results["embedding"], expected, atol=TOLERANCE)


def test_without_a_layer_the_output_is_the_embedding() -> None:
    backbone = networks.nested_classifier().get_layer("inner")
    results, graph = run(backbone, config(pooling="average"), IMAGES)
    expected = backbone.predict(IMAGES.astype("float32"), verbose=0).mean((1, 2))
    np.testing.assert_allclose(results["embedding"], expected, atol=TOLERANCE)
    assert graph.vector_source == "the output 'output'"


def test_probabilities_are_an_embedding_only_if_their_output_is_named() -> None:
    model = networks.nested_classifier()
    with pytest.raises(ModelError, match="probabilities of classes; set layer: auto"):
        run(model, config(), IMAGES)
    results, _ = run(model, config(output="output"), IMAGES)
    expected = model.predict(IMAGES.astype("float32"), verbose=0)
    np.testing.assert_allclose(results["embedding"], expected, atol=TOLERANCE)


def odd_network(kind: str) -> Any:
    """A network whose head is not clear, or whose output is no vector."""
    import keras
    from keras import layers

    image = keras.Input((*SIZE, 3))
    x = layers.Conv2D(4, 3, name="conv")(image)
    if kind == "tokens":
        return keras.Model(image, layers.Reshape((-1, 4), name="tokens")(x))
    if kind == "convolutional":
        return keras.Model(image, layers.Activation("softmax")(layers.GlobalMaxPool2D()(x)))
    if kind == "scaled":
        return keras.Model(image, layers.PReLU(name="slope")(layers.GlobalMaxPool2D()(x)))
    twice = layers.Dense(4, name="twice")
    return keras.Model(image, twice(twice(layers.GlobalMaxPool2D()(x))))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("tokens", {}, r"\(B, 900, 4\), but must be"),
        ("tokens", {"layer": "tokens", "pooling": "max"}, r"\(B, 900, 4\), but must be"),
        ("tokens", {"layer": "conv"}, r"\(B, 30, 30, 4\), a feature map; set pooling"),
        ("twice", {"pooling": "max"}, "a vector without height and width; remove pooling"),
        ("twice", {"layer": "twice"}, "is called 2 times"),
        ("twice", {"layer": "twize"}, "is not in the network; the nearest is 'twice'"),
        ("twice", {"output": "other"}, "requires the output 'other'"),
        ("convolutional", {"layer": "auto"}, "'conv', receives .*, which is no feature vector"),
        ("convolutional", {"layer": "auto", "pooling": "max"}, "which is no feature vector"),
        ("scaled", {"layer": "auto"}, "'slope', is a PReLU"),
    ],
)
def test_an_unclear_vector_is_refused(kind: str, fields: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        run(odd_network(kind), config(**fields), IMAGES)


def test_one_of_several_outputs_must_be_chosen() -> None:
    model = networks.age_and_gender()
    with pytest.raises(ModelError, match=r"one output \(choose with output or layer\)"):
        run(model, config(), IMAGES)
    with pytest.raises(ModelError, match=r"heads of .a\.keras. have different inputs"):
        run(model, config(layer="auto"), IMAGES)


@pytest.mark.runs("regression (age)", "`task: regression`, `names`, `output` of several")
@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_values_are_those_of_the_network(engine: str) -> None:
    model = networks.age_and_gender()
    results, graph = run(model, config("regression", output="age"), IMAGES, engine)
    expected = model.predict(IMAGES.astype("float32"), verbose=0)["age"]
    np.testing.assert_allclose(results["values"], expected, atol=TOLERANCE)
    assert graph.dimension == 1


def test_a_map_is_no_regression() -> None:
    with pytest.raises(ModelError, match="task regression requires one output of numbers"):
        run(networks.segmenter(size=SIZE), config("regression"), IMAGES)
    with pytest.raises(ModelError, match="choose one with `output: NAME`"):
        run(networks.age_and_gender(), config("regression"), IMAGES)


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("embedding", {"tiles": {"size": 8}}, "tiles for task embedding: .* remove tiles"),
        ("embedding", {"classes": ["a"]}, "classes for task embedding: .* remove classes"),
        ("regression", {"activation": "softmax"}, "activation for task regression: its numbers"),
        ("regression", {"names": ["a", "a"]}, "must be different names"),
        ("embedding", {"layer": "a", "output": "b"}, "keep the one that gives the embedding"),
        ("embedding", {"pooling": "avg"}, "pooling"),
    ],
)
def test_keys_that_do_not_fit_are_refused(task: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(task, **fields)
