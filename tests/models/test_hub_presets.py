"""KerasHub presets with random weights predict what `task.predict` does with its preprocessor."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from cvbatch.core.errors import ModelError
from cvbatch.models import model_files
from cvbatch.models.job_defaults import complete_model
from tests.support import hub_presets, model_runs, networks

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PIXELS = networks.random_images(2, (hub_presets.SIDE, hub_presets.SIDE))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """Return a small vision transformer and its preset."""
    folder = tmp_path_factory.mktemp("preset")
    return hub_presets.save(hub_presets.vit, folder), folder


def stored_task(folder):
    """Return the task that a job without one has for a preset."""
    section, note = complete_model({"model": f"{folder}/"})
    assert not note
    return section["task"]


def probabilities(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.runs(
    "KerasHub classifier preset: ViT", "`model: path/to/preset/`, `resize: crop` as KerasHub does"
)
def test_a_classifier_predicts_what_its_task_does(vit):
    task, folder = vit
    assert stored_task(folder) == "classification"
    program = model_runs.built(folder)
    expected = probabilities(task.predict(PIXELS, verbose=0))
    assert np.ptp(expected, axis=0).max() > 0.01  # the images matter
    np.testing.assert_allclose(program.load(1)(PIXELS)["scores"], expected, atol=1e-5)
    assert program.engine == "litert"
    assert "set resize: crop" in program.note
    assert "resize" not in model_runs.built(folder, resize="crop").note


# Literal marks, from which tests/docs/models_table.py writes a table.
CLASSIFIERS = [
    (hub_presets.resnet,
     pytest.mark.runs("KerasHub classifier preset: ResNet", "`model: path/to/preset/`")),
    (hub_presets.mobilenet,
     pytest.mark.runs("KerasHub classifier preset: MobileNet", "`model: path/to/preset/`")),
    (hub_presets.efficientnet,
     pytest.mark.runs("KerasHub classifier preset: EfficientNet", "`model: path/to/preset/`")),
    (hub_presets.densenet,
     pytest.mark.runs("KerasHub classifier preset: DenseNet", "`model: path/to/preset/`")),
    (hub_presets.vgg,
     pytest.mark.runs("KerasHub classifier preset: VGG", "`model: path/to/preset/`")),
    (hub_presets.xception,
     pytest.mark.runs("KerasHub classifier preset: Xception", "`model: path/to/preset/`")),
    (hub_presets.swin,
     pytest.mark.runs("KerasHub classifier preset: Swin Transformer", "`model: path/to/preset/`")),
    (hub_presets.deit,
     pytest.mark.runs("KerasHub classifier preset: DeiT", "`model: path/to/preset/`")),
]  # fmt: skip
SEGMENTERS = [
    (hub_presets.deeplab,
     pytest.mark.runs("KerasHub segmenter preset: DeepLabV3", "`model: path/to/preset/`")),
    (hub_presets.segformer,
     pytest.mark.runs("KerasHub segmenter preset: SegFormer", "`model: path/to/preset/`")),
]  # fmt: skip
DETECTORS = [
    (hub_presets.retinanet,
     pytest.mark.runs("KerasHub detector preset: RetinaNet",
                      "`task: detection`, `model: path/to/preset/`")),
    (hub_presets.d_fine,
     pytest.mark.runs("KerasHub detector preset: D-FINE",
                      "`task: detection`, `model: path/to/preset/`")),
]  # fmt: skip


def presets(rows):
    """Return the parameters of a test: functions that build a task, with their mark."""
    params = [pytest.param(build, id=build.__name__, marks=mark) for build, mark in rows]
    return pytest.mark.parametrize("build", params)


@pytest.mark.soak
@presets(CLASSIFIERS)
def test_classifiers_of_other_families(build, tmp_path):
    task = hub_presets.save(build, tmp_path)
    assert stored_task(tmp_path) == "classification"
    expected = task.predict(PIXELS, verbose=0)
    if build is not hub_presets.resnet:  # which ends in a softmax
        expected = probabilities(expected)
    actual = model_runs.outputs(tmp_path, PIXELS)["scores"]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.soak
@presets(SEGMENTERS)
def test_segmenters(build, tmp_path):
    task = hub_presets.save(build, tmp_path)
    assert stored_task(tmp_path) == "segmentation"
    expected = task.predict(PIXELS, verbose=0)
    keys = {"task": "segmentation", "mask_size": "model"}
    masks = model_runs.outputs(tmp_path, PIXELS, **keys)["mask"]
    assert len(np.unique(masks)) > 1
    best_two = np.sort(expected, axis=-1)[..., -2:]
    is_clear = best_two[..., 1] - best_two[..., 0] > 1e-4
    np.testing.assert_array_equal(masks[is_clear], expected.argmax(axis=-1)[is_clear])


@pytest.mark.soak
@presets(DETECTORS)
def test_the_boxes_of_a_detector_are_among_the_candidates(build, tmp_path):
    task = hub_presets.save(build, tmp_path)
    assert stored_task(tmp_path) == "detection"
    task.prediction_decoder.confidence_threshold = 0.0
    expected = task.predict(PIXELS, verbose=0)
    actual = model_runs.outputs(tmp_path, PIXELS, task="detection")
    for image in range(len(PIXELS)):
        count = int(np.asarray(expected["num_detections"])[image])
        assert count >= 5
        for box, label, score in zip(
            np.asarray(expected["boxes"])[image][:count, [1, 0, 3, 2]],
            np.asarray(expected["labels"])[image][:count],
            np.asarray(expected["confidence"])[image][:count],
            strict=True,
        ):
            distance = np.abs(actual["boxes"][image] - box).max(axis=1) / max(1, np.abs(box).max())
            distance = distance + np.abs(actual["scores"][image][:, int(label)] - score)
            assert distance.min() < 1e-4, (box, label, score)


@pytest.mark.runs(
    "Keras 3 `.keras` file with layers of KerasHub", "`trust: [keras_hub]` and the scaling"
)
def test_a_keras_file_of_a_task_needs_trust_and_its_scaling(vit, tmp_path):
    task, _ = vit
    path = tmp_path / "task.keras"
    task.save(path)
    with pytest.raises(ModelError, match=r"set trust: \[keras_hub\]"):
        model_runs.built(path)
    backbone_input = (PIXELS / 127.5 - 1).astype("float32")
    expected = probabilities(np.asarray(task(backbone_input)))
    keys = {"trust": ["keras_hub"], "preprocessing": "tf"}
    np.testing.assert_allclose(
        model_runs.outputs(path, PIXELS, **keys)["scores"], expected, atol=1e-5
    )


def spoiled(folder, tmp_path, name, change):
    """Return a copy of a preset with one file changed; None: removed."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file() and (path.name != name or change is not None):
            data = path.read_bytes()
            (copy / path.name).write_bytes(change(data) if path.name == name else data)
    return copy


def renamed(data):
    return data.replace(b"ViTImageClassifier", b"ViTImageKlassifier", 1)


def with_lambda(data):
    config = json.loads(data)
    config["config"]["extra"] = {"class_name": "__lambda__", "config": {"value": "x"}}
    return json.dumps(config).encode()


def foreign(data):
    config = json.loads(data)
    config["config"]["extra"] = {"class_name": "system", "module": "os", "config": {}}
    return json.dumps(config).encode()


def enlarged(data):
    config = json.loads(data)
    config["config"]["num_classes"] = 10**9
    return json.dumps(config).encode()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        pytest.param(
            "task.weights.h5", None, r"has no task\.weights\.h5: it is a backbone without",
            marks=pytest.mark.runs(
                "KerasHub preset of a backbone", "no: it has no trained head; save a task"
            ),
        ),
        ("model.weights.h5", None, r"has no model\.weights\.h5"),
        ("task.json", None, "neither a SavedModel"),
        ("task.json", with_lambda, r"task\.json: it holds a Lambda"),
        ("preprocessor.json", foreign, r"preprocessor\.json: it needs the class 'system' of 'os'"),
        ("task.json", enlarged, "a bomb"),
        ("model.weights.h5", lambda data: data[:500], "damaged"),
    ],
)  # fmt: skip
def test_presets_that_are_not_whole_or_not_safe_are_refused(name, change, message, vit, tmp_path):
    with pytest.raises(ModelError, match=message) as error:
        model_runs.built(spoiled(vit[1], tmp_path, name, change))
    assert "\n" not in str(error.value)


def test_a_preset_by_name_is_read_from_the_cache_only(vit, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=rf"neither in {tmp_path} .*from_preset\('vit_tiny'\)"):
        model_runs.built("keras_hub://vit_tiny")
    cached = tmp_path / "models" / "keras" / "vit" / "keras" / "vit_tiny" / "2"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(vit[1])
    assert model_files.preset_folder("keras_hub://vit_tiny") == str(cached)
    with pytest.raises(ModelError, match="nothing"):
        model_files.preset_folder("keras_hub://../vit_tiny")


def test_kerashub_is_imported_for_presets_only():
    code = (
        "import sys\n"
        "import cvbatch.inference.compile, cvbatch.models.registry\n"
        "assert 'keras_hub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
