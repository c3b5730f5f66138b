"""Job files of explanation: defaults, validation errors, fingerprint."""

import copy

import pytest
import yaml

from cvbatch.config.explain import ExplainJob, fingerprint, parse_explanation
from cvbatch.config.loader import load
from cvbatch.core.errors import ConfigError

MINIMAL = {
    "model": {"task": "classification", "model": "Xception", "weights": "random"},
    "source": {"uri": "in/"},
    "sink": {"uri": "out/"},
    "gradcam": {},
}


def job_file(**sections):
    raw = copy.deepcopy(MINIMAL)
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return raw


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_job_is_a_mapping(raw):
    with pytest.raises(ConfigError, match="a mapping with model and sink"):
        parse_explanation(raw)


def test_absent_sections_are_none():
    job = parse_explanation(MINIMAL)
    assert job.gradcam is not None
    assert (job.activations, job.patterns, job.weights, job.dream) == (None,) * 4
    assert (job.gradcam.classes, job.gradcam.top_k, job.gradcam.box) == (None, 1, None)


def test_an_empty_section_has_its_defaults(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("patterns:\nweights:\n" + yaml.safe_dump({
        "model": MINIMAL["model"], "sink": {"uri": "out/"}
    }))  # fmt: skip
    job = load(ExplainJob, path, ["patterns.layers=auto", "weights.layers=all"])
    assert job.patterns is not None
    assert job.weights is not None
    assert (job.patterns.filters, job.patterns.steps, job.patterns.step) == (64, 30, 10.0)
    assert job.source is None


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"patterns": {"filtres": 5}}, "patterns.filtres: unknown key; did you mean filters"),
        ({"model": {"top": 5}}, "model.top: unknown key; did you mean top_k"),
        ({"model": {"task": "clasification"}}, "model.task: .* did you mean classification"),
        ({"patterns": {"layers": []}}, "patterns.layers: "),
        ({"patterns": {"step": 0}}, "patterns.step: 0"),
        ({"dream": {}}, "dream.layers: missing"),
        ({"dream": {"layers": {}}}, "dream.layers: "),
        ({"dream": {"layers": {"a": 1}, "octave_scale": 1}}, "dream.octave_scale: 1"),
        ({"gradcam": {"box": [0.5, 0, 0.5, 1]}}, "each minimum below its maximum"),
        ({"gradcam": {"box": [10, 20, 30, 40]}}, "gradcam.box"),
        ({"gradcam": {"box": [0, 0, 1, 1]}}, "a classification model scores the whole image"),
        ({"model": {"heatmap": {}}}, "model.heatmap: only prediction jobs have it"),
        ({"model": {"tiles": {}}}, "model.tiles: only prediction jobs have it"),
        ({"run": {"batch_size": 0}}, "run.batch_size: 0"),
    ],
)
def test_an_error_names_the_key_and_the_rule(sections, message):
    with pytest.raises(ConfigError, match=message):
        parse_explanation(job_file(**sections))


def test_a_job_without_sections_is_refused():
    raw = {key: value for key, value in MINIMAL.items() if key != "gradcam"}
    with pytest.raises(ConfigError, match="at least one section of activations, gradcam, dream"):
        parse_explanation(raw)


def test_sections_about_images_need_a_source():
    raw = {key: value for key, value in MINIMAL.items() if key != "source"}
    with pytest.raises(ConfigError, match="source: missing; the section gradcam needs images"):
        parse_explanation(raw)


def test_all_errors_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        parse_explanation(job_file(patterns={"steps": 0}, gradcam={"top_k": 0}, weights={"x": 1}))
    assert len(str(refused.value).splitlines()) == 3


def test_the_fingerprint_covers_what_changes_the_results():
    job = parse_explanation(MINIMAL)
    same = parse_explanation(
        job_file(run={"workers": 2}, sink={"uri": "there/"}, source={"uri": "x"})
    )
    assert fingerprint(job, "id") == fingerprint(same, "id")
    others = [
        job_file(patterns={}),
        job_file(gradcam={"top_k": 2}),
        job_file(model={"resize": "letterbox"}),
        job_file(source={"max_pixels": 5}),
    ]
    fingerprints = {fingerprint(parse_explanation(raw), "id") for raw in (MINIMAL, *others)}
    assert len(fingerprints) == 5
    assert fingerprint(job, "other") not in fingerprints
