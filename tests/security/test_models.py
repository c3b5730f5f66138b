"""Malicious model files run no code, access no other file, and allocate no false sizes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from cvbatch.core.errors import ModelError
from cvbatch.models import file_safety
from cvbatch.models.file_safety import inspect_model_file
from tests.security import models

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5:UserWarning"),
]
ENDINGS = ("keras", "weights.h5", "h5")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the valid network in every file format."""
    folder = tmp_path_factory.mktemp("valid")
    network = models.network()
    network.save(folder / "net.keras")
    network.save_weights(folder / "net.weights.h5")
    network.save(folder / "net.h5")
    return folder


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that exists only if code was run; the working directory is empty, too."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "canary"


def load(path: Path) -> None:
    from cvbatch.models.registry import load_file
    from cvbatch.models.weights import load_weights

    if path.name.endswith(".keras"):
        load_file("s3://b/net", path)
    else:
        load_weights(models.network(), "net", "s3://b/net", path)


def refusal(path: Path, canary: Path) -> str:
    """Return the message by which a file is refused; check that it has no other effect."""
    before = {p: p.stat().st_mtime_ns for p in canary.parent.rglob("*")}
    with pytest.raises(ModelError) as error:
        load(path)
    assert not canary.exists()
    assert {p: p.stat().st_mtime_ns for p in canary.parent.rglob("*")} == before
    message = str(error.value)
    assert "s3://b/net" in message and "\n" not in message and len(message) < 700, message
    return message


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_valid_file_is_loaded(valid: Path, ending: str) -> None:
    load(valid / f"net.{ending}")


def test_the_lambda_runs_without_safe_mode(valid: Path, canary: Path) -> None:
    import keras

    config = models.bad_configs(valid / "net.keras", canary)["layer Lambda"]
    path = canary.parent / "net.keras"
    models.write(path, {**models.members(valid / "net.keras"), "config.json": config})
    keras.saving.load_model(path, compile=False, safe_mode=False)(np.ones((1, 3, 3, 3)))
    assert canary.exists()


def test_configs_with_code_are_refused(valid: Path, canary: Path) -> None:
    members = models.members(valid / "net.keras")
    bad = models.bad_configs(valid / "net.keras", canary)
    path = canary.parent / "net.keras"
    messages = {}
    for name, config in bad.items():
        models.write(path, {**members, "config.json": config})
        messages[name] = refusal(path, canary)
    assert len(messages) >= 30
    for name in ("activation lambda", "layer Lambda", "layer Lambda by another name"):
        assert "a Lambda" in messages[name] and "could run any code" in messages[name]
    for name in ("activation system", "layer of a module", "activation ours in name"):
        assert "code from outside is not run" in messages[name]
    assert "4 TB" not in messages["layer of 4 TB"] and "a bomb" in messages["layer of 4 TB"]
    assert "a bomb" in messages["layer of 100 GB"]


@pytest.mark.parametrize("is_nested", [False, True])
def test_more_layers_than_any_network_has_are_refused(
    valid: Path, canary: Path, is_nested: bool
) -> None:
    members = models.members(valid / "net.keras")
    path = canary.parent / "net.keras"
    models.write(path, {**members, "config.json": models.deep_config(4_990, is_nested=is_nested)})
    inspect_model_file(path, "s3://b/net.keras")
    models.write(path, {**members, "config.json": models.deep_config(20_000, is_nested=is_nested)})
    started = time.process_time()
    assert "layers, and the limit is 5,000" in refusal(path, canary)
    assert time.process_time() - started < 5  # building them takes more than a minute


def test_large_compressed_weights_are_refused(
    valid: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = models.members(valid / "net.keras")
    path = canary.parent / "net.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    load(path)
    size = len(members["model.weights.h5"])
    monkeypatch.setattr(file_safety, "_MAX_COMPRESSED_WEIGHTS", size - 1)
    assert f"its weights of {size:,} bytes are compressed" in refusal(path, canary)


def test_malformed_archives_are_refused(valid: Path, canary: Path) -> None:
    path = canary.parent / "net.keras"
    messages = {}
    for name, data in models.bad_archives(valid / "net.keras", canary).items():
        path.write_bytes(data)
        messages[name] = refusal(path, canary)
    for name, message in messages.items():
        if name.startswith("member"):
            assert "which is not part of a .keras file" in message
        if "bomb" in name or name == "a claim of 4 GB":
            assert "a bomb" in message
    assert "is a link" in messages["a link"] and "twice" in messages["config twice"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_weights_outside_the_file_are_refused(valid: Path, canary: Path, ending: str) -> None:
    weights = canary.parent / "weights.h5"
    path = canary.parent / f"net.{ending}"
    for name, spoil in models.bad_weights(canary).items():
        members = {}
        if ending == "keras":
            members = models.members(valid / "net.keras")
            weights.write_bytes(members["model.weights.h5"])
        else:
            shutil.copy(valid / f"net.{ending}", weights)
        with h5py.File(weights, "r+") as file:
            if ending == "h5":
                move_kernel(file)
            spoil(file)
        if ending == "keras":
            models.write(path, {**members, "model.weights.h5": weights.read_bytes()})
        else:
            shutil.copy(weights, path)
        message = refusal(path, canary)
        assert "refused: its" in message or "refused: it holds" in message, (name, message)


def move_kernel(file: h5py.File) -> None:
    """Copy the kernel of a Keras 2 file to the path that a Keras 3 file uses."""
    file[models.KERNEL] = np.zeros(models.SHAPE, np.float32)


def test_a_group_inside_itself_is_visited_once(valid: Path, canary: Path) -> None:
    path = canary.parent / "net.weights.h5"
    shutil.copy(valid / "net.weights.h5", path)
    with h5py.File(path, "r+") as file:
        models.harmless(file)
    load(path)


def test_an_old_file_with_a_lambda_is_refused(valid: Path, canary: Path) -> None:
    path = canary.parent / "net.h5"
    shutil.copy(valid / "net.h5", path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].append(models.bad_layers(canary)["Lambda"])
        file.attrs["model_config"] = json.dumps(config)
    assert "a Lambda layer" in refusal(path, canary)


DAMAGING = """
import faulthandler, sys
import numpy as np
from pathlib import Path
from cvbatch.core.errors import ModelError
from tests.security.test_models import ENDINGS, load
faulthandler.enable()
faulthandler.dump_traceback_later(100, exit=True)
rng = np.random.default_rng(3)
for ending in ENDINGS:
    original = Path(sys.argv[1], f"net.{ending}").read_bytes()
    path = Path(sys.argv[2], f"n.{ending}")
    refused = 0
    for turn in range(60):
        damaged = bytearray(original)
        if turn < 20:
            del damaged[len(original) * turn // 20 :]
        else:
            for at in rng.integers(0, min(len(original), 4000), 6):
                damaged[at] = rng.choice([0, 255, 127, damaged[at] ^ 1])
        path.write_bytes(damaged)
        try:
            load(path)
        except ModelError as error:
            assert "\\n" not in str(error), error
            refused += 1
    print(ending, refused)
    assert refused >= 20
"""


def test_a_damaged_file_is_refused_or_loaded(valid: Path, canary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAMAGING, str(valid), str(canary.parent)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
