"""Build, save, load, predict and explain with every named network."""

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
from cvbatch.inference.graph import resolve
from cvbatch.models import registry
from tests.support.reference_arrays import grad_cam
from tests.support.serving import serving_graph

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
NUM_CLASSES = 3
SMALL = 64  # side in pixels; larger if the network's minimum is
# Options for heads with fewer weights and the same layers.
NARROW = {
    "alexnet": {"width": 12},
    "fcn32s": {"units": 16},
    "fcn16s": {"units": 16},
    "fcn8s": {"units": 16},
    "sliding_fcn": {"units": 16},
}
# Larger variants of networks that are tested, and networks whose layers others have too: each takes
# 5 s to minutes.
LARGER = (
    *(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
    *(f"DenseNet{depth}" for depth in (121, 169, 201)),
    *(f"EfficientNetB{size}" for size in range(1, 8)),
    *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    *(f"ResNet{name}" for name in ("50", "101", "152", "50V2", "101V2", "152V2")),
    *("resnet152", "se_resnet34", "googlenet"),  # resnet34 and se_googlenet have their blocks
    *("fcn16s", "fcn32s"),
    "InceptionResNetV2",  # the blocks of Inception and of ResNet, seven times as many layers
    "InceptionV3",
    *("MobileNetV3Small", "MobileNetV3Large"),
    *("NASNetLarge", "NASNetMobile"),
    *("VGG16", "VGG19"),
    "Xception",
)
CONFIGS = {
    "classification": ClassificationConfig,
    "segmentation": SegmentationConfig,
    "detection": DetectionConfig,
    "localization": LocalizationConfig,
}


def small_size(entry):
    sides = []
    for minimum in entry.minimum:
        side = max(SMALL, minimum)
        sides.append(-(-side // entry.multiple_of) * entry.multiple_of)
    return tuple(sides)


def build_small(name):
    entry = registry.find_entry(name)
    keras.utils.set_random_seed(0)
    model = registry.build(name, NUM_CLASSES, small_size(entry), NARROW.get(name))
    calibrate(model, random_images(4, *model.input_shape[1:3]))
    return model


def random_images(count, height, width):  # → (count, H, W, 3) uint8
    """Return coarse patches of colour; noise would give the same features everywhere."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return np.stack([cv2.resize(patches, (width, height)) for patches in coarse])


def as_input(model, images):  # uint8 → float32 with the network's channels
    grey = np.array([[0.299], [0.587], [0.114]], np.float32)
    pixels = images.astype("float32")
    return pixels if model.input_shape[3] == 3 else pixels @ grey


def calibrate(model, images):
    """Set the statistics of normalisation layers from a batch, so that features do not vanish."""
    settings = [
        (layer, name, getattr(layer, name))
        for layer in model.layers
        for name in ("momentum", "rate")  # of normalisation and dropout
        if hasattr(layer, name)
    ]
    for layer, name, _ in settings:
        setattr(layer, name, 0.0)
    if settings:
        model(as_input(model, images), training=True)
    for layer, name, value in settings:
        setattr(layer, name, value)


def scores_to_explain(task, outputs):  # → (B, classes)
    """Return the scores whose gradients explain a prediction of the task."""
    if task == "classification":
        return outputs
    if task == "segmentation":  # of a region
        return tf.reduce_sum(outputs[:, 8:40, 8:40], axis=(1, 2))
    return outputs["scores"][:, 0]  # of one box


@pytest.fixture(autouse=True)
def _collect_garbage():
    """Free each network before the next one, because memory is limited."""
    yield
    gc.collect()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.soak if n in LARGER else ()) for n in sorted(registry.ZOO)],
)
def test_a_network_saves_loads_predicts_and_explains(name, tmp_path):
    task, built = registry.find_entry(name).task, build_small(name)
    built.save(tmp_path / "net.keras")
    loaded = registry.load_file("net", tmp_path / "net.keras")
    (tmp_path / "net.keras").unlink()  # pytest keeps the folder
    images = random_images(1, *loaded.input_shape[1:3])

    config = CONFIGS[task](task=task, model="net.keras")
    assert resolve(loaded, config)[1] == NUM_CLASSES
    path, predictions, heatmaps = predict_and_explain(loaded, config, images)
    outputs, expected = predict_and_explain_by_tape(built, task, images, path)

    if task == "classification":
        np.testing.assert_allclose(predictions["scores"], outputs, rtol=1e-2, atol=1e-4)
        np.testing.assert_allclose(np.sum(predictions["scores"], axis=1), 1, rtol=1e-4)
    elif task == "segmentation":
        classes = np.argmax(predictions["probabilities"], axis=-1)
        assert (classes == np.argmax(outputs, axis=-1)).mean() > 0.999
    else:
        for key, tensor in predictions.items():
            wanted_key = "boxes" if key == "box" else key
            np.testing.assert_allclose(
                np.squeeze(tensor), np.squeeze(outputs[wanted_key]), rtol=1e-3, atol=1e-3
            )
    np.testing.assert_allclose(heatmaps, expected, atol=5e-3)
    assert heatmaps.max() == pytest.approx(1)


def predict_and_explain(model, config, images):  # → path of the layer, results, (classes, h, w)
    """Return the predictions of a job and the heatmaps of all classes, from one graph."""
    recorded = {}
    serve = serving_graph(model, config)

    @tf.function(autograph=False)
    def graph(pixels):
        with gradcam.record_calls(model) as calls:
            results = serve(pixels)
            scores = scores_to_explain(config.task, recorded["outputs"])
        index = gradcam.find_feature_map(calls, scores, "auto")
        recorded["path"] = calls.paths[index]
        return results, gradcam.heatmaps(calls, scores, tf.range(NUM_CLASSES)[None], index)

    original_call = model.call

    def call(*args, **kwargs):
        recorded["outputs"] = original_call(*args, **kwargs)
        return recorded["outputs"]

    model.call = call
    results, heatmaps = graph(tf.constant(images))
    return recorded["path"], results, np.asarray(heatmaps)[0]


def predict_and_explain_by_tape(model, task, images, path):  # → outputs, (classes, h, w)
    (layer,) = [operation for operation in model.operations if operation.name == path]
    both = keras.Model(model.input, [layer.output, model.output])
    with tf.GradientTape(persistent=True) as tape:
        features, outputs = both(as_input(model, images), training=False)
        scores = scores_to_explain(task, outputs)
        class_scores = [scores[:, i] for i in range(NUM_CLASSES)]
    gradients = [tape.gradient(score, features)[0].numpy() for score in class_scores]
    return outputs, np.stack([grad_cam(features[0].numpy(), gradient) for gradient in gradients])
