"""What is frozen stays to the bit, what learns moves; where head and base part is told by names."""

import keras
import numpy as np
import pytest
from keras import layers

from cvbatch.core.errors import ModelError
from cvbatch.models import classifiers, detectors, segmenters
from cvbatch.models.applications import build_application
from cvbatch.models.graph_surgery import flatten
from cvbatch.train.optimizers import Optimization, make_optimizer
from cvbatch.train.phases import Phase, base_layers, freeze, last_feature_maps, moving_statistics, phases_of
from cvbatch.train.step import Step
from tests.support import networks, toy_trainings

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def phase(part, freezes=True):
    return Phase(part, part, 1, 0.1, freezes)


def learning(model, part, freezes=True):
    """The names of the layers with weights that learn."""
    freeze(model, phase(part, freezes))
    return [layer.name for layer in flatten(model).layers if layer.trainable_weights]


def head_of(model):
    graph = flatten(model)
    base = base_layers(graph)
    return [layer.name for layer in graph.layers if id(layer) not in base and layer.weights]


# ------------------------------------------------------------ phases


@pytest.mark.parametrize(
    ("recipe", "options", "expected"),
    [
        ("scratch", {}, [Phase("all", "all", 9, 0.1, False)]),
        ("features", {}, [Phase("head", "head", 9, 0.1)]),
        ("frozen", {}, [Phase("head", "head", 9, 0.1)]),
        ("finetune", {}, [Phase("last_block", "last_block", 9, 0.001)]),
        (
            "finetune",
            {"head_epochs": 3, "base_rate": 2e-5, "unfreeze": "all"},
            [Phase("head", "head", 3, 0.1), Phase("all", "all", 9, 2e-5)],
        ),
    ],
)
def test_a_recipe_is_its_phases(recipe, options, expected):
    got = phases_of(recipe, 9, 0.1, **options)

    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert (one.name, one.part, one.epochs) == (other.name, other.part, other.epochs)
        assert one.freezes_normalization == other.freezes_normalization
        assert one.learning_rate == pytest.approx(other.learning_rate)


# ------------------------------------------------------------ head and base


def test_a_network_without_weights_has_nothing_to_train():
    inputs = keras.Input((4, 4, 3))
    with pytest.raises(ModelError, match="nothing to train"):
        freeze(keras.Model(inputs, layers.ReLU()(inputs)), phase("head"))


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
def test_the_head_is_what_the_last_feature_map_is_not_made_of(build, head):
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


# ------------------------------------------------------------ what learns


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
def test_a_part_learns_and_the_rest_stands_still_to_the_bit(part, freezes, expected):
    model = toy_trainings.normalized()
    assert set(learning(model, part, freezes)) == expected
    before = {layer.name: layer.get_weights() for layer in model.layers}
    optimizer = make_optimizer(Optimization("adamw", weight_decay=0.1), 0.01)
    step = Step(toy_trainings.ColourLearner(model), model, optimizer)
    for seed in range(3):
        step([toy_trainings.batch_of(*toy_trainings.images(8, seed))])

    for layer in model.layers:
        for old, new in zip(before[layer.name], layer.get_weights(), strict=True):
            assert np.array_equal(old, new) == (layer.name not in expected), layer.name


def test_a_later_phase_frees_what_an_earlier_one_froze():
    model = toy_trainings.normalized()
    learning(model, "head")

    assert set(learning(model, "all", freezes=False)) == {
        "first", "norm1", "second", "norm2", "scores"
    }  # fmt: skip


def test_normalisation_in_the_head_learns_in_every_phase():
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="old")(layers.Conv2D(4, 3, name="body")(inputs))
    x = layers.BatchNormalization(name="new")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3, name="scores")(x))

    assert learning(model, "head") == ["new", "scores"]
    assert [v.path.split("/")[0] for v in moving_statistics(model)] == ["new", "new"]


@pytest.mark.parametrize(
    ("name", "first", "last_of_the_frozen"),
    [
        ("VGG16", "block5_conv1", "block4_conv3"),
        ("ResNet50", "conv5_block1_1_conv", "conv4_block6_3_conv"),
        ("MobileNetV2", "block_13_depthwise", "block_13_expand"),
    ],
)
def test_the_last_block_is_the_one_of_the_textbook(name, first, last_of_the_frozen):
    model = build_application(name, 2, (64, 64))
    names = learning(model, "last_block")

    assert first in names
    assert last_of_the_frozen not in names
    assert names[-1] == "predictions"


def test_the_last_block_of_a_network_with_squeeze_and_excitation_is_its_last_stage():
    model = classifiers.CLASSIFIERS["se_resnet34"].build(2, (64, 64))
    names = learning(model, "last_block")
    learning(model, "all", freezes=False)
    weights = [layer for layer in model.layers if layer.name in names]
    convolutions = [layer for layer in weights if isinstance(layer, layers.Conv2D)]

    assert {layer.filters for layer in convolutions} == {512}


@pytest.mark.parametrize(
    ("part", "message"),
    [("nowhere", "no layer 'nowhere'"), ("scores", "belongs to the head")],
)
def test_a_part_that_is_no_layer_of_the_base_is_refused(part, message):
    with pytest.raises(ModelError, match=message):
        freeze(toy_trainings.normalized(), phase(part))


def test_the_last_block_of_an_unknown_size_is_not_guessed():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    with pytest.raises(ModelError, match="fixed image size"):
        freeze(keras.Model(inputs, layers.Dense(2)(x)), phase("last_block"))
