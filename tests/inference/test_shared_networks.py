"""Several outputs of one network: one program, the same numbers as one program for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cvbatch
from cvbatch.config.loader import parse_job
from cvbatch.config.model_outputs import shared_networks
from cvbatch.core.types import Decoded, InputKey
from cvbatch.images.decode import Limits, decode
from cvbatch.inference import builder, programs
from cvbatch.inference.predictor import LoadedModel, Predictor, load_models
from cvbatch.storage.store import Storage
from tests.inference.test_predictor import batch, config, spec
from tests.support import jobs, networks
from tests.support.in_process import predict_in_process

OUTPUTS = [
    {"task": "regression", "output": "age", "names": ["age"]},
    {
        "task": "classification",
        "output": "gender",
        "classes": ["female", "male"],
        "heatmap": {"layer": "auto"},
    },
    {"task": "embedding", "layer": "flat", "normalize": True},
]
KERAS = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def job_of(*models: dict[str, Any]) -> Any:
    return parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": list(models)})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([{}, {}, {}], [(0, 1, 2)]),
        ([{}, {"model": "other.keras"}, {}], [(0, 2), (1,)]),
        ([{}, {"image_size": 8}, {"rescale": {"scale": 2}}], [(0,), (1,), (2,)]),
        ([{}, {"tiles": {}}, {"tiles": {}}], [(0,), (1,), (2,)]),
    ],
)
def test_sections_with_the_same_network_and_input_share_a_program(
    keys: list[dict[str, Any]], expected: list[tuple[int, ...]]
) -> None:
    tasks = ("embedding", "classification", "segmentation")
    models = [{"task": t, "model": "a.keras", **k} for t, k in zip(tasks, keys, strict=True)]
    assert shared_networks(job_of(*models).models) == expected


class TwoOutputs:
    """A program of batch size 4 with two outputs: the grey of an image, and 255 - grey."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.num_calls += 1
        grey = pixels[:, :1, 0, 0].astype(np.float32)
        inverse = np.where(grey == 7, np.nan, 255 - grey)
        return {"0_values": grey, "1_embedding": inverse}


def two_models(program: Any) -> list[LoadedModel]:
    return [
        LoadedModel(config(task), spec(task, ()), program, 4, prefix)
        for task, prefix in (("regression", "0_"), ("embedding", "1_"))
    ]


def test_a_shared_program_runs_once_for_each_batch() -> None:
    program = TwoOutputs()
    predictions = Predictor(two_models(program))(batch([1, 2, 3, 4, 5], failed=(1,)))
    values, embedding = predictions.models[0].values, predictions.models[1].embedding
    assert program.num_calls == 1
    assert values.values[:, 0].tolist() == [1, 3, 4, 5]
    assert embedding.values[:, 0].tolist() == [254, 252, 251, 250]


def test_nan_in_one_output_fails_the_image_in_all() -> None:
    predictions = Predictor(two_models(TwoOutputs()))(batch([1, 7, 3]))
    assert {i: failure.kind for i, failure in predictions.failures.items()} == {1: "not_finite"}
    assert predictions.models[0].values.image_index.tolist() == [0, 2]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("network") / "age.keras"
    networks.age_and_gender().save(path)
    return str(path)


class TestNetwork:
    pytestmark = KERAS

    def build(self, job: Any) -> list[programs.BuiltProgram]:
        identities = [programs.identify(Storage(), section) for section in job.models]
        requests = programs.build_requests(job, identities, "litert")
        return [builder.build(Storage(), request) for request in requests]

    def operations(self, program: programs.BuiltProgram) -> list[str]:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=program.payload)
        return [operation["op_name"] for operation in interpreter._get_ops_details()]

    def predictions(self, job: Any, built: list[programs.BuiltProgram]) -> Any:
        loaded = load_models(job.models, built, 1)
        (key,) = {model.spec.input_key for model in loaded}
        images = batch(list(range(0, 250, 50)))
        images.pixels[key] = networks.random_images(5, (32, 32))
        return Predictor(loaded)(images).models

    @pytest.mark.runs(
        "network with several heads", "`outputs`: a list with a task and `output` or `layer` each"
    )
    def test_one_program_gives_the_numbers_of_three(self, path: str) -> None:
        job = job_of({"model": path, "outputs": OUTPUTS})
        separate = [job.model_copy(update={"models": [section]}) for section in job.models]
        (shared,) = self.build(job)
        single = [self.build(one)[0] for one in separate]
        copy = programs.BuiltProgram.from_bytes(shared.to_bytes())
        assert copy == shared
        assert [output.spec.task for output in copy.outputs] == [o["task"] for o in OUTPUTS]

        convolutions = [self.operations(program).count("CONV_2D") for program in single]
        assert self.operations(shared).count("CONV_2D") == convolutions[0] == 1
        assert len(shared.payload) < sum(len(program.payload) for program in single)
        assert shared.multiply_adds == single[0].multiply_adds

        age, gender, vector = self.predictions(job, [shared])
        alone = [
            self.predictions(one, [program])[0]
            for one, program in zip(separate, single, strict=True)
        ]
        close = {"atol": 1e-6, "rtol": 1e-6}
        np.testing.assert_allclose(age.values.values, alone[0].values.values, **close)
        np.testing.assert_array_equal(gender.labels.class_id, alone[1].labels.class_id)
        np.testing.assert_allclose(gender.labels.score, alone[1].labels.score, **close)
        np.testing.assert_allclose(gender.heatmaps.values, alone[1].heatmaps.values, **close)
        np.testing.assert_allclose(vector.embedding.values, alone[2].embedding.values, **close)

    def test_a_job_fills_the_columns_of_all_outputs(self, path: str, tmp_path: Path) -> None:
        import keras

        jobs.write_files(tmp_path / "images", jobs.archive_files(5))
        entry = {"model": path, "outputs": OUTPUTS}
        job_spec, _ = predict_in_process(tmp_path / "images", tmp_path / "out", [entry])
        assert len(job_spec.program_uris) == 1
        result = cvbatch.read(tmp_path / "out")
        tasks = [model["task"] for model in result.metadata["models"]]
        assert tasks == ["regression", "classification", "embedding"]
        assert [network["activation"] for network in result.job["networks"]] == ["none"] * 3
        network = keras.models.load_model(path)
        for row in result:
            if row.error is None:
                data = (tmp_path / "images" / row.image_id).read_bytes()
                decoded = decode(data, [InputKey(32, 32, "stretch")], Limits())
                assert isinstance(decoded, Decoded)
                (pixels,) = decoded.pixels.values()
                expected = network.predict(pixels[None].astype("float32"), verbose=0)
                assert row.values is not None
                assert row.labels
                assert row.heatmaps
                np.testing.assert_allclose(row.values["age"], expected["age"][0, 0], atol=1e-5)
                assert row.labels[0]["label"] == ("female", "male")[expected["gender"].argmax()]
                np.testing.assert_allclose(np.linalg.norm(row.embedding), 1, atol=1e-6)
            else:
                assert (row.values, row.labels, row.heatmaps, row.embedding) == (None,) * 4
