"""A job file is read whole or refused whole, with every fault in one message."""

import pytest

from cvbatch.config import fingerprint
from cvbatch.errors import ConfigError
from cvbatch.jobfile import load_job, parse_job


def raw(**changes):
    job = {
        "source": {"uri": "in"},
        "sink": {"uri": "out"},
        "models": [{"task": "classification", "model": "a.keras"}],
    }
    return job | changes


def refused(job, overrides=()):
    with pytest.raises(ConfigError) as error:
        parse_job(job, overrides)
    assert error.value.exit_status == 2
    return str(error.value)


def test_an_empty_job_lacks_everything_at_once():
    message = refused({})
    for section in ("source", "sink", "models"):
        assert f"{section}: missing" in message


def test_defaults_are_those_promised():
    job = parse_job(raw())
    assert job.source.uri == ["in"]
    assert job.models[0].top_k == 5
    assert (job.run.batch_size, job.run.chunk_images) == (32, 512)
    assert job.run.max_failure_fraction == 0.01
    assert job.run.actors is None


@pytest.mark.parametrize(
    ("job", "told"),
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
            "random if untrained weights are meant",
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
        (["not", "a", "mapping"], "a job file is a mapping"),
    ],
)
def test_a_fault_is_told_with_its_place_and_remedy(job, told):
    assert told in refused(job)


def test_all_faults_are_told_at_once():
    message = refused(raw(sorce=1, run={"actors": 0, "batch": 1}))
    assert all(part in message for part in ("sorce", "run.actors", "run.batch:"))


def test_overrides_reach_into_sections_and_lists():
    job = parse_job(raw(), ["run.batch_size=4", "models.0.top_k=2", "source.uri=[a, b]"])
    assert job.run.batch_size == 4
    assert job.models[0].top_k == 2
    assert job.source.uri == ["a", "b"]


@pytest.mark.parametrize("override", ["batch", "=3", "models.7.top_k=1", "sink.uri.x=1", "a..b=1"])
def test_a_wrong_override_is_refused(override):
    assert f"--set {override}" in refused(raw(), [override])


def test_environment_variables_stand_in_values(monkeypatch):
    monkeypatch.setenv("CVBATCH_TEST_BUCKET", "s3://b")
    assert parse_job(raw(sink={"uri": "${CVBATCH_TEST_BUCKET}/r"})).sink.uri == "s3://b/r"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "is not YAML"),
        ("source: {uri: a}\nsource: {uri: b}", "'source' is given twice"),
        ("!!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_a_file_that_is_not_plain_yaml_is_refused(tmp_path, text, told):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_job(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_job(tmp_path / "none.yaml")


def test_the_fingerprint_covers_what_changes_rows_and_nothing_else():
    def print_of(job, identity="x", engine="litert"):
        return fingerprint(parse_job(job), [identity], engine)

    same = print_of(raw())
    assert print_of(raw(source={"uri": "elsewhere"})) == same
    assert print_of(raw(sink={"uri": "elsewhere"})) == same
    assert print_of(raw(run={"actors": 7, "chunk_images": 3, "batch_size": 1})) == same
    model = {"task": "classification", "model": "a.keras"}
    changed = [
        print_of(raw(), identity="y"),
        print_of(raw(), engine="tensorflow"),
        print_of(raw(models=[model | {"top_k": 1}])),
        print_of(raw(models=[model | {"resize": "crop"}])),
        print_of(raw(models=[model | {"heatmap": {}}])),
        print_of(raw(source={"uri": "in", "max_pixels": 5})),
        print_of(raw(run={"precision": "mixed_float16"})),
    ]
    assert len({same, *changed}) == len(changed) + 1
