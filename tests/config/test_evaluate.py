"""An evaluation job's file is right, or every fault in it is told with the remedy."""

import copy
import hashlib
import json

import pytest
import yaml

from cvbatch.config.evaluate import (
    EVALUATION_VERSION,
    fingerprint,
    load_evaluation,
    parse_evaluation,
)
from cvbatch.core.errors import ConfigError

PLAIN = {
    "predictions": {"uri": "result/"},
    "truth": {"uri": "labels/"},
    "sink": {"uri": "out/"},
}


def said(**sections):
    raw = copy.deepcopy(PLAIN)
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return raw


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_job_is_a_mapping(raw):
    with pytest.raises(ConfigError, match="a mapping with predictions and sink"):
        parse_evaluation(raw)


def test_what_is_not_said_has_defaults():
    job = parse_evaluation(PLAIN)
    assert (job.truth.uri, job.truth.splits) == (["labels/"], None)
    assert (job.evaluation.join, job.evaluation.top_k, job.run.workers) == (None, None, None)
    assert job.evaluation.class_map == {}


def test_a_file_with_overrides(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(said(evaluation={"class_map": {"car": "vehicle"}})))
    words = ["evaluation.join=name", "run.workers=auto", "evaluation.class_map.dog=null"]
    job = load_evaluation(path, words)
    assert job.evaluation.class_map == {"car": "vehicle", "dog": None}
    assert job.evaluation.join == "name"


def test_ks_stand_in_order_once():
    job = parse_evaluation(said(evaluation={"top_k": [5, 1, 5]}))
    assert job.evaluation.top_k == [1, 5]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"evaluation": {"boostrap": 5}}, "evaluation.boostrap: unknown key; did you mean boots"),
        ({"evaluation": {"iou_threshold": 0.52}}, "0.52: it must be one of COCO's thresholds"),
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
def test_faults_name_the_key_and_the_rule(sections, message):
    with pytest.raises(ConfigError) as caught:
        parse_evaluation(said(**sections))
    assert message in str(caught.value)


def test_the_fingerprint_is_of_what_changes_the_figures():
    plain = fingerprint(parse_evaluation(PLAIN), ["a", "b"])
    elsewhere = said(run={"workers": 2}, sink={"uri": "other/"})
    assert fingerprint(parse_evaluation(elsewhere), ["a", "b"]) == plain
    for other in ({"evaluation": {"seed": 1}}, {"truth": {"splits": ["test"]}}):
        assert fingerprint(parse_evaluation(said(**other)), ["a", "b"]) != plain
    assert fingerprint(parse_evaluation(PLAIN), ["a", "c"]) != plain


def test_only_heatmaps_can_do_without_a_truth():
    raw = {key: value for key, value in PLAIN.items() if key != "truth"}
    for evaluation in ({}, {"evaluation": {"bootstrap": 3}}):
        with pytest.raises(ConfigError, match=r"evaluation: there is no truth .*ask for heatmaps"):
            parse_evaluation({**raw, **evaluation})
    job = parse_evaluation({**raw, "evaluation": {"heatmaps": {}}})
    assert (job.truth, job.evaluation.heatmaps.sample) == (None, 200)
    with pytest.raises(ConfigError) as caught:  # a truth that is there and wrong is the only fault
        parse_evaluation({**raw, "truth": {"uri": []}})
    assert "no truth" not in str(caught.value)


def test_an_evaluation_from_before_there_were_heatmaps_keeps_its_fingerprint():
    """Said with the key absent from what is hashed, as it was then."""
    job = parse_evaluation(PLAIN)
    said = {
        "version": EVALUATION_VERSION,
        "splits": None,
        "evaluation": job.evaluation.model_dump(mode="json", exclude={"heatmaps"}),
        "identities": ["a", "b"],
    }
    text = json.dumps(said, sort_keys=True).encode()
    assert fingerprint(job, ["a", "b"]) == hashlib.sha256(text).hexdigest()
    other = parse_evaluation({**PLAIN, "evaluation": {"heatmaps": {}}})
    assert fingerprint(other, ["a", "b"]) != fingerprint(job, ["a", "b"])
