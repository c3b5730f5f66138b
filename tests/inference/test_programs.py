"""A model is identified without TensorFlow, compiled once, and its program file read back whole."""

import hashlib
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.core.types import ModelSpec
from cvbatch.inference import programs
from cvbatch.models import model_files
from cvbatch.models.metadata import write_card
from cvbatch.storage.store import Storage

CLASSES = ("a", "b", "c", "d", "e", "f", "g")


def config(model, **fields):
    models = [{"task": "classification", "model": str(model), **fields}]
    return parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": models}).models[0]


def request(model, **fields):
    said = config(model, **fields)
    return programs.BuildRequest(said, programs.identify(Storage(), said), "litert", "float32", 2)


def fake_file(path, content=b"x"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", content)
    return path


def built():
    spec = ModelSpec("net", "classification", ("a", "é"), 8, 9, "crop", "0" * 64, "conv")
    return programs.BuiltProgram(spec, "litert", ("scores",), 4, 99, "a note", b"\0payload")


def test_a_program_file_reads_back_and_the_same_program_is_the_same_bytes():
    assert programs.BuiltProgram.from_bytes(built().to_bytes()) == built()
    assert built().to_bytes() == built().to_bytes()


@pytest.mark.parametrize("damage", [lambda d: d[:50], lambda d: b"", lambda d: b"text"])
def test_a_damaged_program_file_is_told(damage):
    with pytest.raises(ModelError, match="damaged"):
        programs.BuiltProgram.from_bytes(damage(built().to_bytes()))


def test_the_identity_follows_the_content_and_the_class_names(tmp_path):
    one = fake_file(tmp_path / "one.keras")
    same = fake_file(tmp_path / "same.keras")
    other = fake_file(tmp_path / "other.keras", b"y")
    assert programs.identify(Storage(), config(one)) == replace(
        programs.identify(Storage(), config(same)), file=one
    )
    assert (
        programs.identify(Storage(), config(one)).content
        != programs.identify(Storage(), config(other)).content
    )
    before = programs.identify(Storage(), config(one)).fingerprint
    assert programs.identify(Storage(), config(one, classes=["a"])).fingerprint != before


def test_a_pin_holds_a_file_and_changes_nothing_else(tmp_path):
    path = fake_file(tmp_path / "net.keras")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    plain, pinned = request(path), request(path, sha256=digest.upper())
    assert (pinned.identity, pinned.key) == (plain.identity, plain.key)
    with pytest.raises(ModelError, match=f"net.keras has the SHA-256 {digest}, not {'0' * 64}"):
        request(path, sha256="0" * 64)


def test_a_pin_of_a_zoo_network_is_about_its_weights_file(tmp_path):
    weights = tmp_path / "w.weights.h5"
    weights.write_bytes(b"w")
    digest = hashlib.sha256(b"w").hexdigest()
    said = {"weights": str(weights), "sha256": digest}
    assert programs.identify(Storage(), config("mini_xception", **said)).sha256 == digest
    with pytest.raises(ModelError, match=rf"w.weights.h5 has the SHA-256 {digest}, not a{{64}}"):
        programs.identify(Storage(), config("mini_xception", **said | {"sha256": "a" * 64}))


@pytest.mark.parametrize("weights", ["imagenet", "random", "demo"])
def test_what_is_no_file_cannot_be_pinned(weights):
    with pytest.raises(ConfigError, match="it pins a file"):
        config("demo_classifier", weights=weights, sha256="0" * 64)


@pytest.mark.parametrize("pin", ["", "abc", "g" * 64, "0" * 63, "0" * 65])
def test_a_pin_is_64_hexadecimal_digits(tmp_path, pin):
    with pytest.raises(ConfigError, match="sha256"):
        config(tmp_path / "net.keras", sha256=pin)


def test_what_is_loaded_is_what_was_hashed(tmp_path):
    path = fake_file(tmp_path / "net.keras")
    before = programs.identify(Storage(), config(path)).sha256
    copies = tmp_path / "copies"
    copies.mkdir()
    taken = model_files.download(Storage(), str(path), copies, before)
    fake_file(path, b"another")
    assert hashlib.sha256(taken.read_bytes()).hexdigest() == before
    with pytest.raises(ModelError, match=f"not {before}: .*changed while the job began"):
        model_files.download(Storage(), str(path), copies, before)


def test_class_names_come_from_the_job_a_file_or_the_card(tmp_path):
    path = fake_file(tmp_path / "net.keras")
    assert programs.identify(Storage(), config(path)).classes is None
    write_card(path, ("x", "y"), "classification")
    assert programs.identify(Storage(), config(path)).classes == ("x", "y")
    names = tmp_path / "names.txt"
    names.write_text("cat\n\n dog \n")
    assert programs.identify(Storage(), config(path, classes=str(names))).classes == ("cat", "dog")
    assert programs.identify(Storage(), config(path, classes=["p"])).classes == ("p",)
    names.write_text("\n")
    with pytest.raises(ModelError, match="is empty"):
        programs.identify(Storage(), config(path, classes=str(names)))


def test_the_demo_networks_are_known_by_their_files():
    identity = programs.identify(Storage(), config("demo_classifier", weights="demo"))
    assert "star" in identity.classes
    assert identity.file.is_file()


def test_the_key_changes_with_what_changes_the_program(tmp_path):
    path = fake_file(tmp_path / "net.keras")
    plain = request(path)
    keys = {
        plain.key,
        request(path, heatmap={}).key,
        request(path, preprocessing="tf").key,
        replace(plain, engine="tensorflow").key,
        replace(plain, precision="mixed_float16").key,
        replace(plain, batch_size=3).key,
    }
    assert len(keys) == 6
    assert request(path).key == plain.key


@pytest.mark.keras
class TestBuilding:
    def test_a_model_is_built_with_its_names_and_hash(self, keras_files):
        from cvbatch.inference.compile import build, weights_sha256

        path = keras_files / "nested_classifier.keras"
        program = build(Storage(), request(path, heatmap={}, classes=list(CLASSES)))
        assert (program.engine, program.note) == ("litert", "")
        assert program.spec.name == "nested_classifier"
        assert program.spec.classes == CLASSES
        assert (program.spec.input_height, program.spec.input_width) == (32, 32)
        assert program.spec.heatmap_layer == "inner/act"
        import keras

        model = keras.models.load_model(path)
        assert program.spec.weights_sha256 == weights_sha256(model)
        model.layers[-1].bias.assign(model.layers[-1].bias + 1)
        assert program.spec.weights_sha256 != weights_sha256(model)

    def test_a_file_that_was_changed_since_it_was_identified_is_not_built(self, tmp_path):
        from cvbatch.inference.compile import build

        asked = request(fake_file(tmp_path / "net.keras"))
        fake_file(tmp_path / "net.keras", b"another")
        with pytest.raises(ModelError, match="changed while the job began"):
            build(Storage(), asked)

    def test_what_litert_lacks_runs_in_tensorflow_and_is_said(self, tmp_path):
        import keras
        from keras import layers

        path = tmp_path / "overlapping.keras"
        keras.Sequential(
            [
                keras.Input((24, 24, 3)),
                layers.Conv2D(4, 3, name="features"),
                layers.MaxPool2D(3, 2),  # windows overlap: a gradient LiteRT has no operation for
                layers.Flatten(),
                layers.Dense(3, activation="softmax"),
            ]
        ).save(path)
        program = build_one(path, heatmap={})
        assert program.engine == "tensorflow"
        assert "MaxPoolGrad" in program.note
        results = program.load(1)(np.zeros((2, 24, 24, 3), np.uint8))
        assert results["heatmaps"].shape == (2, 1, 22, 22)

    def test_class_names_must_be_as_many_as_outputs(self, keras_files):
        with pytest.raises(ModelError, match="2 names for 7 outputs"):
            build_one(keras_files / "nested_classifier.keras", classes=["a", "b"])

    def test_kept_classes_must_be_the_models(self, keras_files):
        path = str(keras_files / "detector.keras")
        models = [{"task": "detection", "model": path, "keep_classes": ["zebra"]}]
        raw = {"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": models}
        said = parse_job(raw).models[0]
        from cvbatch.inference.compile import build

        with pytest.raises(ModelError, match="zebra"):
            build(
                Storage(),
                programs.BuildRequest(
                    said, programs.identify(Storage(), said), "litert", "float32", 2
                ),
            )

    def test_random_weights_are_the_same_every_time(self):
        first, again = (build_one("mini_xception", weights="random") for _ in range(2))
        assert first.spec.weights_sha256 == again.spec.weights_sha256

    def test_imagenet_names_are_taken_from_keras_cache(self, tmp_path, monkeypatch):
        from cvbatch.inference.compile import _imagenet_names

        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        assert _imagenet_names(1000) is None
        (tmp_path / "models").mkdir()
        index = {str(i): [f"n{i}", f"name {i}"] for i in range(1000)}
        (tmp_path / "models" / "imagenet_class_index.json").write_text(json.dumps(index))
        assert _imagenet_names(1000)[7] == "name 7"
        assert _imagenet_names(10) is None


def build_one(path, **fields):
    from cvbatch.inference.compile import build

    return build(Storage(), request(path, **fields))
