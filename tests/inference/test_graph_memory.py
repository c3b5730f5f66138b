"""Networks that do not fit in memory are refused before they are built or run on images."""

from __future__ import annotations

import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.core.types import ModelSpec
from cvbatch.distributed.resources import Allocation
from cvbatch.inference.programs import BuildRequest, BuiltProgram, identify
from cvbatch.predict.memory_check import check_programs
from cvbatch.storage.store import Storage
from tests.support import jobs

pytestmark = pytest.mark.keras
SIDE, FACTOR, CHANNELS = 64, 2600, 4
PROBABILITIES = 3 * SIDE**2 * 4  # bytes of an image that a worker receives: 3 classes, float32
ENLARGED = 4 * CHANNELS * (SIDE * FACTOR) ** 2  # bytes: 443 GB
SMALL = 4 * CHANNELS * SIDE**2


def enlarging_network():
    """Return a segmenter whose feature map is far larger than its input and output."""
    import keras
    from keras import layers

    image = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(CHANNELS, 3, padding="same")(image)
    x = layers.UpSampling2D(FACTOR, name="enlarged")(x)
    x = layers.AveragePooling2D(FACTOR)(x)
    return keras.Model(image, layers.Conv2D(3, 1, activation="softmax")(x))


def request_of(model, memory_bytes, **fields):
    values = {"source": {"uri": "i"}, "sink": {"uri": "o"}}
    models = [{"task": "segmentation", "model": str(model), **fields}]
    (config,) = parse_job({**values, "models": models}).models
    identity = identify(Storage(), config)
    return BuildRequest(config, identity, "litert", "float32", 8, memory_bytes=memory_bytes)


@pytest.mark.runs(
    "network whose feature maps do not fit in memory",
    "no: the message names the layer and its bytes; set a smaller `image_size`",
)
def test_the_largest_map_is_refused_before_the_network_runs(tmp_path, monkeypatch):
    from cvbatch.inference import compile as compiler

    enlarging_network().save(tmp_path / "a.keras")
    monkeypatch.setattr(compiler, "decide", None)  # would run the network
    with pytest.raises(ModelError) as error:
        compiler.build(Storage(), request_of(tmp_path / "a.keras", 16 << 30))
    for part in ("'enlarged'", f"{ENLARGED + SMALL:,} bytes for one image", "run.batch_size 8",
                 f"{16 << 30:,} bytes free", "smaller image_size"):  # fmt: skip
        assert part in str(error.value)


def test_a_model_that_is_no_graph_of_layers_is_traced():
    import keras

    from cvbatch.inference.network_cost import cost_of

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = enlarging_network()

        def call(self, images):
            return self.inner(images)

        @property
        def input_shape(self):
            return self.inner.input_shape

    cost = cost_of(Subclassed(), (SIDE, SIDE))
    assert cost.map_bytes == ENLARGED
    assert "enlarged" in cost.largest_layer


def test_the_sample_images_are_as_many_as_fit(tmp_path, monkeypatch):
    import keras
    from keras import layers

    from cvbatch.inference import compile as compiler

    image = keras.Input((SIDE, SIDE, 3))
    maps = layers.Conv2D(3, 3, padding="same", activation="softmax")(image)
    keras.Model(image, maps).save(tmp_path / "a.keras")
    counts = []
    decide = compiler.decide

    def counting(model, config, pixels, **options):
        counts.append(len(pixels))
        return decide(model, config, pixels, **options)

    monkeypatch.setattr(compiler, "decide", counting)
    one_image, weights = 4 * 2 * 3 * SIDE**2, 4 * (3 * 9 + 1) * 3
    built = compiler.build(Storage(), request_of(tmp_path / "a.keras", weights + 2 * one_image + 1))
    assert counts == [2]
    assert built.largest_layer.startswith("conv2d")
    assert built.bytes_per_image == one_image + 3 * SIDE**2 + PROBABILITIES
    assert BuiltProgram.from_bytes(built.to_bytes()) == built


def test_weights_that_do_not_fit_are_refused_before_they_are_allocated(tmp_path):
    from cvbatch.inference import compile as compiler

    enlarging_network().save(tmp_path / "a.keras")
    weights = 4 * ((27 + 1) * CHANNELS + (CHANNELS + 1) * 3)
    wide = {"weights": "random", "build": {"width": 100_000}}
    for name, memory, fields in (
        (tmp_path / "a.keras", weights - 1, {}),
        ("encoder_decoder", 16 << 30, wide),
    ):
        with pytest.raises(ModelError, match=r"its weights need [\d,]+ bytes") as error:
            compiler.load(Storage(), request_of(name, memory, **fields))
        assert f"has {memory:,} free" in str(error.value)


def test_a_batch_that_does_not_fit_is_refused_with_the_layer():
    spec = ModelSpec("net", "segmentation", ("a",), 8, 8, "stretch", "")
    program = BuiltProgram(spec, "litert", (), 8, 1000, "", b"", largest_layer="up")
    job = parse_job({
        "source": {"uri": "i"}, "sink": {"uri": "o"}, "run": {"batch_size": 8},
        "models": [{"task": "segmentation", "model": "a.keras"}],
    })  # fmt: skip
    allocation = Allocation("fused", 1, 1.0, 0.0)
    check_programs(job, [program], allocation, 8000)
    with pytest.raises(ConfigError, match=r"8,000 bytes, most of it in layer 'up' of model 'net'"):
        check_programs(job, [program], allocation, 7999)


@pytest.mark.soak
def test_jobs_and_dry_runs_are_refused_and_write_nothing(tmp_path):
    from cvbatch.predict.dry_run import estimate
    from cvbatch.predict.job import predict

    enlarging_network().save(tmp_path / "a.keras")
    archive = jobs.write_files(tmp_path / "in", jobs.archive_files(2))
    job = parse_job({
        "source": {"uri": str(archive)}, "sink": {"uri": str(tmp_path / "sink")},
        "models": [{"task": "segmentation", "model": str(tmp_path / "a.keras")}],
    })  # fmt: skip
    messages = set()
    for work in (predict, estimate):
        with pytest.raises(ModelError, match="its layer 'enlarged' needs") as error:
            work(job, jobs.RecordingListener())
        messages.add(str(error.value).partition(", and this machine")[0])
    assert len(messages) == 1
    assert not (tmp_path / "sink").exists()


def test_the_memory_of_litert_has_the_maps_that_skip_layers(tmp_path):
    import keras
    from keras import layers

    from cvbatch.inference import compile as compiler
    from cvbatch.inference.litert import live_bytes

    image = keras.Input((SIDE, SIDE, 3))
    skipped = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = layers.UpSampling2D(2)(layers.MaxPooling2D(2)(skipped))
    x = layers.Concatenate()([x, skipped])
    keras.Model(image, layers.Conv2D(3, 1, activation="softmax")(x)).save(tmp_path / "a.keras")
    built = compiler.build(Storage(), request_of(tmp_path / "a.keras", None))
    # Both inputs of the concatenation, and its output, as float32.
    assert live_bytes(built.payload) == built.batch_size * SIDE**2 * (4 + 4 + 8) * 4
    assert built.bytes_per_image == live_bytes(built.payload) // built.batch_size + PROBABILITIES
