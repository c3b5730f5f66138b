"""Identity of models, keys of programs, program files, and building of programs."""

import hashlib
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


def identify(model, **fields):
    return programs.identify(Storage(), config(model, **fields))


def request(model, **fields):
    identity = identify(model, **fields)
    return programs.BuildRequest(config(model, **fields), identity, "litert", "float32", 2)


def fake_file(path, content=b"x"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", content)
    return path


def sample_program():
    spec = ModelSpec("net", "classification", ("a", "é"), 8, 9, "crop", "0" * 64, "conv")
    return programs.BuiltProgram(spec, "litert", ("scores",), 4, 99, "a note", b"\0payload")


def test_program_file_round_trip_and_deterministic_bytes():
    assert programs.BuiltProgram.from_bytes(sample_program().to_bytes()) == sample_program()
    assert sample_program().to_bytes() == sample_program().to_bytes()


@pytest.mark.parametrize("damage", [lambda d: d[:50], lambda d: b"", lambda d: b"text"])
def test_damaged_program_file_is_reported(damage):
    with pytest.raises(ModelError, match="damaged"):
        programs.BuiltProgram.from_bytes(damage(sample_program().to_bytes()))


@pytest.mark.parametrize(
    ("model", "engine", "packages"),
    [
        ("net.keras", "litert", ()),
        ("net.keras", "tensorflow", ("tensorflow", "keras")),
        ("net.onnx", "chain", ("onnxruntime",)),
        ("net.tflite", "chain", ("ai-edge-litert",)),
    ],
)
def test_the_packages_of_workers_are_those_of_their_programs(model, engine, packages):
    program = replace(sample_program(), engine=engine)
    models = [config(model, **({"preprocessing": "tf"} if engine == "chain" else {}))]
    assert programs.worker_packages(models, [program]) == packages


def test_identity_depends_on_content_and_class_names(tmp_path):
    first = fake_file(tmp_path / "first.keras")
    copy = fake_file(tmp_path / "copy.keras")
    other = fake_file(tmp_path / "other.keras", b"y")
    assert identify(first) == replace(identify(copy), file=first)
    assert identify(first).content != identify(other).content
    fingerprint = identify(first).fingerprint
    assert identify(first, classes=["a"]).fingerprint != fingerprint


def test_sha256_of_the_job_is_checked_and_not_part_of_the_key(tmp_path):
    path = fake_file(tmp_path / "net.keras")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    unpinned, pinned = request(path), request(path, sha256=digest.upper())
    assert (pinned.identity, pinned.key) == (unpinned.identity, unpinned.key)
    with pytest.raises(ModelError, match=f"net.keras has the SHA-256 {digest}, not {'0' * 64}"):
        request(path, sha256="0" * 64)


def test_sha256_of_a_zoo_network_is_that_of_its_weights_file(tmp_path):
    weights = tmp_path / "w.weights.h5"
    weights.write_bytes(b"w")
    digest = hashlib.sha256(b"w").hexdigest()
    fields = {"weights": str(weights), "sha256": digest}
    assert identify("mini_xception", **fields).sha256 == digest
    with pytest.raises(ModelError, match=rf"w.weights.h5 has the SHA-256 {digest}, not a{{64}}"):
        identify("mini_xception", **fields | {"sha256": "a" * 64})


@pytest.mark.parametrize("weights", ["imagenet", "random", "demo"])
def test_sha256_without_a_file_is_refused(weights):
    with pytest.raises(ConfigError, match="it pins a file"):
        config("demo_classifier", weights=weights, sha256="0" * 64)


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 63, "0" * 65])
def test_sha256_must_be_64_hexadecimal_digits(tmp_path, digest):
    with pytest.raises(ConfigError, match="sha256"):
        config(tmp_path / "net.keras", sha256=digest)


def test_file_that_changes_after_hashing_is_refused(tmp_path):
    path = fake_file(tmp_path / "net.keras")
    digest = identify(path).sha256
    copies = tmp_path / "copies"
    copies.mkdir()
    copy = model_files.download(Storage(), str(path), copies, digest)
    fake_file(path, b"another")
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == digest
    with pytest.raises(ModelError, match=f"not {digest}: .*changed while the job started"):
        model_files.download(Storage(), str(path), copies, digest)


def test_class_names_are_read_from_job_file_or_card(tmp_path):
    path = fake_file(tmp_path / "net.keras")
    assert identify(path).classes is None
    write_card(path, ("x", "y"), "classification")
    assert identify(path).classes == ("x", "y")
    names = tmp_path / "names.txt"
    names.write_text("cat\n\n dog \n")
    assert identify(path, classes=str(names)).classes == ("cat", "dog")
    assert identify(path, classes=["p"]).classes == ("p",)
    names.write_text("\n")
    with pytest.raises(ModelError, match="is empty"):
        identify(path, classes=str(names))


def test_demo_networks_are_identified_by_their_files():
    identity = identify("demo_classifier", weights="demo")
    assert "star" in identity.classes
    assert identity.file.is_file()


def test_key_depends_on_everything_that_determines_the_program(tmp_path):
    path = fake_file(tmp_path / "net.keras")
    default = request(path)
    keys = {
        default.key,
        request(path, heatmap={}).key,
        request(path, preprocessing="tf").key,
        replace(default, engine="tensorflow").key,
        replace(default, precision="mixed_float16").key,
        replace(default, batch_size=3).key,
    }
    assert len(keys) == 6
    assert request(path).key == default.key


@pytest.mark.keras
class TestBuilding:
    def test_built_program_has_names_and_hash_of_the_model(self, keras_files):
        from cvbatch.inference.compile import build, weights_sha256

        path = keras_files / "nested_classifier.keras"
        program = build(Storage(), request(path, heatmap={}, classes=list(CLASSES)))
        assert (program.engine, program.note) == ("litert", "")
        assert program.activation == "none"
        assert (
            "softmax in" in programs.BuiltProgram.from_bytes(program.to_bytes()).activation_reason
        )
        assert program.spec.name == "nested_classifier"
        assert program.spec.classes == CLASSES
        assert (program.spec.input_height, program.spec.input_width) == (32, 32)
        assert program.spec.heatmap_layer == "inner/act"
        import keras

        model = keras.models.load_model(path)
        assert program.spec.weights_sha256 == weights_sha256(model)
        model.layers[-1].bias.assign(model.layers[-1].bias + 1)
        assert program.spec.weights_sha256 != weights_sha256(model)

    def test_file_that_changed_after_identification_is_not_built(self, tmp_path):
        from cvbatch.inference.compile import build

        stale_request = request(fake_file(tmp_path / "net.keras"))
        fake_file(tmp_path / "net.keras", b"another")
        with pytest.raises(ModelError, match="changed while the job started"):
            build(Storage(), stale_request)

    def test_graph_that_litert_does_not_support_is_built_for_tensorflow(self, tmp_path):
        import keras
        from keras import layers

        path = tmp_path / "overlapping.keras"
        keras.Sequential(
            [
                keras.Input((24, 24, 3)),
                layers.Conv2D(4, 3, name="features"),
                layers.MaxPool2D(3, 2),  # overlapping windows, whose gradient LiteRT lacks
                layers.Flatten(),
                layers.Dense(3, activation="softmax"),
            ]
        ).save(path)
        program = build_one(path, heatmap={})
        assert program.engine == "tensorflow"
        assert "MaxPoolGrad" in program.note
        results = program.load(1)(np.zeros((2, 24, 24, 3), np.uint8))
        assert results["heatmaps"].shape == (2, 1, 22, 22)

    def test_wrong_number_of_class_names_is_refused(self, keras_files):
        with pytest.raises(ModelError, match="2 names for 7 outputs"):
            build_one(keras_files / "nested_classifier.keras", classes=["a", "b"])

    def test_unknown_keep_classes_are_refused(self, keras_files):
        path = str(keras_files / "detector.keras")
        models = [{"task": "detection", "model": path, "keep_classes": ["zebra"]}]
        raw = {"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": models}
        model_config = parse_job(raw).models[0]
        from cvbatch.inference.compile import build

        identity = programs.identify(Storage(), model_config)
        with pytest.raises(ModelError, match="zebra"):
            build(
                Storage(),
                programs.BuildRequest(model_config, identity, "litert", "float32", 2),
            )

    @pytest.mark.parametrize("fields", [{"classes": ["a", "b"]}, {"build": {"num_classes": 2}}])
    def test_imagenet_weights_with_another_number_of_classes_are_refused(self, fields):
        with pytest.raises(ModelError, match="would leave the head of 'MobileNetV2' untrained"):
            build_one("MobileNetV2", weights="imagenet", **fields)

    def test_random_weights_are_deterministic(self):
        first, second = (build_one("mini_xception", weights="random") for _ in range(2))
        assert first.spec.weights_sha256 == second.spec.weights_sha256

    def test_a_network_that_nobody_scales_is_reported(self, tmp_path):
        import keras
        from keras import layers

        parts = [keras.Input((8, 8, 3)), layers.Conv2D(2, 3), layers.GlobalAveragePooling2D()]
        path = str(tmp_path / "raw.keras")
        keras.Sequential([*parts, layers.Dense(1000)]).save(path)
        note = build_one(path).note
        assert "pixels 0..255" in note
        assert "set classes: imagenet" in note
        for fields in ({"preprocessing": "tf"}, {"rescale": {"scale": 0.5}}):
            assert build_one(path, classes="imagenet", **fields).note == ""

    def test_imagenet_names_are_those_of_keras_applications(self, tmp_path):
        """Oracle: ids that the documentation of Keras and of the ILSVRC states."""
        names = identify("MobileNet", weights="random", classes="imagenet").classes
        assert len(names) == 1000
        known = {0: "tench", 24: "great_grey_owl", 101: "tusker", 207: "golden_retriever"}
        known |= {285: "Egyptian_cat", 385: "Indian_elephant", 386: "African_elephant"}
        known |= {281: "tabby", 817: "sports_car", 954: "banana", 999: "toilet_tissue"}
        assert {i: names[i] for i in known} == known
        duplicates = {name for name in names if names.count(name) > 1}
        assert duplicates == {"crane", "maillot"}

    def test_only_imagenet_weights_have_imagenet_names_by_default(self, keras_files):
        from cvbatch.inference.compile import class_names

        trained = request("MobileNet", weights="imagenet")
        assert (
            class_names(trained, 1000)
            == identify("MobileNet", weights="random", classes="imagenet").classes
        )
        assert class_names(request("MobileNet", weights="random"), 1000)[7] == "7"
        named = request("MobileNet", weights="imagenet", classes=["a"])
        assert class_names(named, 1) == ("a",)


def build_one(path, **fields):
    from cvbatch.inference.compile import build

    return build(Storage(), request(path, **fields))
