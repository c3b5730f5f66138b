"""Job files of training: defaults, validation errors, fingerprint."""

import copy

import pytest
import yaml

from cvbatch.config.loader import load
from cvbatch.config.train import TrainJob, fingerprint, parse_training
from cvbatch.core.errors import ConfigError

MINIMAL = {
    "source": {"uri": "labels/"},
    "sink": {"uri": "out/"},
    "model": {"task": "classification", "model": "lenet5", "weights": "random"},
}


def job_file(**sections):
    """Return the minimal job with some keys of its sections replaced or added."""
    raw = copy.deepcopy(MINIMAL)
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return raw


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_job_is_a_mapping(raw):
    with pytest.raises(ConfigError, match="a mapping with source, sink and model"):
        parse_training(raw)


def test_defaults():
    job = parse_training(MINIMAL)
    assert job.source.uri == ["labels/"]
    assert job.source.splits.model_dump() == {
        "train": "train",
        "validation": "validation",
        "test": "test",
    }
    assert (job.training.recipe, job.training.metric, job.run.workers) == ("finetune", None, None)
    assert not job.training.has_augmentation


def test_training_from_scratch_keeps_the_defaults_of_earlier_versions():
    """The fingerprint was computed by a version in which all recipes had the same defaults."""
    job = parse_training(job_file(training={"recipe": "scratch"}))
    training = job.training
    assert (training.epochs, training.head_epochs, training.learning_rate) == (10, 2, 1e-3)
    assert (
        fingerprint(job, ["a"])
        == "21bb116a3d1990db6416762073c365ebbdfb65280109108d51c8cd3aa3d6bcf5"
    )
    explicit = parse_training(job_file(training={"recipe": "scratch", "epochs": 3}))
    assert explicit.training.epochs == 3


@pytest.mark.parametrize("recipe", ["features", "frozen", "finetune"])
def test_recipes_of_pretrained_networks_have_their_own_defaults(recipe):
    training = parse_training(job_file(training={"recipe": recipe})).training
    assert (training.epochs, training.learning_rate) == (20, None)
    explicit = {"recipe": recipe, "learning_rate": 0.02, "epochs": 7}
    training = parse_training(job_file(training=explicit)).training
    assert (training.epochs, training.learning_rate) == (7, 0.02)


def test_a_file_with_overrides_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELS", "s3://labels")
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_file(source={"uri": "${LABELS}/pets"})))
    job = load(TrainJob, path, ["training.epochs=3", "run.workers=auto", "model.image_size=64"])
    assert job.source.uri == ["s3://labels/pets"]
    assert job.training.epochs == 3
    assert job.run.workers is None
    assert job.model.image_size == (64, 64)


ERRORS = {
    "nearest key": (
        job_file(training={"epoch": 3}),
        "training.epoch: unknown key; did you mean epo",
    ),
    "nested key": (
        job_file(training={"augment": {"flips": 1}}),
        "augment.flips: .*did you mean flip",
    ),
    "no such section": ({**MINIMAL, "models": []}, "models: unknown key; did you mean model"),
    "no model": ({key: MINIMAL[key] for key in ("source", "sink")}, "model: missing"),
    "no source": (job_file(source={"uri": []}), "source.uri: "),
    "task": (job_file(model={"task": "pose"}), "model.task: 'pose': must be"),
    "weights": (job_file(model={"weights": None}), "model: weights are missing for model 'lenet5'"),
    "a file has weights": (job_file(model={"model": "a.keras"}), "weights for 'a.keras': a .keras"),
    "a file has a size": (
        job_file(model={"model": "a.keras", "weights": None, "image_size": 32}),
        "image_size for 'a.keras'",
    ),
    "labels of boxes": (
        job_file(model={"task": "detection", "multi_label": True}),
        "multi_label is about classification",
    ),
    "recipe": (job_file(training={"recipe": "fromscratch"}), "training.recipe: 'fromscratch'"),
    "epochs": (
        job_file(training={"epochs": 0}),
        "training.epochs: 0: .*must be at least 1",
    ),
    "rate": (job_file(training={"learning_rate": 0}), "training.learning_rate: 0"),
    "precision": (job_file(training={"precision": "float16"}), "training.precision: 'float16'"),
    "features vary": (
        job_file(training={"recipe": "features", "augment": {"flip": "both"}}),
        "augment does not go with recipe: features",
    ),
    "a negative weight by name": (
        job_file(training={"class_weights": {"cat": -1}}),
        "training.class_weights.cat: -1: must be at least 0",
    ),
    "another word for balanced": (
        job_file(training={"class_weights": "equal"}),
        "training.class_weights: 'equal': must be 'balanced' or 'sqrt_balanced'",
    ),
    "balanced labels": (
        job_file(model={"multi_label": True}, training={"class_weights": "balanced"}),
        "balanced needs classes that exclude each other, not multi_label: true",
    ),
    "Dice loss of images": (
        job_file(training={"loss": {"name": "focal", "dice": 1}}),
        "training.loss.dice is about segmentation, not classification; remove it",
    ),
    "loss of boxes": (
        job_file(model={"task": "detection"}, training={"loss": {"name": "focal"}}),
        "training.loss is about classification and segmentation, not detection",
    ),
    "gamma of another loss": (
        job_file(training={"loss": {"gamma": 1}}),
        "training.loss: gamma belongs to the focal loss, not to cross_entropy; set name: focal",
    ),
    "plateau of another schedule": (
        job_file(training={"plateau": {"patience": 3}}),
        "plateau does not go with schedule: cosine; set schedule: plateau",
    ),
    "an end before the plateau": (
        job_file(training={"schedule": "plateau", "patience": 10}),
        "patience 10 ends a phase before the learning rate falls after plateau.patience 10",
    ),
    "activation of boxes": (
        job_file(model={"task": "localization", "activation": "none"}),
        "model.activation is about classification and segmentation, not localization",
    ),
    "output of boxes": (
        job_file(model={"task": "detection", "output": "boxes"}),
        "model.output is about classification and segmentation, not detection",
    ),
    "sizes of one task": (
        job_file(training={"image_sizes": [64]}),
        "training.image_sizes is about detection, not classification",
    ),
    "features of many sizes": (
        job_file(model={"task": "detection"}, training={"recipe": "features", "image_sizes": [64]}),
        "image_sizes does not go with recipe: features",
    ),
    "no size": (
        job_file(model={"task": "detection"}, training={"image_sizes": []}),
        "training.image_sizes: ",
    ),
    "negative weights": (
        job_file(model={"task": "segmentation"}, training={"class_weights": [1, -2]}),
        r"training.class_weights\[1\]: -2",
    ),
    "ignored class": (
        job_file(model={"task": "segmentation"}, training={"ignored_class": 255}),
        "training.ignored_class: 255",
    ),
    "workers": (job_file(run={"workers": 0}), "run.workers: 0: "),
    "variable": (job_file(sink={"uri": "${NOWHERE_SET}"}), "NOWHERE_SET is not set; export it"),
}


@pytest.mark.parametrize(("raw", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_names_the_key_and_the_rule(raw, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_training(raw)
    assert caught.value.exit_status == 2


def test_all_errors_are_reported_at_once():
    raw = job_file(training={"epochs": 0, "recipe": "none"}, run={"worker": 2})
    with pytest.raises(ConfigError) as caught:
        parse_training(raw)
    for key in ("training.epochs", "training.recipe", "run.worker"):
        assert key in str(caught.value)


def test_the_fingerprint_covers_hyperparameters_but_not_locations():
    reference = fingerprint(parse_training(MINIMAL), ["a"])
    for same in (
        job_file(run={"workers": 3}),
        job_file(sink={"uri": "elsewhere"}),
        job_file(source={"uri": "moved"}),
        job_file(training={"keep": 9}),
    ):
        assert fingerprint(parse_training(same), ["a"]) == reference
    for other in (
        job_file(training={"epochs": 3}),
        job_file(model={"weights": "a.h5"}),
        job_file(source={"splits": {"test": None}}),
    ):
        assert fingerprint(parse_training(other), ["a"]) != reference
    assert fingerprint(parse_training(MINIMAL), ["b"]) != reference


def test_keys_that_were_added_do_not_change_a_fingerprint_by_their_defaults():
    reference = parse_training(MINIMAL)
    explicit = parse_training(
        job_file(
            model={"output": None, "activation": "auto"},
            training={"loss": {"name": "cross_entropy", "dice": 0}, "plateau": {"patience": 10}},
        )
    )
    dump = reference.model_dump()
    assert not {"loss", "plateau"} & dump["training"].keys()
    assert not {"output", "activation"} & dump["model"].keys()
    assert fingerprint(explicit, ["a"]) == fingerprint(reference, ["a"])
    for other in (
        job_file(model={"output": "scores"}),
        job_file(training={"loss": {"label_smoothing": 0.1}}),
        job_file(training={"class_weights": "balanced"}),
        job_file(training={"schedule": "plateau"}),
    ):
        assert fingerprint(parse_training(other), ["a"]) != fingerprint(reference, ["a"])


# Computed by a version in which a rate of the base that is not set was a hundredth.
OLD_FINGERPRINTS = [
    ("frozen", None, "44a4abe20496f7ce7556d9b5ed2c84c8c2720c77451a32f1b5d61c0970cc1d20"),
    ("finetune", 1e-5, "f74b61049caaa6b7c548fb83bc3f66bb1bc4cb2cebefb33da087acdf78aad4e5"),
    ("finetune", None, "d7a38a8b87d5ab072a8cd8888fa3fbdc2aa6abf08e317e11dda01ef745cd6bc4"),
]


@pytest.mark.parametrize(("recipe", "base_rate", "old"), OLD_FINGERPRINTS)
def test_a_fingerprint_changes_with_the_meaning_of_a_rate_that_is_not_set(recipe, base_rate, old):
    training = {"epochs": 10, "head_epochs": 2, "learning_rate": 1e-3}
    training |= {"recipe": recipe, "base_learning_rate": base_rate}
    changed = (recipe, base_rate) == ("finetune", None)
    assert (fingerprint(parse_training(job_file(training=training)), ["a"]) != old) == changed


def test_anchors_are_fitted_only_for_an_untrained_yolo():
    yolo = {"task": "detection", "model": "yolo", "weights": "random"}
    assert parse_training(job_file(model=yolo)).model.fits_anchors
    for other in (
        {"anchors": 0},
        {"build": {"anchors": [[0.1, 0.1]]}},
        {"weights": "a.weights.h5"},
        {"model": "sliding_fcn"},
    ):
        assert not parse_training(job_file(model=yolo | other)).model.fits_anchors
