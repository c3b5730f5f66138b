"""Networks of ONNX and TFLite files give what their own runtime gives on the same pixels."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from cvbatch.config.explain import parse_explanation
from cvbatch.config.models import ModelConfig
from cvbatch.config.predict import JobConfig
from cvbatch.config.train import TrainModelConfig
from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.distributed.resources import Resources
from cvbatch.inference.programs import BuildRequest, BuiltProgram, identify
from cvbatch.predict.allocation import choose_allocation
from cvbatch.storage.store import Storage
from tests.support import model_files
from tests.support.model_files import CLASSES, classifier, onnx_model, save, segmenter

pytestmark = pytest.mark.keras

SIZE = (24, 32)
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_STD = np.array([0.229, 0.224, 0.225])


def config_of(model, task="classification", **fields):
    return TypeAdapter(ModelConfig).validate_python({"model": model, "task": task, **fields})


def build(model, batch=4, others=(), **fields):
    """Return the program of a job, after a round trip through its file."""
    from cvbatch.inference.compile import build as compile_program

    config, storage = config_of(model, **fields), Storage()
    more = tuple((other, identify(storage, other)) for other in others)
    identity = identify(storage, config)
    request = BuildRequest(config, identity, "litert", "float32", batch, more)
    return BuiltProgram.from_bytes(compile_program(storage, request).to_bytes())


def run(built, pixels):
    """Return the outputs for all images, in batches of the program."""
    program, size = built.load(1), built.batch_size
    parts = [program(pixels[i : i + size]) for i in range(0, len(pixels), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def own_output(path, images):
    """Return what onnxruntime gives, image by image."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["scores"], {"image": x[None]})[0] for x in images])


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def torch_input(pixels):
    """ImageNet's preprocessing of torchvision, in its layout."""
    normal = (pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return normal.transpose(0, 3, 1, 2).astype(np.float32)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).integers(0, 256, (4, *SIZE, 3), np.uint8)


TO_NCHW = [("Transpose", "image", "x", {"perm": [0, 3, 1, 2]})]
SCALED = [("Mul", "image factor", "x")]
FACTOR = {"constants": {"factor": np.float32(1 / 255)}}
HALF = [("Cast", "image", "x", {"to": 1})]
HALF_SCALED = [("Cast", "image", "y", {"to": 1}), ("Mul", "y factor", "x")]


@pytest.mark.parametrize(
    ("model", "fields", "prepare"),
    [
        pytest.param(
            classifier, {"preprocessing": "torch"}, torch_input,
            marks=pytest.mark.runs(
                "ONNX classifier of PyTorch (torchvision, timm)",
                "`model: net.onnx`, `preprocessing: torch`",
            ),
        ),
        pytest.param(
            partial(classifier, TO_NCHW, None, ("batch", *SIZE, 3)), {"preprocessing": "tf"},
            lambda p: p.astype(np.float32) / np.float32(127.5) - 1,
            marks=pytest.mark.runs(
                "ONNX classifier with channels last (of Keras, TensorFlow)",
                "`model: net.onnx`, `preprocessing: tf`",
            ),
        ),
        pytest.param(
            partial(classifier, HALF, None, (1, 3, *SIZE), input_type=10),
            {"preprocessing": "torch"}, lambda p: torch_input(p).astype(np.float16),
            marks=pytest.mark.runs(
                "ONNX file of half precision, or of batch 1",
                "`model: net.onnx`, `preprocessing: torch`",
            ),
        ),
        pytest.param(
            partial(classifier, input_shape=("batch", 3, "height", "width")),
            {"rescale": {"scale": [0.01, 0.02, 0.03], "offset": [-1, -2, -3]},
             "image_size": list(SIZE)},
            lambda p: (p * [0.01, 0.02, 0.03] - [1, 2, 3]).transpose(0, 3, 1, 2).astype("f4"),
            marks=pytest.mark.runs(
                "ONNX file of variable image size, own mean and deviation",
                "`image_size: [H, W]`, `rescale: {scale: [R, G, B], offset: [R, G, B]}`",
            ),
        ),
        pytest.param(
            partial(classifier, HALF_SCALED, None, (None, 3, *SIZE), input_type=2, **FACTOR), {},
            lambda p: np.ascontiguousarray(p.transpose(0, 3, 1, 2)),
            marks=pytest.mark.runs("ONNX file with uint8 pixels as input", "`model: net.onnx`"),
        ),
        pytest.param(
            partial(classifier, SCALED, None, **FACTOR), {},
            lambda p: p.transpose(0, 3, 1, 2).astype("f4"),
            marks=pytest.mark.runs("ONNX file that scales its input", "`model: net.onnx`"),
        ),
    ],
)  # fmt: skip
def test_an_onnx_classifier_gives_its_own_scores(tmp_path, pixels, model, fields, prepare):
    path = save(model(), tmp_path / "net.onnx")
    built = build(path, **fields)
    expected = softmax(own_output(path, prepare(pixels)))
    assert np.ptp(expected, axis=0).max() > 1e-3  # the images differ, so a mix-up would be seen
    np.testing.assert_allclose(run(built, pixels)["scores"], expected, atol=1e-4)
    assert (built.activation, built.spec.input_height) == ("softmax", SIZE[0])
    assert built.spec.weights_sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("last", "fields", "activation"),
    [
        ([("Softmax", "logits", "s"), ("Identity", "s", "scores")], {}, "none"),
        ([("Sigmoid", "logits", "scores")], {"multi_label": True}, "none"),
        ([("LogSoftmax", "logits", "scores")], {}, "softmax"),
    ],
)
def test_the_last_operations_and_the_scores_decide_the_activation(
    tmp_path, pixels, last, fields, activation
):
    path = save(classifier(last=last), tmp_path / "net.onnx")
    built = build(path, preprocessing="torch", **fields)
    own = own_output(path, torch_input(pixels))
    expected = own if activation == "none" else np.exp(own)
    np.testing.assert_allclose(run(built, pixels)["scores"], expected, atol=1e-4)
    assert built.activation == activation


def test_scores_of_unknown_operations_in_0_to_1_need_a_decision(tmp_path):
    last = [("HardSigmoid", "logits", "scores")]
    path = save(classifier(last=last), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"may return probabilities or logits.*set activation"):
        build(path, preprocessing="torch")


LAST_TRANSPOSED = [("Transpose", "m", "scores", {"perm": [0, 2, 3, 1]})]


@pytest.mark.parametrize(
    ("model", "axis"),
    [
        pytest.param(
            segmenter, 1,
            marks=pytest.mark.runs(
                "ONNX segmenter with maps (B, classes, h, w) or (B, h, w, classes)",
                "`task: segmentation`, `preprocessing: torch`",
            ),
        ),
        (partial(segmenter, LAST_TRANSPOSED, (None, 12, 16, CLASSES)), 3),
    ],
)  # fmt: skip
def test_an_onnx_segmenter_gives_its_own_maps(tmp_path, pixels, model, axis):
    import cv2

    path = save(model(), tmp_path / "net.onnx")
    job = {"task": "segmentation", "preprocessing": "torch"}
    found = run(build(path, **job), pixels)
    own = np.moveaxis(own_output(path, torch_input(pixels)), axis, -1)
    np.testing.assert_allclose(found["probabilities"], softmax(own), atol=1e-4)
    maps = np.stack([cv2.resize(m, SIZE[::-1], interpolation=cv2.INTER_LINEAR) for m in own])
    found = run(build(path, mask_size="model", **job), pixels)
    best = np.sort(maps, -1)
    is_clear = best[..., -1] - best[..., -2] > 1e-4
    assert (found["mask"] == maps.argmax(-1))[is_clear].all()


def test_maps_that_fit_both_layouts_need_the_number_of_classes_or_the_key(tmp_path, pixels):
    last = [("Slice", "m start end axis", "scores")]
    axis = {"start": np.array([0, 0, 0]), "end": np.array([4, 4, 4]), "axis": np.array([1, 2, 3])}
    nodes = [("Identity", "image", "x"), model_files.CONV, ("Conv", "c maps", "m"), *last]
    model = onnx_model(nodes, (1, 3, 8, 8), {"scores": (1, 4, 4, 4)}, axis)
    path = save(model, tmp_path / "net.onnx")
    job = {"task": "segmentation", "preprocessing": "torch"}
    with pytest.raises(ModelError, match="set layout: channels_first or channels_last"):
        build(path, **job)
    small = pixels[:, :8, :8]
    own = own_output(path, torch_input(small))
    for layout, axis in (("channels_first", 1), ("channels_last", 3)):
        found = run(build(path, layout=layout, mask_size="model", **job), small)["mask"]
        assert found.shape == (4, 8, 8)
        expected = own.argmax(axis)
        assert (found[:, ::7, ::7] == expected[:, ::3, ::3]).all()  # corners are not interpolated


@pytest.mark.runs(
    "ultralytics YOLO exported to ONNX", "`task: detection`, `rescale: {scale: 0.00392157}`"
)
def test_an_onnx_detector_gives_its_own_boxes(tmp_path):
    """The head (B, 4 + C, N) of a grid of 64, 16 and 4 cells, on an input of 64 × 64."""
    random = np.random.default_rng(6)
    nodes = [
        ("Identity", "image", "x"),
        *model_files.HEAD[:4],
        ("MatMul", "f kernel", "flat"),
        ("Reshape", "flat shape", "table"),
        ("Split", "table sides", "corners logits", {"axis": 1}),
        ("Sigmoid", "logits", "probabilities"),
        ("Concat", "corners probabilities", "scores", {"axis": 1}),
    ]
    constants = {
        "kernel": random.normal(0, 1, (4, 9 * 84)).astype(np.float32),
        "shape": np.array([1, 9, 84]),
        "sides": np.array([4, 5]),
    }
    model = onnx_model(nodes, (1, 3, 64, 64), {"scores": (1, 9, 84)}, constants)
    path = save(model, tmp_path / "net.onnx")
    images = random.integers(0, 256, (3, 64, 64, 3), np.uint8)
    built = build(path, task="detection", rescale={"scale": 1 / 255})
    found = run(built, images)
    own = own_output(path, (images.transpose(0, 3, 1, 2) / 255).astype(np.float32))
    center, sides = own[:, :2].transpose(0, 2, 1), own[:, 2:4].transpose(0, 2, 1)
    corners = np.concatenate([center - sides / 2, center + sides / 2], axis=2)
    np.testing.assert_allclose(found["boxes"], corners, atol=1e-4)
    scores = own[:, 4:].transpose(0, 2, 1)
    best = scores == scores.max(2, keepdims=True)  # a box counts for its best class only
    np.testing.assert_allclose(found["scores"][best], scores[best], atol=1e-4)
    assert built.batch_size == 1


@pytest.mark.runs(
    "ONNX classifier with global average pooling and one dense layer, with heatmaps",
    "`heatmap: {layer: auto}`",
)
def test_heatmaps_are_the_weighted_feature_maps(tmp_path, pixels):
    path = save(classifier(), tmp_path / "net.onnx")
    built = build(path, preprocessing="torch", heatmap={"top_k": 1, "score": "logit"})
    found = run(built, pixels)
    scores = softmax(own_output(path, torch_input(pixels)))
    np.testing.assert_allclose(found["scores"], scores, atol=1e-4)
    import onnx

    model = classifier()
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("features"))
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    features = session.run(["features"], {"image": torch_input(pixels)})[0]
    columns = model_files.weights()["dense"][:, scores.argmax(1)]  # (channels, N)
    maps = np.maximum(np.einsum("nchw,cn->nhw", features, columns), 0)
    maps /= np.maximum(maps.max((1, 2), keepdims=True), 1e-9)
    np.testing.assert_allclose(found["heatmaps"][:, 0], maps, atol=1e-4)
    assert built.spec.heatmap_layer == "head/features"


@pytest.mark.runs(
    "ONNX classifier, with its embedding, and with several outputs",
    "`task: embedding`, `layer: auto` or `output: NAME`",
)
def test_one_pass_gives_scores_and_embeddings(tmp_path, pixels):
    """Sections with the same file share a program; each output has its own section."""
    import onnx
    import onnxruntime

    model = classifier()
    model.graph.output.append(onnx.helper.make_tensor_value_info("f", 1, (None, 4)))
    path = save(model, tmp_path / "net.onnx")
    scores, vectors = onnxruntime.InferenceSession(path).run(None, {"image": torch_input(pixels)})
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    job = {"preprocessing": "torch", "output": "scores"}
    for section in ({"output": "f"}, {"output": "scores", "layer": "auto"}):
        embedding = config_of(path, "embedding", preprocessing="torch", normalize=True, **section)
        built = build(path, others=[embedding], **job)
        found = run(built, pixels)
        np.testing.assert_allclose(found["0_scores"], softmax(scores), atol=1e-4)
        np.testing.assert_allclose(found["1_embedding"], vectors, atol=1e-4)


@pytest.mark.runs(
    "ONNX file with weights beside it (net.onnx.data)", "both in one folder; `model: net.onnx`"
)
def test_weights_beside_the_file_are_read(tmp_path, pixels):
    import onnx

    path = str(tmp_path / "net.onnx")
    options = {"save_as_external_data": True, "location": "net.onnx.data", "size_threshold": 0}
    onnx.save_model(classifier(), path, **options)
    built = build(path, preprocessing="torch")
    expected = softmax(own_output(path, torch_input(pixels)))
    np.testing.assert_allclose(run(built, pixels)["scores"], expected, atol=1e-4)
    before = identify(Storage(), config_of(path)).content
    data = tmp_path / "net.onnx.data"
    data.write_bytes(data.read_bytes()[::-1])
    assert identify(Storage(), config_of(path)).content != before
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelError, match="truncated or belongs to another model"):
        build(path, preprocessing="torch")
    data.unlink()
    with pytest.raises(ModelError, match=r"net\.onnx\.data does not exist; check"):
        build(path, preprocessing="torch")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/b", "..\\x", ""])
def test_weights_outside_the_folder_are_refused(tmp_path, location):
    model = classifier()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    tensor.external_data.add(key="location", value=location)
    path = save(model, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="must be in the folder of the model"):
        identify(Storage(), config_of(path))


def test_images_do_not_change_the_scores_of_others(tmp_path, pixels):
    """A network that quantises with the limits of its whole batch runs image by image."""
    quantised = [
        ("DynamicQuantizeLinear", "image", "q scale zero"),
        ("DequantizeLinear", "q scale zero", "x"),
    ]
    path = save(classifier(quantised), tmp_path / "net.onnx")
    built = build(path, preprocessing="torch")
    assert built.batch_size == 1
    expected = softmax(own_output(path, torch_input(pixels)))
    np.testing.assert_allclose(run(built, pixels)["scores"], expected, atol=1e-4)
    plain = build(save(classifier(), tmp_path / "plain.onnx"), preprocessing="torch")
    alone = plain.load(1)(np.concatenate([pixels[:1], np.zeros_like(pixels[1:])]))["scores"]
    assert plain.batch_size == 4
    np.testing.assert_array_equal(alone[0], run(plain, pixels)["scores"][0])


def suppressed(path):
    nodes = [("Identity", "image", "x"), *model_files.HEAD, ("NonZero", "logits", "n"),
             ("Cast", "n", "scores", {"to": 1})]  # fmt: skip
    return save(onnx_model(nodes, ("batch", 3, *SIZE), {"scores": (2, None)}), path)


def two_inputs(path):
    model = classifier([("Add", "image other", "x")], more_inputs=("other",))
    return save(model, path)


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        pytest.param(
            lambda path: save(classifier(), path), {},
            "does not say which range of numbers its input expects.*set preprocessing: torch",
            marks=pytest.mark.runs(
                "ONNX or TFLite file whose range of input is not visible",
                "no: set `preprocessing` or `rescale`",
            ),
        ),
        pytest.param(
            two_inputs, {"preprocessing": "torch"}, "inputs are image .* other .*one input",
            marks=pytest.mark.runs(
                "ONNX or TFLite file with several inputs", "no: one batch of images only"
            ),
        ),
        (
            lambda path: save(classifier(input_shape=("b", "c", "h", "w")), path),
            {"preprocessing": "torch"}, "without 3 or 1 channels",
        ),
        (
            lambda path: save(classifier(TO_NCHW, None, (1, 3, 24, 3)), path),
            {"preprocessing": "torch"}, "set layout: channels_first or channels_last",
        ),
        (suppressed, {"preprocessing": "torch"}, "first side must be the batch"),
        (
            lambda path: save(classifier(TO_NCHW, None, (None, *SIZE, 3)), path),
            {"preprocessing": "torch", "image_size": [24, 24]}, "accepts only",
        ),
        (
            lambda path: save(classifier(HALF, None, (None, 3, *SIZE), input_type=2), path),
            {"preprocessing": "torch"}, "input of whole numbers .uint8.*remove preprocessing",
        ),
        (
            lambda path: save(
                classifier(last=[("Mul", "logits logits", "scores")]), path
            ), {"preprocessing": "torch", "heatmap": {}}, "heatmap and layer are possible only",
        ),
        (
            lambda path: path.write_bytes(classifier().SerializeToString()[:-300]) and str(path),
            {"preprocessing": "torch"}, "not an ONNX file, or is truncated",
        ),
        (lambda path: path.write_bytes(b"PK") and str(path), {}, "is not an ONNX"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_in_one_sentence(tmp_path, make, fields, message):
    path = make(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=message) as error:
        build(path, **fields)
    assert "\n" not in str(error.value)


def test_an_operation_that_onnxruntime_lacks_is_refused(tmp_path):
    model = classifier()
    model.graph.node[1].domain = "my.operations"
    model.opset_import.add(domain="my.operations", version=1)
    path = save(model, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"net\.onnx'? cannot be used: onnxruntime does not load"):
        build(path, preprocessing="torch")


def test_class_names_of_ultralytics_are_used(tmp_path):
    model = classifier()
    model.metadata_props.add(key="names", value=str(dict(enumerate("abcde"))))
    path = save(model, tmp_path / "net.onnx")
    assert identify(Storage(), config_of(path)).classes == tuple("abcde")
    assert identify(Storage(), config_of(path, classes=["x"])).classes == ("x",)
    model.metadata_props[0].value = "__import__('os').system('true')"
    save(model, tmp_path / "net.onnx")
    assert identify(Storage(), config_of(path)).classes is None


def test_the_version_of_the_runtime_is_part_of_the_programs_key(tmp_path, monkeypatch):
    from cvbatch.core import extras

    config = config_of(save(classifier(), tmp_path / "net.onnx"), preprocessing="torch")
    request = BuildRequest(config, identify(Storage(), config), "litert", "float32", 4)
    before = request.key
    assert before == request.key
    real = extras.version
    monkeypatch.setattr(
        extras, "version", lambda name: "9.9" if name == "onnxruntime" else real(name)
    )
    assert request.key != before


@pytest.mark.parametrize(
    "key", [{"engine": "tensorflow"}, {"gpus_per_actor": 1}, {"precision": "mixed_float16"}]
)
def test_keys_of_keras_networks_are_refused(key):
    job = {"source": {"uri": "a"}, "sink": {"uri": "b"}, "run": key}
    models = [{"task": "classification", "model": "net.onnx"}]
    with pytest.raises(ValidationError, match=rf"run\.{next(iter(key))}.*only for Keras networks"):
        JobConfig(**job, models=models)


def test_a_cluster_with_gpus_runs_them_on_cpus():
    job = JobConfig(source={"uri": "a"}, sink={"uri": "b"}, models=[config_of("net.onnx")])
    allocation = choose_allocation(job, "images", Resources(4, 1), 3)
    assert (allocation.gpus_per_actor, allocation.arrangement) == (0, "fused")


@pytest.mark.runs("ONNX or TFLite file in `cvbatch train` and `cvbatch explain`", "no: Keras only")
def test_training_and_explanation_need_a_keras_network():
    model = {"task": "classification", "model": "net.tflite"}
    job = {"source": {"uri": "a"}, "sink": {"uri": "b"}, "model": model}
    with pytest.raises(ConfigError, match=r"net\.tflite.*can only predict"):
        parse_explanation(job | {"weights": {}})
    with pytest.raises(ValidationError, match=r"net\.tflite.*can only predict"):
        TrainModelConfig(**model)


def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch):
    path = save(classifier(), tmp_path / "net.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModelError, match=re.escape("pip install 'cvbatch[onnx]'")):
        identify(Storage(), config_of(path))


# ---------------------------------------------------------------- TFLite


@pytest.fixture(scope="module")
def network():
    """A Keras classifier of inputs -1..1."""
    import keras

    keras.utils.set_random_seed(4)
    return keras.Sequential(
        [
            keras.Input((*SIZE, 3)),
            keras.layers.Conv2D(6, 3, strides=2, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(CLASSES, kernel_initializer="random_normal", activation="softmax"),
        ]
    )


def own_tflite(path, images):
    """Return what LiteRT gives, image by image, with the conversions of its documentation."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for image in images:
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(result["index"])[0])
    scale, zero = result["quantization"]
    array = np.stack(outputs).astype(np.float32)
    return (array - zero) * scale if scale else array


@pytest.mark.parametrize(
    ("quantised", "dtype", "fields", "stored"),
    [
        pytest.param(
            False, "", {"preprocessing": "tf"}, lambda p: p.astype(np.float32) / 127.5 - 1,
            marks=pytest.mark.runs("TFLite classifier", "`model: net.tflite`, `preprocessing: tf`"),
        ),
        pytest.param(
            True, "", {"preprocessing": "tf"}, lambda p: p.astype(np.float32) / 127.5 - 1,
            marks=pytest.mark.runs(
                "TFLite classifier with quantised weights",
                "`model: net.tflite`, `preprocessing: tf`",
            ),
        ),
        pytest.param(
            True, "uint8", {}, lambda p: p,
            marks=pytest.mark.runs("TFLite classifier of uint8 or int8", "`model: net.tflite`"),
        ),
        (True, "int8", {}, lambda p: (p.astype(np.int16) - 128).astype(np.int8)),
    ],
)  # fmt: skip
def test_a_tflite_classifier_gives_its_own_scores(
    tmp_path, pixels, network, quantised, dtype, fields, stored
):
    random = np.random.default_rng(5)
    images = random.uniform(-1, 1, (20, *SIZE, 3)).astype(np.float32) if quantised else None
    path = model_files.tflite(network, tmp_path / "net.tflite", images, dtype)
    built = build(path, **fields)
    expected = own_tflite(path, stored(pixels))
    np.testing.assert_allclose(run(built, pixels)["scores"], expected, atol=1e-4)
    assert built.activation == "none"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:600], "damaged or truncated|not load"),
        (lambda content: content[:4] + b"XXXX" + content[8:], "not a TFLite file"),
        (lambda content: b"", "not a TFLite file"),
    ],
)
def test_damaged_tflite_files_are_refused(tmp_path, network, damage, message):
    path = tmp_path / "net.tflite"
    model_files.tflite(network, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=message):
        build(str(path), preprocessing="tf")


@pytest.mark.runs(
    "TFLite file with Flex or custom operations", "no: convert it with built-in operations only"
)
def test_custom_operations_are_refused(tmp_path):
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, *SIZE, 3))])
    def network(images):
        return tf.math.erfinv(tf.reduce_mean(images, (1, 2)))

    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
    converter.allow_custom_ops = True
    path = tmp_path / "net.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(ModelError, match="operations that LiteRT lacks: Erfinv"):
        build(str(path), preprocessing="tf")
