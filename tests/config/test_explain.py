"""An explanation job's file is right, or every fault in it is told with the remedy."""

import copy

import pytest
import yaml

from cvbatch.config.explain import fingerprint, load_explanation, parse_explanation
from cvbatch.core.errors import ConfigError

PLAIN = {
    "model": {"task": "classification", "model": "Xception", "weights": "random"},
    "source": {"uri": "in/"},
    "sink": {"uri": "out/"},
    "gradcam": {},
}


def said(**sections):
    raw = copy.deepcopy(PLAIN)
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return raw


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_job_is_a_mapping(raw):
    with pytest.raises(ConfigError, match="a mapping with model and sink"):
        parse_explanation(raw)


def test_only_what_is_asked_for_is_there():
    job = parse_explanation(PLAIN)
    assert job.gradcam is not None
    assert (job.activations, job.patterns, job.weights, job.dream) == (None,) * 4
    assert (job.gradcam.classes, job.gradcam.top_k, job.gradcam.box) == (None, 1, None)


def test_a_section_with_nothing_below_it_is_asked_for(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("patterns:\nweights:\n" + yaml.safe_dump({
        "model": PLAIN["model"], "sink": {"uri": "out/"}
    }))  # fmt: skip
    job = load_explanation(path, ["patterns.layers=auto", "weights.layers=all"])
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
        ({"model": {"heatmap": {}}}, "model.heatmap: it belongs to a prediction"),
        ({"model": {"tiles": {}}}, "model.tiles: it belongs to a prediction"),
        ({"run": {"batch_size": 0}}, "run.batch_size: 0"),
    ],
)
def test_a_fault_names_the_key_and_the_remedy(sections, message):
    with pytest.raises(ConfigError, match=message):
        parse_explanation(said(**sections))


def test_nothing_asked_for_is_refused():
    raw = {key: value for key, value in PLAIN.items() if key != "gradcam"}
    with pytest.raises(ConfigError, match="at least one section of activations, gradcam, dream"):
        parse_explanation(raw)


def test_images_need_a_source():
    raw = {key: value for key, value in PLAIN.items() if key != "source"}
    with pytest.raises(ConfigError, match="source: missing; gradcam is about images"):
        parse_explanation(raw)


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as refused:
        parse_explanation(said(patterns={"steps": 0}, gradcam={"top_k": 0}, weights={"x": 1}))
    assert len(str(refused.value).splitlines()) == 3


def test_the_fingerprint_is_of_what_changes_the_result():
    job = parse_explanation(PLAIN)
    same = parse_explanation(said(run={"workers": 2}, sink={"uri": "there/"}, source={"uri": "x"}))
    assert fingerprint(job, "id") == fingerprint(same, "id")
    others = [
        said(patterns={}),
        said(gradcam={"top_k": 2}),
        said(model={"resize": "letterbox"}),
        said(source={"max_pixels": 5}),
    ]
    found = {fingerprint(parse_explanation(raw), "id") for raw in (PLAIN, *others)}
    assert len(found) == 5
    assert fingerprint(job, "other") not in found
