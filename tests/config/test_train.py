"""A training job's file is right, or every fault in it is told with the remedy."""

import copy

import pytest
import yaml

from cvbatch.config.train import fingerprint, load_training, parse_training
from cvbatch.core.errors import ConfigError

PLAIN = {
    "source": {"uri": "labels/"},
    "sink": {"uri": "out/"},
    "model": {"task": "classification", "model": "lenet5", "weights": "random"},
}


def said(**sections):
    """Return the plain job with some keys of its sections replaced or added."""
    raw = copy.deepcopy(PLAIN)
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return raw


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_job_is_a_mapping(raw):
    with pytest.raises(ConfigError, match="a mapping with source, sink and model"):
        parse_training(raw)


def test_what_is_not_said_has_defaults():
    job = parse_training(PLAIN)
    assert job.source.uri == ["labels/"]
    assert job.source.splits.model_dump() == {
        "train": "train",
        "validation": "validation",
        "test": "test",
    }
    assert (job.training.recipe, job.training.metric, job.run.workers) == ("finetune", None, None)
    assert not job.training.has_augmentation


def test_a_file_with_overrides_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELS", "s3://labels")
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(said(source={"uri": "${LABELS}/pets"})))
    job = load_training(path, ["training.epochs=3", "run.workers=auto", "model.image_size=64"])
    assert job.source.uri == ["s3://labels/pets"]
    assert job.training.epochs == 3
    assert job.run.workers is None
    assert job.model.image_size == (64, 64)


FAULTS = {
    "nearest key": (said(training={"epoch": 3}), "training.epoch: unknown key; did you mean epo"),
    "nested key": (said(training={"augment": {"flips": 1}}), "augment.flips: .*did you mean flip"),
    "no such section": ({**PLAIN, "models": []}, "models: unknown key; did you mean model"),
    "no model": ({key: PLAIN[key] for key in ("source", "sink")}, "model: missing"),
    "no source": (said(source={"uri": []}), "source.uri: "),
    "task": (said(model={"task": "pose"}), "model.task: 'pose': input should be"),
    "weights": (said(model={"weights": None}), "model: weights are missing for model 'lenet5'"),
    "a file has weights": (said(model={"model": "a.keras"}), "weights for 'a.keras': a .keras"),
    "a file has a size": (
        said(model={"model": "a.keras", "weights": None, "image_size": 32}),
        "image_size for 'a.keras'",
    ),
    "labels of boxes": (
        said(model={"task": "detection", "multi_label": True}),
        "multi_label is about classification",
    ),
    "recipe": (said(training={"recipe": "fromscratch"}), "training.recipe: 'fromscratch'"),
    "epochs": (said(training={"epochs": 0}), "training.epochs: 0: .*greater than or equal to 1"),
    "rate": (said(training={"learning_rate": 0}), "training.learning_rate: 0"),
    "precision": (said(training={"precision": "float16"}), "training.precision: 'float16'"),
    "features vary": (
        said(training={"recipe": "features", "augment": {"flip": "both"}}),
        "augment does not go with recipe: features",
    ),
    "weights of classes": (
        said(training={"class_weights": [1, 2]}),
        "training.class_weights is about segmentation, not classification",
    ),
    "sizes of one task": (
        said(training={"image_sizes": [64]}),
        "training.image_sizes is about detection, not classification",
    ),
    "features of many sizes": (
        said(model={"task": "detection"}, training={"recipe": "features", "image_sizes": [64]}),
        "image_sizes does not go with recipe: features",
    ),
    "no size": (
        said(model={"task": "detection"}, training={"image_sizes": []}),
        "training.image_sizes: ",
    ),
    "negative weights": (
        said(model={"task": "segmentation"}, training={"class_weights": [1, -2]}),
        r"training.class_weights\[1\]: -2",
    ),
    "ignored class": (
        said(model={"task": "segmentation"}, training={"ignored_class": 255}),
        "training.ignored_class: 255",
    ),
    "workers": (said(run={"workers": 0}), "run.workers: 0: "),
    "variable": (said(sink={"uri": "${NOWHERE_SET}"}), "NOWHERE_SET is not set; export it"),
}


@pytest.mark.parametrize(("raw", "told"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told(raw, told):
    with pytest.raises(ConfigError, match=told) as caught:
        parse_training(raw)
    assert caught.value.exit_status == 2


def test_all_faults_are_told_at_once():
    raw = said(training={"epochs": 0, "recipe": "none"}, run={"worker": 2})
    with pytest.raises(ConfigError) as caught:
        parse_training(raw)
    for key in ("training.epochs", "training.recipe", "run.worker"):
        assert key in str(caught.value)


def test_the_fingerprint_covers_what_is_learnt_and_not_where():
    plain = fingerprint(parse_training(PLAIN), ["a"])
    for same in (
        said(run={"workers": 3}),
        said(sink={"uri": "elsewhere"}),
        said(source={"uri": "moved"}),
        said(training={"keep": 9}),
    ):
        assert fingerprint(parse_training(same), ["a"]) == plain
    for other in (
        said(training={"epochs": 3}),
        said(model={"weights": "a.h5"}),
        said(source={"splits": {"test": None}}),
    ):
        assert fingerprint(parse_training(other), ["a"]) != plain
    assert fingerprint(parse_training(PLAIN), ["b"]) != plain


def test_anchors_are_fitted_for_a_new_grid_detector_alone():
    yolo = {"task": "detection", "model": "yolo", "weights": "random"}
    assert parse_training(said(model=yolo)).model.fits_anchors
    for other in (
        {"anchors": 0},
        {"build": {"anchors": [[0.1, 0.1]]}},
        {"weights": "a.weights.h5"},
        {"model": "sliding_fcn"},
    ):
        assert not parse_training(said(model=yolo | other)).model.fits_anchors
