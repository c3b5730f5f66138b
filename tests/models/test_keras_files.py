"""Files of Keras networks: classes of trusted modules, what was compiled, Lambda layers."""

from __future__ import annotations

import json
import re
import sys
import zipfile

import numpy as np
import pytest

from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.models import trusted_modules
from tests.docs.models_table import PAGE
from tests.support import model_runs
from tests.support.networks import random_images

pytestmark = [
    pytest.mark.keras,
    # TensorFlow variables do not support the `copy` argument of NumPy 2, which Keras passes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
MODULE = """
import keras

@keras.saving.register_keras_serializable("{name}")
class Double(keras.layers.Layer):
    def call(self, x):
        return 2 * x

class Plain(keras.layers.Layer):
    def call(self, x):
        return 3 * x

@keras.saving.register_keras_serializable("{name}")
def focal(true, predicted):
    return keras.ops.mean(true - predicted)
"""
PIXELS = random_images(2, (12, 12))


@pytest.fixture
def layer_module(tmp_path, monkeypatch, request):
    """A module of the user, which no distribution contains; its name is that of the test."""
    name = re.sub(r"\W", "_", f"layers_{request.node.name}")[:40]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / f"{name}.py").write_text(MODULE.format(name=name))
    monkeypatch.syspath_prepend(tmp_path / "src")
    return name


def network(*layers):
    import keras

    keras.utils.set_random_seed(0)
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")]
    first = [keras.Input((12, 12, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(6, 3)]
    return keras.Sequential([*first, *layers, *head])


def forget(name):
    """Undo the import of a module and what it registered, as in a new process."""
    import keras

    sys.modules.pop(name, None)
    registered = keras.saving.get_custom_objects()
    for key in [key for key in registered if key.startswith(f"{name}>")]:
        del registered[key]


@pytest.mark.runs("Keras 3 `.keras` file with layers of an installed package", "`trust: [PACKAGE]`")
@pytest.mark.parametrize("kind", ["Double", "Plain"])
def test_layers_of_a_trusted_module_are_built(kind, layer_module, tmp_path):
    import importlib

    model = network(getattr(importlib.import_module(layer_module), kind)())
    path = tmp_path / "net.keras"
    model.save(path)
    expected = model.predict(PIXELS, verbose=0)
    forget(layer_module)
    with pytest.raises(ModelError, match=rf"set trust: \[{layer_module}\]"):
        model_runs.outputs(path, PIXELS)
    forget(layer_module)
    scores = model_runs.outputs(path, PIXELS, trust=[layer_module])["scores"]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_module_that_is_not_installed_or_a_path_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"'no_such_module' cannot be imported.*on all nodes"):
        trusted_modules.versions(["no_such_module.layers"])
    with pytest.raises(ConfigError, match="trust"):
        model_runs.built(tmp_path / "net.keras", trust=["../layers.py"])


def test_versions_are_those_of_distributions_or_hashes_of_sources(layer_module, tmp_path):
    import importlib.metadata

    first = trusted_modules.versions(["numpy.linalg", layer_module])
    assert first["numpy.linalg"] == f"numpy {importlib.metadata.version('numpy')}"
    assert layer_module not in sys.modules
    with (tmp_path / "src" / f"{layer_module}.py").open("a") as file:
        file.write("\n# changed")
    second = trusted_modules.versions([layer_module])
    assert first[layer_module] != second[layer_module]
    assert len(second[layer_module]) == 64


def test_trust_covers_a_module_and_what_is_below_it():
    assert trusted_modules.covers(["a.b"], "a.b.c") and trusted_modules.covers(["a.b"], "a.b")
    assert not trusted_modules.covers(["a.b"], "a.bc")
    assert not trusted_modules.covers([], "a")


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_loss_of_an_unknown_module_refuses_no_network(is_nested, layer_module, tmp_path):
    import importlib

    model = network()
    model.compile("adam", importlib.import_module(layer_module).focal)
    expected = model.predict(PIXELS, verbose=0)
    if is_nested:
        import keras

        image = keras.Input((12, 12, 3))
        model = keras.Model(image, model(image))
    path = tmp_path / "net.keras"
    model.save(path)
    forget(layer_module)
    with zipfile.ZipFile(path) as archive:
        assert "focal" in archive.read("config.json").decode()
    np.testing.assert_allclose(model_runs.outputs(path, PIXELS)["scores"], expected, atol=1e-5)


def test_what_looks_compiled_outside_an_object_is_checked(tmp_path):
    path = tmp_path / "net.keras"
    network().save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    foreign = {"module": "os", "class_name": "system", "config": {}}
    config["config"]["compile_config"] = {"loss": foreign}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**members, "config.json": json.dumps(config)}.items():
            archive.writestr(name, data)
    with pytest.raises(ModelError, match="'system' of 'os'"):
        model_runs.outputs(path, PIXELS)


@pytest.mark.runs(
    "Keras network with a Lambda layer",
    "no: replace the layer and save the file again, as above",
)
def test_the_recipe_of_the_page_replaces_a_lambda(tmp_path, monkeypatch):
    import keras

    monkeypatch.chdir(tmp_path)
    function = keras.layers.Lambda(
        lambda x: keras.ops.normalize(x, axis=-1), output_shape=(10, 10, 6)
    )
    model = network(function)
    model.save("old.keras")
    with pytest.raises(ModelError, match="Lambda layer, which could run any code"):
        model_runs.outputs("old.keras", PIXELS)
    recipe = re.search(r"```python\n(.*?Lambda.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(recipe[1], {})
    scores = model_runs.outputs("new.keras", PIXELS)["scores"]
    np.testing.assert_allclose(scores, model.predict(PIXELS, verbose=0), atol=1e-5)
