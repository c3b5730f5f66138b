"""No model file whatever runs code, reads or writes elsewhere, or makes room for what it claims."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from cvbatch.core.errors import ModelError
from tests.security import models

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's variables do not know NumPy 2's `copy`, and Keras passes it.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5:UserWarning"),
]
ENDINGS = ("keras", "weights.h5", "h5")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the honest network in every kind of file."""
    folder = tmp_path_factory.mktemp("honest")
    network = models.network()
    network.save(folder / "net.keras")
    network.save_weights(folder / "net.weights.h5")
    network.save(folder / "net.h5")
    return folder


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is not there, unless something was run; the work folder is empty, too."""
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
    """Return the one sentence a file is refused by; nothing else may come of it."""
    before = {p: p.stat().st_mtime_ns for p in canary.parent.rglob("*")}
    with pytest.raises(ModelError) as error:
        load(path)
    assert not canary.exists()
    assert {p: p.stat().st_mtime_ns for p in canary.parent.rglob("*")} == before
    said = str(error.value)
    assert "s3://b/net" in said and "\n" not in said and len(said) < 700, said
    return said


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_honest_file_is_read(honest: Path, ending: str) -> None:
    load(honest / f"net.{ending}")


def test_the_lambda_would_run_if_it_were_let(honest: Path, canary: Path) -> None:
    import keras

    config = models.bad_configs(honest / "net.keras", canary)["layer Lambda"]
    path = canary.parent / "net.keras"
    models.write(path, {**models.members(honest / "net.keras"), "config.json": config})
    keras.saving.load_model(path, compile=False, safe_mode=False)(np.ones((1, 3, 3, 3)))
    assert canary.exists()


def test_no_config_asks_for_code(honest: Path, canary: Path) -> None:
    held = models.members(honest / "net.keras")
    bad = models.bad_configs(honest / "net.keras", canary)
    path = canary.parent / "net.keras"
    said = {}
    for name, config in bad.items():
        models.write(path, {**held, "config.json": config})
        said[name] = refusal(path, canary)
    assert len(said) >= 30
    for name in ("activation lambda", "layer Lambda", "layer Lambda by another name"):
        assert "a Lambda" in said[name] and "could run any code" in said[name]
    for name in ("activation system", "layer of a module", "activation ours in name"):
        assert "code from outside is not run" in said[name]
    assert "4 TB" not in said["layer of 4 TB"] and "a bomb" in said["layer of 4 TB"]
    assert "a bomb" in said["layer of 100 GB"]


def test_no_archive_climbs_or_bursts(honest: Path, canary: Path) -> None:
    path = canary.parent / "net.keras"
    said = {}
    for name, data in models.bad_archives(honest / "net.keras", canary).items():
        path.write_bytes(data)
        said[name] = refusal(path, canary)
    for name, words in said.items():
        if name.startswith("member"):
            assert "which is not part of a .keras file" in words
        if "bomb" in name or name == "a claim of 4 GB":
            assert "a bomb" in words
    assert "is a link" in said["a link"] and "twice" in said["config twice"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_weights_are_numbers_in_the_file_itself(honest: Path, canary: Path, ending: str) -> None:
    own = canary.parent / "own.h5"
    path = canary.parent / f"net.{ending}"
    for name, spoil in models.bad_weights(canary).items():
        held = {}
        if ending == "keras":
            held = models.members(honest / "net.keras")
            own.write_bytes(held["model.weights.h5"])
        else:
            shutil.copy(honest / f"net.{ending}", own)
        with h5py.File(own, "r+") as file:
            if ending == "h5":
                move_kernel(file)
            spoil(file)
        if ending == "keras":
            models.write(path, {**held, "model.weights.h5": own.read_bytes()})
        else:
            shutil.copy(own, path)
        said = refusal(path, canary)
        assert "refused: its" in said or "refused: it holds" in said, (name, said)


def move_kernel(file: h5py.File) -> None:
    """Put the kernel of a Keras 2 file where that of a Keras 3 file lies, as well."""
    file[models.KERNEL] = np.zeros(models.SHAPE, np.float32)


def test_a_group_inside_itself_is_walked_once(honest: Path, canary: Path) -> None:
    path = canary.parent / "net.weights.h5"
    shutil.copy(honest / "net.weights.h5", path)
    with h5py.File(path, "r+") as file:
        models.harmless(file)
    load(path)


def test_an_old_file_with_a_lambda_is_refused(honest: Path, canary: Path) -> None:
    path = canary.parent / "net.h5"
    shutil.copy(honest / "net.h5", path)
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
    whole, path = Path(sys.argv[1], f"net.{ending}").read_bytes(), Path(sys.argv[2], f"n.{ending}")
    refused = 0
    for turn in range(60):
        damaged = bytearray(whole)
        if turn < 20:
            del damaged[len(whole) * turn // 20 :]
        else:
            for at in rng.integers(0, min(len(whole), 4000), 6):
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


def test_a_damaged_file_is_refused_or_read(honest: Path, canary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAMAGING, str(honest), str(canary.parent)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
