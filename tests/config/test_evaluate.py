"""Job files of evaluation: defaults, validation errors, fingerprint."""

import copy
import hashlib
import json

import pytest
import yaml

from cvbatch.config.evaluate import (
    EVALUATION_VERSION,
    EvaluateJob,
    fingerprint,
    parse_evaluation,
)
from cvbatch.config.loader import load
from cvbatch.core.errors import ConfigError

MINIMAL = {
    "predictions": {"uri": "result/"},
    "truth": {"uri": "labels/"},
    "sink": {"uri": "out/"},
}


def job_file(**sections):
    raw = copy.deepcopy(MINIMAL)
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return raw


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_job_is_a_mapping(raw):
    with pytest.raises(ConfigError, match="a mapping with predictions and sink"):
        parse_evaluation(raw)


def test_defaults():
    job = parse_evaluation(MINIMAL)
    assert (job.truth.uri, job.truth.splits) == (["labels/"], None)
    assert (job.evaluation.join, job.evaluation.top_k, job.run.workers) == (None, None, None)
    assert job.evaluation.class_map == {}


def test_a_file_with_overrides(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_file(evaluation={"class_map": {"car": "vehicle"}})))
    overrides = ["evaluation.join=name", "run.workers=auto", "evaluation.class_map.dog=null"]
    job = load(EvaluateJob, path, overrides)
    assert job.evaluation.class_map == {"car": "vehicle", "dog": None}
    assert job.evaluation.join == "name"


def test_top_k_is_sorted_and_unique():
    job = parse_evaluation(job_file(evaluation={"top_k": [5, 1, 5]}))
    assert job.evaluation.top_k == [1, 5]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"evaluation": {"boostrap": 5}}, "evaluation.boostrap: unknown key; did you mean boots"),
        ({"evaluation": {"iou_threshold": 0.52}}, "0.52: must be one of COCO's thresholds"),
        ({"evaluation": {"bootstrap": -1}}, "evaluation.bootstrap: -1"),
        ({"evaluation": {"top_k": []}}, "evaluation.top_k"),
        ({"evaluation": {"join": "id"}}, "evaluation.join: 'id'"),
        ({"truth": {"splits": []}}, "truth.splits"),
        ({"evaluation": {"heatmaps": {"step": 3}}}, "heatmaps.step: unknown key; did you mean ste"),
        ({"evaluation": {"heatmaps": {"sample": 0}}}, "evaluation.heatmaps.sample: 0"),
        ({"evaluation": {"heatmaps": {"box_threshold": 0}}}, "evaluation.heatmaps.box_threshold"),
        ({"run": {"workers": 0}}, "run.workers: 0"),
    ],
)
def test_an_error_names_the_key_and_the_rule(sections, message):
    with pytest.raises(ConfigError) as caught:
        parse_evaluation(job_file(**sections))
    assert message in str(caught.value)


def test_the_fingerprint_covers_what_changes_the_metrics():
    reference = fingerprint(parse_evaluation(MINIMAL), ["a", "b"])
    elsewhere = job_file(run={"workers": 2}, sink={"uri": "other/"})
    assert fingerprint(parse_evaluation(elsewhere), ["a", "b"]) == reference
    for other in ({"evaluation": {"seed": 1}}, {"truth": {"splits": ["test"]}}):
        assert fingerprint(parse_evaluation(job_file(**other)), ["a", "b"]) != reference
    assert fingerprint(parse_evaluation(MINIMAL), ["a", "c"]) != reference


def test_only_heatmaps_need_no_ground_truth():
    raw = {key: value for key, value in MINIMAL.items() if key != "truth"}
    for evaluation in ({}, {"evaluation": {"bootstrap": 3}}):
        with pytest.raises(
            ConfigError, match=r"evaluation: there is no ground truth; .*evaluation.heatmaps"
        ):
            parse_evaluation({**raw, **evaluation})
    job = parse_evaluation({**raw, "evaluation": {"heatmaps": {}}})
    assert (job.truth, job.evaluation.heatmaps.sample) == (None, 200)
    with pytest.raises(ConfigError) as caught:  # an invalid truth is the only error
        parse_evaluation({**raw, "truth": {"uri": []}})
    assert "no ground truth" not in str(caught.value)


def test_fingerprints_without_heatmaps_stay_as_before_heatmaps_existed():
    job = parse_evaluation(MINIMAL)
    payload = {
        "version": EVALUATION_VERSION,
        "splits": None,
        "evaluation": job.evaluation.model_dump(mode="json", exclude={"heatmaps"}),
        "identities": ["a", "b"],
    }
    text = json.dumps(payload, sort_keys=True).encode()
    assert fingerprint(job, ["a", "b"]) == hashlib.sha256(text).hexdigest()
    other = parse_evaluation({**MINIMAL, "evaluation": {"heatmaps": {}}})
    assert fingerprint(other, ["a", "b"]) != fingerprint(job, ["a", "b"])
