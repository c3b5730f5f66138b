"""Training step, compared with plain TensorFlow gradients and with Keras' loss scaling."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from cvbatch.core.errors import TrainingError
from cvbatch.train import step as step_module
from cvbatch.train.batches import Batch
from cvbatch.train.collectives import Replicas
from cvbatch.train.learners.classification import Classification, ClassOptions
from cvbatch.train.learners.losses import ClassLoss
from cvbatch.train.step import Step
from tests.support import toy_trainings

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
}


def step_of(model, optimizer="sgd", **options):
    return Step(toy_trainings.ColourLearner(model), model, OPTIMIZERS[optimizer](), **options)


def batch_of(count, seed=0):
    return toy_trainings.batch_of(*toy_trainings.images(count, seed))


def micro_batches(batch, parts):
    """Return the batch as micro-batches of equal size."""
    indices = np.split(np.arange(len(batch.pixels)), parts)
    return [
        Batch(batch.pixels[i], {n: v[i] for n, v in batch.targets.items()}, len(i)) for i in indices
    ]


def gradients_by_hand(model, batches):
    """Return the loss of all rows and its gradients: one tape per batch, summed in NumPy."""
    learner = toy_trainings.ColourLearner(model)
    rows = sum(len(batch.pixels) for batch in batches)
    loss, total = 0.0, None
    for batch in batches:
        with tf.GradientTape() as tape:
            outputs = model(batch.pixels.astype(np.float32), training=True)
            parts = learner.losses(outputs, batch.targets)
            share = 0.8 * tf.reduce_sum(parts["cross_entropy"]) + 0.2 * tf.reduce_sum(
                parts["square"]
            )
            share = share / rows
        gradients = [g.numpy() for g in tape.gradient(share, model.trainable_variables)]
        total = (
            gradients if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
        )
        loss += float(share)
    return loss, total


def assert_equal(actual, expected, atol=1e-5):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_a_step_without_images_changes_no_weight():
    model = toy_trainings.plain()
    before = model.get_weights()
    step = step_of(model, "adamw")
    result = step([batch_of(4)._replace(num_real=0)])

    assert (result.num_images, result.loss, result.is_applied) == (0, 0.0, False)
    assert_equal(model.get_weights(), before, atol=0)
    assert int(step.optimizer.iterations) == 0


def test_a_step_with_one_image():
    model = toy_trainings.plain()
    batch = batch_of(1)
    loss, gradients = gradients_by_hand(model, [batch])
    before = model.get_weights()
    result = step_of(model)([batch])

    assert result.loss == pytest.approx(loss, abs=1e-6)
    assert result.num_images == 1
    assert_equal(
        model.get_weights(), [w - 0.05 * g for w, g in zip(before, gradients, strict=True)]
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "build",
    [toy_trainings.plain, lambda: toy_trainings.normalized(is_frozen=True)],
    ids=["plain", "frozen"],
)
def test_twenty_steps_equal_plain_gradient_descent(build, optimizer):
    ours, theirs = build(), build()
    step, reference = step_of(ours, optimizer), OPTIMIZERS[optimizer]()
    for number in range(20):
        batch = batch_of(16, seed=number)
        result = step([batch])
        loss, gradients = gradients_by_hand(theirs, micro_batches(batch, 2))
        reference.apply_gradients(zip(gradients, theirs.trainable_variables, strict=True))
        assert result.loss == pytest.approx(loss, abs=1e-5)

    assert_equal(ours.get_weights(), theirs.get_weights())


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_equal_one_batch(parts):
    one, several = toy_trainings.plain(regularizer="l2"), toy_trainings.plain(regularizer="l2")
    first, second = step_of(one, "adam"), step_of(several, "adam")
    for number in range(5):
        batch = batch_of(16, seed=number)
        expected, result = first([batch]), second(micro_batches(batch, parts))
        assert expected.loss == pytest.approx(result.loss, abs=1e-6)
        assert expected.gradient_norm == pytest.approx(result.gradient_norm, rel=1e-4)

    assert_equal(one.get_weights(), several.get_weights())


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_class_weights_are_divided_by_the_images_however_a_step_is_split(parts):
    """The divisor is the number of images, not the sum of their weights."""
    weights = np.array([3.0, 1.0, 0.2], np.float32)
    options = ClassOptions(loss=ClassLoss(class_weights=tuple(weights.tolist())))
    model, theirs = toy_trainings.plain(), toy_trainings.plain()
    learner = Classification(model, 3, options=options)
    step = Step(learner, learner.training_model, keras.optimizers.SGD(0.05))
    pixels, colour = toy_trainings.images(16, seed=3)
    batch = Batch(pixels, {"labels": colour}, 16)
    with tf.GradientTape() as tape:
        scores = theirs(pixels.astype(np.float32), training=True)
        terms = keras.losses.sparse_categorical_crossentropy(colour, scores)
        loss = tf.reduce_sum(terms * weights[colour]) / 16
    gradients = tape.gradient(loss, theirs.trainable_variables)
    expected = [w - 0.05 * g for w, g in zip(theirs.get_weights(), gradients, strict=True)]

    result = step(micro_batches(batch, parts))
    assert result.loss == pytest.approx(float(loss), rel=1e-5)
    assert_equal(model.get_weights(), expected, atol=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_terms_and_the_regularization():
    model = toy_trainings.plain(regularizer=keras.regularizers.L2(0.1))
    penalty = 0.1 * float(np.sum(model.get_layer("first").kernel.numpy() ** 2))
    result = step_of(model)(micro_batches(batch_of(8), 4))
    expected = 0.8 * result.parts["cross_entropy"] + 0.2 * result.parts["square"] + penalty

    assert result.loss == pytest.approx(expected, abs=1e-5)


def test_padding_does_not_change_a_step():
    ours, theirs = toy_trainings.plain(), toy_trainings.plain()
    batch = batch_of(8)
    importance = batch.targets["importance"].copy()
    importance[5:] = 1e6
    batch = batch._replace(targets={**batch.targets, "importance": importance})
    result = step_of(ours)([batch._replace(num_real=5)])
    real = {name: values[:5] for name, values in batch.targets.items()}
    expected = step_of(theirs)([Batch(batch.pixels[:5], real, 5)])

    assert result.num_images == 5
    assert [result.loss, *result.parts.values()] == pytest.approx(
        [expected.loss, *expected.parts.values()]
    )
    assert_equal(ours.get_weights(), theirs.get_weights(), atol=1e-6)


@pytest.mark.parametrize("clip_norm", [1e-3, 1e3])
def test_gradients_are_clipped_by_their_global_norm(clip_norm):
    model = toy_trainings.plain()
    before = model.get_weights()
    batch = batch_of(16)
    _, gradients = gradients_by_hand(model, [batch])
    norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
    result = step_of(model, clip_norm=clip_norm)(micro_batches(batch, 2))
    factor = min(1, clip_norm / norm) * 0.05

    assert result.gradient_norm == pytest.approx(norm, rel=1e-4)
    assert_equal(
        model.get_weights(), [w - factor * g for w, g in zip(before, gradients, strict=True)], 1e-7
    )


def test_a_nan_loss_changes_no_weight_and_the_error_names_the_term():
    model = toy_trainings.normalized(is_frozen=True)
    step = step_of(model, "adam")
    step([batch_of(8)])
    before = [v.numpy() for v in (*model.weights, *step.variables)]
    batch = batch_of(8)
    batch.targets["importance"][3] = np.nan

    with pytest.raises(TrainingError, match=r"loss is nan .*square nan.*must be finite; lower"):
        step([batch])
    assert_equal([v.numpy() for v in (*model.weights, *step.variables)], before, atol=0)
    assert step([batch_of(8)]).is_applied


def test_nan_gradients_of_a_finite_loss_are_an_error():
    class NanGradients(toy_trainings.ColourLearner):
        def losses(self, outputs, targets):
            parts = super().losses(outputs, targets)
            return {**parts, "square": keras.ops.sqrt(parts["square"] * 0.0)}

    model = toy_trainings.plain()
    before = model.get_weights()
    step = Step(NanGradients(model), model, OPTIMIZERS["sgd"]())
    with pytest.raises(TrainingError, match="norm of the gradients is nan"):
        step([batch_of(4)])
    assert_equal(model.get_weights(), before, atol=0)


def test_a_network_without_trainable_weights_is_refused():
    model = toy_trainings.plain()
    model.trainable = False
    with pytest.raises(TrainingError, match="unfreeze"):
        step_of(model)


def test_images_of_two_sizes_train_the_same_weights():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    step = step_of(model)
    batch = batch_of(4)
    before = model.get_weights()
    wide = np.tile(batch.pixels, (1, 2, 3, 1))
    assert step([batch._replace(pixels=wide)]).is_applied
    between = model.get_weights()
    assert step([batch]).is_applied

    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, between, strict=True))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(between, model.get_weights(), strict=True))


# ------------------------------------------------------------ mixed precision


def mixed(policy):
    model = toy_trainings.plain()

    def converted(layer):
        return layer.__class__.from_config({**layer.get_config(), "dtype": policy})

    clone = keras.models.clone_model(model, clone_function=converted)
    clone.set_weights(model.get_weights())
    return clone


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_like_float32(policy):
    losses = {}
    for name, model in (("float32", toy_trainings.plain()), (policy, mixed(policy))):
        step = step_of(model, "adam")
        losses[name] = [step([batch_of(32, seed=i)]).loss for i in range(25)]

    np.testing.assert_allclose(losses[policy], losses["float32"], atol=0.05)
    assert losses[policy][-1] < losses[policy][0] - 0.05


def test_float16_loss_scaling_equals_keras(monkeypatch):
    """LossScaleOptimizer doubles the scale on schedule; at an overflow it halves it and skips."""
    monkeypatch.setattr(step_module, "_GROWTH_STEPS", 3)
    ours, theirs = mixed("mixed_float16"), mixed("mixed_float16")
    step = step_of(ours)
    wrapped = keras.optimizers.LossScaleOptimizer(OPTIMIZERS["sgd"](), dynamic_growth_steps=3)
    wrapped.build(theirs.trainable_variables)
    learner = toy_trainings.ColourLearner(theirs)
    skipped = 0
    for number in range(10):
        batch = batch_of(8, seed=number)
        if number == 4:
            batch.targets["importance"][:] = 3e4  # the loss fits float16, its gradient overflows
        with tf.GradientTape() as tape:
            outputs = keras.ops.cast(theirs(batch.pixels.astype(np.float32)), "float32")
            parts = learner.losses(outputs, batch.targets)
            loss = tf.reduce_mean(0.8 * parts["cross_entropy"] + 0.2 * parts["square"])
            scaled = wrapped.scale_loss(loss)
        gradients = tape.gradient(scaled, theirs.trainable_variables)
        wrapped.apply_gradients(zip(gradients, theirs.trainable_variables, strict=True))
        skipped += not step([batch]).is_applied
        assert float(step.variables[-2].numpy()) == float(wrapped.dynamic_scale.numpy())

    assert skipped == 1
    assert_equal(ours.get_weights(), theirs.get_weights(), atol=2e-3)


def test_float16_gradients_that_overflow_at_any_scale_are_an_error():
    model = mixed("mixed_float16")
    step = step_of(model)
    batch = batch_of(4)
    batch.targets["importance"][:] = 1e30
    before = model.get_weights()
    with pytest.raises(TrainingError, match="train in float32"):
        for _ in range(30):
            step([batch])
    assert_equal(model.get_weights(), before, atol=0)


def test_collectives_of_one_worker_change_nothing():
    replicas = Replicas()
    model = toy_trainings.normalized(dropout=0.5)
    before = [v.numpy() for v in model.variables]
    replicas.average(model.variables)
    replicas.broadcast(model.variables)
    replicas.offset_seeds(model.variables)

    assert (replicas.num_workers, replicas.num_local, replicas.is_chief) == (1, 1, True)
    assert replicas.all_gather(b"payload") == [b"payload"]
    assert_equal([v.numpy() for v in model.variables], before, atol=0)
