"""Frozen layers do not change, trained ones do; base and head are found in every network."""

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.config.train import TrainingConfig
from cvbatch.core.errors import ModelError
from cvbatch.models import classifiers, detectors, segmenters
from cvbatch.models.applications import build_application
from cvbatch.models.graph_surgery import flatten
from cvbatch.train.optimizers import Optimization, make_optimizer
from cvbatch.train.phases import (
    Phase,
    base_layers,
    freeze,
    has_linear_head,
    last_feature_maps,
    moving_statistics,
    phases_of,
)
from cvbatch.train.step import Step
from tests.support import networks, toy_trainings

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def phase_of(part, freezes=True):
    return Phase(part, part, 1, 0.1, freezes)


def trained_layers(model, part, freezes=True):
    """Return the names of the layers with trainable weights."""
    freeze(model, phase_of(part, freezes))
    return [layer.name for layer in flatten(model).layers if layer.trainable_weights]


def head_of(model):
    graph = flatten(model)
    base = base_layers(graph)
    return [layer.name for layer in graph.layers if id(layer) not in base and layer.weights]


# --- phases


@pytest.mark.parametrize(
    ("recipe", "options", "expected"),
    [
        ("scratch", {}, [Phase("all", "all", 9, 0.1, False)]),
        ("features", {}, [Phase("head", "head", 9, 0.1)]),
        ("frozen", {}, [Phase("head", "head", 9, 0.1)]),
        ("finetune", {"head_epochs": 0}, [Phase("last_block", "last_block", 9, 0.01)]),
        (
            "finetune",
            {"head_epochs": 3, "base_learning_rate": 2e-5, "unfreeze": "all"},
            [Phase("head", "head", 3, 0.1), Phase("all", "all", 9, 2e-5)],
        ),
    ],
)
def test_phases_of_a_recipe(recipe, options, expected):
    training = TrainingConfig(recipe=recipe, epochs=9, **{"learning_rate": 0.1, **options})
    phases = phases_of(training, toy_trainings.plain())

    assert len(phases) == len(expected)
    for phase, wanted in zip(phases, expected, strict=True):
        assert (phase.name, phase.part, phase.epochs) == (wanted.name, wanted.part, wanted.epochs)
        assert phase.freezes_normalization == wanted.freezes_normalization
        assert phase.learning_rate == pytest.approx(wanted.learning_rate)


@pytest.mark.parametrize(
    ("recipe", "optimizer", "build", "rate"),
    [
        ("frozen", "adamw", "plain", 0.01),
        ("finetune", "sgd", "plain", 0.01),
        ("frozen", "rmsprop", "plain", 0.001),
        ("frozen", "adamw", "hidden_layer", 0.001),
        ("scratch", "adamw", "plain", 0.001),
    ],
)
def test_an_automatic_rate_is_higher_where_only_a_head_of_one_layer_is_trained(
    recipe, optimizer, build, rate
):
    model = hidden_layer() if build == "hidden_layer" else toy_trainings.plain()
    training = TrainingConfig(recipe=recipe, optimizer=optimizer, learning_rate="auto")
    first, *others = phases_of(training, model)
    assert first.learning_rate == rate
    assert [phase.learning_rate for phase in others] == [rate / 10] * (recipe == "finetune")


# --- head and base


def hidden_layer():
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Dense(4, activation="relu")(x)))


@pytest.mark.parametrize(
    ("build", "expected"),
    [(toy_trainings.plain, True), (toy_trainings.normalized, True), (hidden_layer, False)],
)
def test_a_head_is_linear_if_one_layer_of_it_has_weights(build, expected):
    assert has_linear_head(build()) is expected


def test_a_network_without_weights_has_nothing_to_train():
    inputs = keras.Input((4, 4, 3))
    with pytest.raises(ModelError, match="nothing to train"):
        freeze(keras.Model(inputs, layers.ReLU()(inputs)), phase_of("head"))


@pytest.mark.parametrize(
    ("build", "head"),
    [
        (lambda: toy_trainings.normalized(), ["scores"]),
        (networks.plain_classifier, ["dense", "dense_1"]),
        (networks.nested_classifier, ["dense"]),
        (lambda: build_application("VGG16", 3, (32, 32)), ["fc1", "fc2", "predictions"]),
        (lambda: build_application("MobileNetV2", 3, (32, 32)), ["predictions"]),
        (
            lambda: detectors.training_view(detectors.localizer(2, (32, 32))),
            ["box", "classes"],
        ),
        (lambda: detectors.training_view(detectors.yolo(2, (32, 32), width=4)), ["raw"]),
        (lambda: segmenters.encoder_decoder(3, (16, 16)), ["scores"]),
        (
            lambda: segmenters.fcn8s(2, (32, 32), "MobileNetV2"),
            ["score_16", "score_32", "score_8", "up_16", "up_32", "up_8"],
        ),
    ],
)
def test_the_head_is_all_layers_after_the_last_feature_map(build, head):
    keras.backend.clear_session()
    assert sorted(head_of(build())) == head


def test_squeeze_and_excitation_belongs_to_the_base():
    model = classifiers.CLASSIFIERS["se_resnet34"].build(2, (32, 32))

    assert head_of(model) == ["scores"]
    assert len(last_feature_maps(flatten(model))) == 1


def test_auxiliary_heads_belong_to_the_head():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="early")(inputs)
    side = layers.Dense(2, name="auxiliary")(layers.GlobalAveragePooling2D()(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="late")(x))
    model = keras.Model(inputs, {"scores": layers.Dense(2, name="scores")(x), "side": side})

    assert sorted(head_of(model)) == ["auxiliary", "scores"]


# --- trained layers


@pytest.mark.parametrize(
    ("part", "freezes", "expected"),
    [
        ("head", True, {"scores"}),
        ("head", False, {"scores"}),
        ("last_block", True, {"second", "scores"}),
        ("last_block", False, {"second", "norm2", "scores"}),
        ("norm1", False, {"norm1", "second", "norm2", "scores"}),
        ("all", True, {"first", "second", "scores"}),
        ("all", False, {"first", "norm1", "second", "norm2", "scores"}),
    ],
)
def test_only_the_layers_of_a_part_change(part, freezes, expected):
    model = toy_trainings.normalized()
    assert set(trained_layers(model, part, freezes)) == expected
    before = {layer.name: layer.get_weights() for layer in model.layers}
    optimizer = make_optimizer(Optimization("adamw", weight_decay=0.1), 0.01)
    step = Step(toy_trainings.ColourLearner(model), model, optimizer)
    for seed in range(3):
        step([toy_trainings.batch_of(*toy_trainings.images(8, seed))])

    for layer in model.layers:
        for old, new in zip(before[layer.name], layer.get_weights(), strict=True):
            assert np.array_equal(old, new) == (layer.name not in expected), layer.name


def test_a_later_phase_unfreezes_layers():
    model = toy_trainings.normalized()
    trained_layers(model, "head")

    assert set(trained_layers(model, "all", freezes=False)) == {
        "first", "norm1", "second", "norm2", "scores"
    }  # fmt: skip


def test_normalisation_in_the_head_is_always_trained():
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="old")(layers.Conv2D(4, 3, name="body")(inputs))
    x = layers.BatchNormalization(name="new")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3, name="scores")(x))

    assert trained_layers(model, "head") == ["new", "scores"]
    assert [v.path.split("/")[0] for v in moving_statistics(model)] == ["new", "new"]


@pytest.mark.parametrize(
    ("name", "first", "last_frozen"),
    [
        ("VGG16", "block5_conv1", "block4_conv3"),
        ("ResNet50", "conv5_block1_1_conv", "conv4_block6_3_conv"),
        ("MobileNetV2", "block_13_depthwise", "block_13_expand"),
    ],
)
def test_the_last_block_of_known_networks(name, first, last_frozen):
    model = build_application(name, 2, (64, 64))
    names = trained_layers(model, "last_block")

    assert first in names
    assert last_frozen not in names
    assert names[-1] == "predictions"


def test_the_last_block_with_squeeze_and_excitation_is_the_last_stage():
    model = classifiers.CLASSIFIERS["se_resnet34"].build(2, (64, 64))
    names = trained_layers(model, "last_block")
    trained_layers(model, "all", freezes=False)
    weights = [layer for layer in model.layers if layer.name in names]
    convolutions = [layer for layer in weights if isinstance(layer, layers.Conv2D)]

    assert {layer.filters for layer in convolutions} == {512}


@pytest.mark.parametrize(
    ("part", "message"),
    [("nowhere", "no layer 'nowhere'"), ("scores", "belongs to the head")],
)
def test_a_part_outside_the_base_is_refused(part, message):
    with pytest.raises(ModelError, match=message):
        freeze(toy_trainings.normalized(), phase_of(part))


def test_the_last_block_needs_a_known_image_size():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    with pytest.raises(ModelError, match="fixed image size"):
        freeze(keras.Model(inputs, layers.Dense(2)(x)), phase_of("last_block"))
