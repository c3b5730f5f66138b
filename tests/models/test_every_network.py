"""Every network of the zoo, one by one: it builds, saves, loads, predicts and explains itself."""

import gc

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from cvbatch.config.models import (
    ClassificationConfig,
    DetectionConfig,
    LocalizationConfig,
    SegmentationConfig,
)
from cvbatch.inference import gradcam
from cvbatch.inference.graph import ServingGraph, num_classes
from cvbatch.models import registry
from tests.support.reference_arrays import grad_cam

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not know NumPy 2's `copy`, and Keras passes it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
NUM_CLASSES = 3
SMALL = 64  # pixels a side, or the least the network can have
# Heads of millions of weights in the networks' own sizes: the same layers, fewer units.
THINNER = {
    "alexnet": {"width": 12},
    "fcn32s": {"units": 16},
    "fcn16s": {"units": 16},
    "fcn8s": {"units": 16},
    "sliding_fcn": {"units": 16},
}
# The same builders as their smaller siblings, with larger numbers: minutes more, and gigabytes.
LARGER = (
    *(f"ConvNeXt{size}" for size in ("Small", "Base", "Large", "XLarge")),
    *(f"DenseNet{depth}" for depth in (169, 201)),
    *(f"EfficientNetB{size}" for size in range(1, 8)),
    *(f"EfficientNetV2{size}" for size in ("B1", "B2", "B3", "S", "M", "L")),
    *(f"ResNet{name}" for name in ("101", "152", "101V2", "152V2")),
    "InceptionResNetV2",  # the blocks of Inception and of ResNet, seven times as many layers
    "NASNetLarge",
    "VGG19",
)
CONFIGS = {
    "classification": ClassificationConfig,
    "segmentation": SegmentationConfig,
    "detection": DetectionConfig,
    "localization": LocalizationConfig,
}


def small_size(entry):
    sides = []
    for least in entry.minimum:
        side = max(SMALL, least)
        sides.append(-(-side // entry.multiple_of) * entry.multiple_of)
    return tuple(sides)


def build_small(name):
    entry = registry.find_entry(name)
    keras.utils.set_random_seed(0)
    model = registry.build(name, NUM_CLASSES, small_size(entry), THINNER.get(name))
    calibrate(model, pictures(4, *model.input_shape[1:3]))
    return model


def pictures(count, height, width):  # → (count, H, W, 3) uint8
    """Return coarse patches of colour: noise would look the same to every deep layer."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return np.stack([cv2.resize(one, (width, height)) for one in coarse])


def as_input(model, images):  # uint8 → what the network takes, float32
    grey = np.array([[0.299], [0.587], [0.114]], np.float32)
    pixels = images.astype("float32")
    return pixels if model.input_shape[3] == 3 else pixels @ grey


def calibrate(model, images):
    """Give normalisation the statistics of a batch: untrained ones let features die or explode."""
    kept = [
        (layer, name, getattr(layer, name))
        for layer in model.layers
        for name in ("momentum", "rate")  # of normalisation, and of dropout, which disturbs it
        if hasattr(layer, name)
    ]
    for layer, name, _ in kept:
        setattr(layer, name, 0.0)
    if kept:
        model(as_input(model, images), training=True)
    for layer, name, value in kept:
        setattr(layer, name, value)


def scores_to_explain(task, outputs):  # → (B, classes)
    """Return the scores whose gradients explain a prediction of the task."""
    if task == "classification":
        return outputs
    if task == "segmentation":  # of a region
        return tf.reduce_sum(outputs[:, 8:40, 8:40], axis=(1, 2))
    return outputs["scores"][:, 0]  # of one box


@pytest.fixture(autouse=True)
def _forgotten():
    """Let go of each network before the next: together they would not fit."""
    yield
    gc.collect()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.soak if n in LARGER else ()) for n in sorted(registry.ZOO)],
)
def test_a_network_saves_loads_predicts_and_explains_itself(name, tmp_path):
    task, built = registry.find_entry(name).task, build_small(name)
    built.save(tmp_path / "net.keras")
    loaded = registry.load_file("net", tmp_path / "net.keras")
    (tmp_path / "net.keras").unlink()  # pytest keeps the folder, and these are gigabytes
    images = pictures(1, *loaded.input_shape[1:3])

    config = CONFIGS[task](task=task, model="net.keras")
    assert num_classes(loaded, config) == NUM_CLASSES
    path, served, heatmaps = serve_and_explain(loaded, config, images)
    answered, wanted = answer_and_explain_by_tape(built, task, images, path)

    if task == "classification":
        np.testing.assert_allclose(served["scores"], answered, rtol=1e-2, atol=1e-4)
        np.testing.assert_allclose(np.sum(served["scores"], axis=1), 1, rtol=1e-4)
    elif task == "segmentation":
        assert (np.asarray(served["mask"]) == np.argmax(answered, axis=-1)).mean() > 0.999
    else:
        for key, tensor in served.items():
            wanted_key = "boxes" if key == "box" else key
            np.testing.assert_allclose(
                np.squeeze(tensor), np.squeeze(answered[wanted_key]), rtol=1e-3, atol=1e-3
            )
    np.testing.assert_allclose(heatmaps, wanted, atol=5e-3)
    assert heatmaps.max() == pytest.approx(1)


def serve_and_explain(model, config, images):  # → path of the layer, results, (classes, h, w)
    """Return what the job computes, and the heatmaps of all classes, from one graph."""
    found = {}

    @tf.function(autograph=False)
    def graph(pixels):
        with gradcam.record_calls(model) as calls:
            results = ServingGraph(model, config)(pixels)
            scores = scores_to_explain(config.task, found["outputs"])
        at = gradcam.find_feature_map(calls, scores, "auto")
        found["path"] = calls.path[at]
        return results, gradcam.heatmaps(calls, scores, tf.range(NUM_CLASSES)[None], at)

    answer = model.call

    def call(*args, **kwargs):
        found["outputs"] = answer(*args, **kwargs)
        return found["outputs"]

    model.call = call
    results, heatmaps = graph(tf.constant(images))
    return found["path"], results, np.asarray(heatmaps)[0]


def answer_and_explain_by_tape(model, task, images, path):  # → outputs, (classes, h, w)
    (step,) = [one for one in model.operations if one.name == path]
    both = keras.Model(model.input, [step.output, model.output])
    with tf.GradientTape(persistent=True) as tape:
        features, outputs = both(as_input(model, images), training=False)
        scores = scores_to_explain(task, outputs)
        of_class = [scores[:, i] for i in range(NUM_CLASSES)]
    gradients = [tape.gradient(score, features)[0].numpy() for score in of_class]
    return outputs, np.stack([grad_cam(features[0].numpy(), one) for one in gradients])
