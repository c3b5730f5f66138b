"""A job file is valid, or it is refused with all errors in one message."""

import re

import pytest

from cvbatch.config.loader import load, parse, parse_job
from cvbatch.config.models import SegmentationConfig
from cvbatch.config.network_input import tiling_of
from cvbatch.config.predict import JobConfig, fingerprint
from cvbatch.config.train import TrainJob
from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.core.types import Tiling
from cvbatch.inference.programs import BuildRequest, Identity

MODEL = {"task": "classification", "model": "a.keras"}


def raw(**changes):
    return {"source": {"uri": "in"}, "sink": {"uri": "out"}, "models": [MODEL]} | changes


def error_of(job, overrides=()):
    with pytest.raises(ConfigError) as error:
        parse_job(job, overrides)
    assert error.value.exit_status == 2
    return str(error.value)


def test_an_empty_job_lacks_all_required_keys():
    message = error_of({})
    for section in ("source", "sink", "models"):
        assert f"{section}: missing" in message


def test_defaults():
    job = parse_job(raw())
    assert job.source.uri == ["in"]
    assert job.models[0].top_k == 5
    assert (job.run.batch_size, job.run.chunk_images) == (32, 512)
    assert job.run.max_failure_fraction == 0.01
    assert job.run.actors is None


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (raw(sorce={"uri": "x"}), "sorce: unknown key; did you mean source?"),
        (raw(source={"uri": "x", "formt": "a"}), "source.formt: unknown key; did you mean format?"),
        (
            raw(models=[{"task": "detection", "model": "a.keras", "iou_treshold": 0.5}]),
            "models[0].iou_treshold: unknown key; did you mean iou_threshold?",
        ),
        (
            raw(models=[{"task": "segmentatio", "model": "a.keras"}]),
            "models[0].task: 'segmentatio' is not a task; did you mean segmentation?",
        ),
        (raw(models=[{"model": "a.keras"}]), "models[0].task: missing"),
        (
            raw(models=[{"task": "classification", "model": "a.keras", "heatmap": {"layr": "x"}}]),
            "models[0].heatmap.layr: unknown key; did you mean layer?",
        ),
        (raw(run={"actors": 0}), "run.actors: 0"),
        (raw(run={"batch_size": "many"}), "run.batch_size: 'many'"),
        (raw(source={"uri": "${NO_SUCH_VARIABLE}/x"}), "NO_SUCH_VARIABLE is not set"),
        (raw(models=[]), "models"),
        (
            raw(models=[{"task": "classification", "model": "Xception"}]),
            "or random for untrained weights",
        ),
        (
            raw(
                models=[
                    {"task": "classification", "model": "a.keras"},
                    {"task": "localization", "model": "b.keras"},
                ]
            ),
            "would both fill the column 'labels'",
        ),
        (raw(run={"engine": "litert", "precision": "mixed_float16"}), "needs engine: tensorflow"),
        (["not", "a", "mapping"], "a job file must be a mapping"),
    ],
)
def test_an_error_names_the_key_and_the_remedy(job, message):
    assert message in error_of(job)


def tiled(task="segmentation", tiles=None, **fields):
    return raw(models=[{"task": task, "model": "a.keras", "tiles": tiles or {}, **fields}])


@pytest.mark.parametrize(
    ("tiles", "tiling"),
    [
        ({}, Tiling(100, 200, 25, 50)),
        ({"overlap": 0}, Tiling(100, 200, 0, 0)),
        ({"overlap": 0.1}, Tiling(100, 200, 10, 20)),
        ({"overlap": 1}, Tiling(100, 200, 1, 1)),
        ({"overlap": 75}, Tiling(100, 200, 75, 75)),
        ({"size": 512}, Tiling(512, 512, 128, 128)),
        ({"size": [512, 300], "overlap": 64}, Tiling(512, 300, 64, 64)),
        ({"size": 1, "overlap": 0.75}, Tiling(1, 1, 0, 0)),
        ({"size": [2, 3], "overlap": 0.75}, Tiling(2, 3, 1, 2)),
    ],
)
@pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
def test_tiles_have_a_size_and_an_overlap_in_pixels(task, tiles, tiling):
    (config,) = parse_job(tiled(task, tiles)).models
    assert tiling_of(config, 100, 200) == tiling


def test_images_are_not_tiled_by_default():
    models = [
        {"task": "localization", "model": "a.keras"},
        {"task": "segmentation", "model": "b.keras"},
    ]
    assert [tiling_of(config, 8, 8) for config in parse_job(raw(models=models)).models] == [
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (tiled(tiles={"overlap": 0.8}), "models[0].tiles.overlap: 0.8: must be a fraction"),
        (tiled(tiles={"overlap": 1.5}), "or a whole number of pixels"),
        (tiled(tiles={"overlap": -1}), "models[0].tiles.overlap: -1"),
        (tiled(tiles={"overlap": float("nan")}), "models[0].tiles.overlap: nan"),
        (tiled(tiles={"overlap": float("inf")}), "or a whole number of pixels"),
        (
            tiled(tiles={"size": [64, 40], "overlap": 31}),
            "models[0].tiles: tiles of 64 x 40 pixels overlap by 31 pixels, but at most 30 are "
            "allowed; lower tiles.overlap or raise tiles.size",
        ),
        (tiled(tiles={"size": 0}), "models[0].tiles.size"),
        (tiled(tiles={"sise": 9}), "models[0].tiles.sise: unknown key; did you mean size?"),
        (tiled(resize="crop"), "with tiles use stretch or letterbox"),
        (tiled(mask_size="model"), "remove mask_size"),
        (tiled("localization"), "models[0].tiles: unknown key"),
    ],
)
def test_invalid_tiles_are_error_of(job, message):
    assert message in error_of(job)


def test_an_overlap_too_large_for_the_input_size_is_refused():
    (config,) = parse_job(tiled(tiles={"overlap": 76})).models
    assert tiling_of(config, 102, 200).overlap_height == 76
    with pytest.raises(ModelError, match="overlap by 76 pixels, but at most 75 are allowed"):
        tiling_of(config, 101, 200)


def test_all_errors_are_reported_at_once():
    message = error_of(raw(sorce=1, run={"actors": 0, "batch": 1}))
    assert all(part in message for part in ("sorce", "run.actors", "run.batch:"))


@pytest.mark.parametrize(
    ("kind", "section", "keys"),
    [
        (JobConfig, {"models": [MODEL | {"rescale": {"scale": "x"}}]}, "models[0].rescale.scale"),
        (JobConfig, {"models": [MODEL | {"resize": {"mod": "crop"}}]}, "models[0].resize.mod"),
        (JobConfig, {"models": [{"task": "embedding"}]}, "models[0].model"),
        (
            TrainJob,
            {"training": {"class_weights": {"by_name": "x"}}},
            "training.class_weights.by_name",
        ),
        (TrainJob, {"training": {"ignored_class": -1}}, "training.ignored_class"),
    ],
)
def test_an_error_names_the_keys_of_the_file_and_no_branch_of_a_union(kind, section, keys):
    with pytest.raises(ConfigError) as refusal:
        parse(kind, raw(**section))
    assert keys in re.findall(r"^(?:job:)? +(\S+): ", str(refusal.value), re.MULTILINE)
    assert not re.search("float|tuple|Config", str(refusal.value))


def test_overrides_replace_values_in_sections_and_lists():
    job = parse_job(raw(), ["run.batch_size=4", "models.0.top_k=2", "source.uri=[a, b]"])
    assert job.run.batch_size == 4
    assert job.models[0].top_k == 2
    assert job.source.uri == ["a", "b"]


@pytest.mark.parametrize("override", ["batch", "=3", "models.7.top_k=1", "sink.uri.x=1", "a..b=1"])
def test_an_invalid_override_is_refused(override):
    assert f"--set {override}" in error_of(raw(), [override])


def test_environment_variables_are_replaced(monkeypatch):
    monkeypatch.setenv("CVBATCH_TEST_BUCKET", "s3://b")
    assert parse_job(raw(sink={"uri": "${CVBATCH_TEST_BUCKET}/r"})).sink.uri == "s3://b/r"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("source: {uri: a}\nsource: {uri: b}", "'source' occurs twice"),
        ("!!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_invalid_yaml_is_refused(tmp_path, text, message):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(JobConfig, path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load(JobConfig, tmp_path / "none.yaml")


def test_the_fingerprint_covers_what_changes_rows_and_nothing_else():
    def fingerprint_of(job, identity="x", engine="litert"):
        return fingerprint(parse_job(job), [identity], engine)

    same = fingerprint_of(raw())
    assert fingerprint_of(raw(source={"uri": "elsewhere"})) == same
    assert fingerprint_of(raw(sink={"uri": "elsewhere"})) == same
    assert fingerprint_of(raw(run={"actors": 7, "chunk_images": 3, "batch_size": 1})) == same
    model = {"task": "classification", "model": "a.keras"}
    changed = [
        fingerprint_of(raw(), identity="y"),
        fingerprint_of(raw(), engine="tensorflow"),
        fingerprint_of(raw(models=[model | {"top_k": 1}])),
        fingerprint_of(raw(models=[model | {"resize": "crop"}])),
        fingerprint_of(raw(models=[model | {"heatmap": {}}])),
        fingerprint_of(raw(models=[model | {"tiles": {}}])),
        fingerprint_of(raw(models=[model | {"tiles": {"overlap": 64}}])),
        fingerprint_of(raw(source={"uri": "in", "max_pixels": 5})),
        fingerprint_of(raw(run={"precision": "mixed_float16"})),
    ]
    assert len({same, *changed}) == len(changed) + 1


@pytest.mark.parametrize(
    ("keys", "earlier"),
    [
        ({"task": "classification"},
         "952a3b3535b983477df515d079c68295095747058cdbdc9d8a5c077426dd5510"),
        ({"task": "segmentation", "mask_size": "model"},
         "2fb187bad572c230dddd317ebc963cf44321887f26394c524e5fdcb282c8597f"),
    ],
)  # fmt: skip
def test_jobs_whose_rows_are_those_of_version_0_1_0_keep_their_fingerprint(keys, earlier):
    (model,) = raw(models=[{"model": "a.keras", **keys}])["models"]
    assert fingerprint(parse_job(raw(models=[model])), ["x"], "litert") == earlier


def program_key(config):
    return BuildRequest(config, Identity("x", None, None, None), "litert", "float32", 1).key


def test_masks_interpolated_to_the_original_have_another_fingerprint_and_program(monkeypatch):
    """A sink of version 0.1.0, whose masks are copied cells, must not get other masks."""
    job = parse_job(raw(models=[{"task": "segmentation", "model": "a.keras"}]))
    earlier = "785efff0b80cb80d68483515126c853373512ca0879ec4d00fe6ee616b52c6d9"
    (config,) = job.models
    monkeypatch.setattr(SegmentationConfig, "revision", {})
    assert fingerprint(job, ["x"], "litert") == earlier
    earlier_key = program_key(config)
    monkeypatch.undo()
    assert fingerprint(job, ["x"], "litert") != earlier
    assert program_key(config) != earlier_key


def test_a_key_that_is_none_is_not_in_the_fingerprint(monkeypatch):
    job = parse_job(raw())
    before = fingerprint(job, ["x"], "litert")
    model_dump = type(job.models[0]).model_dump

    def with_a_later_key(self, **options):
        return {**model_dump(self, **options), "later": None}

    monkeypatch.setattr(type(job.models[0]), "model_dump", with_a_later_key)
    assert fingerprint(job, ["x"], "litert") == before
