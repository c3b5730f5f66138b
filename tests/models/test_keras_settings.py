"""Keras' settings in the environment and in keras.json change nothing."""

import contextlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from cvbatch.cli.main import main
from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ModelError
from cvbatch.inference import builder, programs
from cvbatch.models import keras_settings
from cvbatch.storage.store import Storage

pytestmark = pytest.mark.keras


def program_outputs(path):
    """Outputs of a network from a file and of an untrained one on the same pixels, as lists."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    models = [
        {"task": "classification", "model": path},
        {"task": "segmentation", "model": "encoder_decoder", "weights": "random"}
        | {"classes": ["a", "b"], "image_size": [32, 32]},
    ]
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": models})
    results = []
    for config in job.models:
        identity = programs.identify(Storage(), config)
        request = programs.BuildRequest(config, identity, "litert", "float32", 1)
        program = builder.build(Storage(), request)
        outputs = program.load(1)(pixels)
        results += [program.spec.weights_sha256, {k: v.tolist() for k, v in outputs.items()}]
    listing = io.StringIO()
    with contextlib.redirect_stdout(listing):
        main(["models", "demo_detector", "--json"])
    layers = json.loads(listing.getvalue())["layers"]
    # without the names, which Keras numbers in each process
    return [*results, [(layer["kind"], layer["output_shapes"]) for layer in layers]]


@pytest.mark.process
def test_rows_and_listings_do_not_depend_on_the_users_settings(keras_files, tmp_path):
    settings = {"floatx": "float16", "image_data_format": "channels_first", "epsilon": 0.1}
    (tmp_path / "keras.json").write_text(json.dumps(settings | {"backend": "torch"}))
    path = str(keras_files / "nested_classifier.keras")
    code = f"import json; from {__name__} import *; print(json.dumps(program_outputs({path!r})))"
    hostile = {"KERAS_BACKEND": "jax", "KERAS_NNX_ENABLED": "1", "KERAS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | hostile
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(json.dumps(program_outputs(path)))


@pytest.mark.process
def test_an_invalid_keras_json_is_refused_with_one_sentence(keras_files, tmp_path):
    (tmp_path / "keras.json").write_text('{"image_data_format": "sideways"}')
    command = [sys.executable, "-m", "cvbatch", "models", "MobileNetV2"]
    env = os.environ | {"KERAS_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert "sideways" in done.stderr
    assert "delete keras.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("backend", "jax"), ("floatx", "float16"), ("image_data_format", "channels_first")],
)
def test_keras_of_the_users_process_is_refused_and_not_changed(monkeypatch, name, value):
    keras = keras_settings.import_keras()
    monkeypatch.setattr(keras.config, name, lambda: value)
    before = keras.backend.floatx(), keras.backend.image_data_format()
    with pytest.raises(ModelError, match=f"{name} '{value}'"):
        keras_settings.import_keras()
    assert (keras.backend.floatx(), keras.backend.image_data_format()) == before


def test_the_environment_is_restored(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras_settings.import_keras()
    assert os.environ["KERAS_BACKEND"] == "jax"
    assert "KERAS_NNX_ENABLED" not in os.environ


def test_a_process_of_cvbatch_applies_its_settings_to_imported_keras():
    keras = keras_settings.import_keras()
    keras.config.set_floatx("float16")
    try:
        keras_settings.own_keras()
        assert keras.config.floatx() == "float32"
    finally:
        keras.config.set_floatx("float32")
