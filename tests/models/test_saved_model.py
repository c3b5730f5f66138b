"""SavedModel folders: predictions of the original network, and operations that are refused."""

from __future__ import annotations

import hashlib
import subprocess

import numpy as np
import pytest

from cvbatch.core.errors import ModelError
from cvbatch.models import model_files
from cvbatch.storage.store import Storage
from tests.support import model_runs, networks

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PIXELS = networks.random_images(2, (32, 32))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a classifier and its folder, as model.export writes it."""
    model = networks.nested_classifier()
    folder = tmp_path_factory.mktemp("exported")
    model.export(folder, verbose=False)
    return model, folder


@pytest.mark.runs("TensorFlow SavedModel (`model.export`)", "`model: path/to/folder/`")
@pytest.mark.parametrize("engine", ["litert", "tensorflow"])
def test_an_exported_folder_predicts_what_the_network_does(exported, engine):
    model, folder = exported
    program = model_runs.built(f"{folder}/", len(PIXELS), engine)
    expected = model.predict(PIXELS.astype("float32"), verbose=0)
    np.testing.assert_allclose(program.load(1)(PIXELS)["scores"], expected, atol=1e-5)
    assert program.engine == engine
    assert "softmax" in program.activation_reason
    assert program.spec.name == folder.name
    assert len(program.spec.weights_sha256) == 64


@pytest.mark.runs(
    "TensorFlow SavedModel (`tf.saved_model.save`) of a function with several outputs",
    "`model: path/to/folder/`, `output: NAME`, `image_size:` if it is variable",
)
def test_a_signature_with_a_variable_size_and_two_outputs(tmp_path):
    import tensorflow as tf

    model = networks.two_headed()

    class Module(tf.Module):
        def __init__(self):
            self.variables_of_model = model.variables

        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])
        def serve(self, images):
            resized = tf.image.resize(tf.cast(images, tf.float32), (32, 32))
            return model(resized, training=False)

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "net"), signatures=module.serve)
    pixels = networks.random_images(2, (48, 40))
    expected = {key: value.numpy() for key, value in module.serve(pixels).items()}
    keys = {"image_size": [48, 40], "activation": "none"}
    with pytest.raises(ModelError, match="accepts any image size"):
        model_runs.built(tmp_path / "net")
    scores = model_runs.outputs(tmp_path / "net", pixels, output="classes", **keys)["scores"]
    np.testing.assert_allclose(scores, expected["classes"], atol=1e-5)
    keys["task"] = "segmentation"
    maps = model_runs.outputs(tmp_path / "net", pixels, **keys)["probabilities"]
    np.testing.assert_allclose(maps, expected["maps"], atol=1e-5)
    masks = model_runs.outputs(tmp_path / "net", pixels, mask_size="model", **keys)["mask"]
    assert masks.shape == (2, 48, 40)


def test_a_signature_with_a_fixed_batch_gives_a_program_of_that_batch(tmp_path):
    import tensorflow as tf

    model = networks.nested_classifier()

    @tf.function(input_signature=[tf.TensorSpec((1, 32, 32, 3), tf.float32)])
    def serve(images):
        return {"scores": model(images, training=False)}

    module = tf.Module()
    module.model_variables, module.serve = model.variables, serve
    tf.saved_model.save(module, str(tmp_path / "net"), signatures=serve)
    expected = model.predict(PIXELS[:1].astype("float32"), verbose=0)
    scores = model_runs.outputs(tmp_path / "net", PIXELS[:1])["scores"]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert model_runs.built(tmp_path / "net", batch=2).batch_size == 1


def dangerous_functions():
    import tensorflow as tf

    def reads(images):
        return images + tf.strings.to_number(tf.io.read_file("/etc/hostname"))

    def writes(images):
        with tf.control_dependencies([tf.io.write_file("canary", "x")]):
            return tf.identity(images)

    def runs_python(images):
        return tf.numpy_function(lambda x: x, [images], tf.float32)

    def prints(images):
        tf.print(images, output_stream="file://canary")
        return images

    return {"ReadFile": reads, "WriteFile": writes, "PyFunc": runs_python, "PrintV2": prints}


@pytest.mark.runs(
    "SavedModel that reads or writes files, or runs Python", "no: the operation is named"
)
@pytest.mark.parametrize("op", ["ReadFile", "WriteFile", "PyFunc", "PrintV2"])
def test_operations_that_leave_the_graph_are_refused(op, tmp_path, monkeypatch):
    import tensorflow as tf

    monkeypatch.chdir(tmp_path)
    function = dangerous_functions()[op]
    signature = [tf.TensorSpec((None, 8, 8, 3), tf.float32)]
    module = tf.Module()
    module.serve = tf.function(function, input_signature=signature, autograph=False)
    tf.saved_model.save(module, "net", signatures=module.serve)
    with pytest.raises(ModelError, match=f"the operation '{op}'"):
        model_runs.built("./net")
    assert not (tmp_path / "canary").exists()


def test_a_saving_function_that_the_signature_calls_is_not_run(exported, tmp_path):
    """The functions that save, which every SavedModel has, are removed: a call of one fails."""
    import shutil

    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(exported[1], tmp_path / "net")
    path = tmp_path / "net" / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    library = content.meta_graphs[0].graph_def.library
    names = [function.signature.name for function in library.function]
    saving = next(name for name in names if "traced_save" in name)
    for function in library.function:
        for node in function.node_def:
            if "PartitionedCall" in node.op and "wrapper" in function.signature.name:
                node.attr["f"].func.name = saving
    path.write_bytes(content.SerializeToString())
    with pytest.raises(ModelError, match="cannot be loaded as a SavedModel"):
        model_runs.built(tmp_path / "net")


def test_a_folder_has_the_sha256_of_its_lines_and_is_pinned(exported):
    _, folder = exported
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum"
    lines = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=True)
    digest = hashlib.sha256(lines.stdout).hexdigest()
    assert model_files.model_sha256(Storage(), str(folder)) == digest
    with pytest.raises(ModelError, match=f"has the SHA-256 {digest}, not 0000"):
        model_runs.built(folder, sha256="0" * 64)


def test_only_the_precision_of_a_graph_of_layers_can_be_changed(exported):
    import shutil
    import tempfile
    from pathlib import Path

    import keras

    from cvbatch.models.precision import with_precision
    from cvbatch.models.saved_model import load_saved_model

    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(exported[1], Path(folder) / "net")
        network = load_saved_model("net/", copy)
    for model in (network, keras.Model(name="subclassed")):
        with pytest.raises(ModelError, match=f"{model.name}' is not a graph.*precision: float32"):
            with_precision(model, "mixed_float16")


def test_a_graph_without_layers_is_neither_trained_nor_explained(exported):
    from cvbatch.config.explain import parse_explanation
    from cvbatch.config.train import parse_training
    from cvbatch.explain.introspection import build_network
    from cvbatch.inference.programs import BuildRequest, identify
    from cvbatch.train import network

    model = {"task": "classification", "model": f"{exported[1]}/"}
    places = {"source": {"uri": "i"}, "sink": {"uri": "o"}}
    explanation = parse_explanation({"model": model, "gradcam": {}, **places})
    identity = identify(Storage(), explanation.model)
    request = BuildRequest(explanation.model, identity, "tensorflow", "float32", 1)
    with pytest.raises(ModelError, match="a graph without layers, which only cvbatch predict"):
        build_network(Storage(), request)
    training = parse_training({"model": model, **places})
    with pytest.raises(ModelError, match="a graph without layers, which only cvbatch predict"):
        network._initial_model(Storage(), training, ("a",), None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "does not exist|is empty"),
        (["notes.txt"], r"neither a SavedModel .* nor a KerasHub preset .* contains notes\.txt"),
        (["saved_model.pb"], "damaged|of TensorFlow 1"),
    ],
)
def test_other_folders_are_refused(names, message, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(b"no protocol buffer")
    with pytest.raises(ModelError, match=message):
        model_runs.built(f"{tmp_path}/")
