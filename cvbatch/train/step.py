"""One step of training is ours, since Keras' `fit` does not run on several workers.

The law that it keeps: the loss is the mean over all images of the step, on whichever worker and
in whichever micro-batch they lie, so the split changes no weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from cvbatch.core.errors import TrainingError
from cvbatch.models import graph_surgery
from cvbatch.train.batches import Batch
from cvbatch.train.collectives import Replicas, all_reduce
from cvbatch.train.learners.base import Learner

Tensor = Any  # of Keras or of TensorFlow, or one for each replica
Tree = Any  # tensors in dicts and lists

# Of keras.optimizers.LossScaleOptimizer. The class itself judges each worker's own gradients
# before they are summed, so that one worker might skip what others wait for.
_FIRST_LOSS_SCALE = 2.0**15
_GROWTH_STEPS = 2000


class StepResult(NamedTuple):
    """What a step came to, the same on every worker."""

    loss: float  # the weighted sum of its parts, and the network's regularisation
    parts: dict[str, float]  # means over the images
    num_images: int  # on all workers, padding left out
    gradient_norm: float  # before it was clipped
    is_applied: bool  # where not, no weight has changed


class Step:
    """Takes batches, one or several micro-batches on each worker, and moves the weights once.

    The loss is Σ weight · Σ losses of the images / images of the step on all workers, plus the
    network's regularisation once. Gradients are summed over the workers, then clipped to
    `clip_norm` (their norm over all weights together), then applied. A loss or gradient that is
    not finite moves nothing, nor does a step without images; in float16, gradients that are not
    finite halve the loss' scale. A network that normalises by the statistics of its batch still
    sees those of each worker's micro-batch alone.

    network: what is trained, images (or features) in, raw outputs out; its weights that are
    trainable now. optimizer: a new one, with no clipping or accumulation of its own.
    """

    def __init__(
        self,
        learner: Learner,
        network: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        replicas: Replicas | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self.replicas = replicas or Replicas()
        self._learner, self._network, self._clip_norm = learner, network, clip_norm
        self._weights = network.trainable_variables
        if not self._weights:
            raise TrainingError(
                f"network {network.name!r} has no weight that may be trained; unfreeze some layers"
            )
        self._scales_loss = any(
            layer.compute_dtype == "float16" for layer in graph_surgery.flatten(network).layers
        )
        with self.replicas.strategy.scope():
            optimizer.build(self._weights)
            first = _FIRST_LOSS_SCALE if self._scales_loss else 1.0
            self._loss_scale = keras.Variable(first, trainable=False, name="loss_scale")
            self._good_steps = keras.Variable(0, trainable=False, dtype="int", name="good_steps")
        self.optimizer = _without_sum(optimizer)
        self._programs: dict[tuple[int, ...], Any] = {}

    @property
    def variables(self) -> list[Any]:
        """Return all that a later step depends on beside the network: what a checkpoint holds."""
        return [*self.optimizer.variables, self._loss_scale, self._good_steps]

    @property
    def learning_rate(self) -> float:
        """Return the rate of the next update."""
        return float(ops.convert_to_numpy(self.optimizer.learning_rate))

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        """Move the weights by one update; return what the step came to.

        batches: this worker's micro-batches, all of one shape; the same number and shape on
        every worker, however many of their rows are real.

        Raises:
            TrainingError: the loss is not finite, or gradients are not where they should be. No
                weight has changed.
        """
        fed = self._stacked(batches)
        shape = (len(batches), *batches[0].pixels.shape)
        if shape not in self._programs:  # as concrete ones, or TensorFlow warns of many sizes
            program = tf.function(self._program((shape[2], shape[3])), autograph=False)
            self._programs[shape] = program.get_concrete_function(*fed)
        parts, numbers, is_applied = self._programs[shape](*fed)
        loss, num_images, norm = numbers.numpy().tolist()
        outcome = StepResult(
            loss,
            {name: float(part) for name, part in parts.items()},
            round(num_images),
            norm,
            bool(is_applied),
        )
        self._require_sense(outcome)
        return outcome

    def _require_sense(self, outcome: StepResult) -> None:
        if not np.isfinite(outcome.loss):
            parts = ", ".join(f"{name} {value:g}" for name, value in outcome.parts.items())
            raise TrainingError(
                f"the loss is {outcome.loss} ({parts}), and must be a number; lower the learning "
                "rate, clip the gradients' norm, or look for labels that are out of range"
            )
        if outcome.is_applied or outcome.num_images == 0:
            return
        if not self._scales_loss or float(self._loss_scale.numpy()) < 1:
            raise TrainingError(
                f"the norm of the gradients is {outcome.gradient_norm} where the loss is "
                f"{outcome.loss:g}, and must be a number; lower the learning rate, or train in "
                "float32"
            )

    def _stacked(self, batches: Sequence[Batch]) -> tuple[Tree, Tree, Tensor]:
        """Return pixels (n, B, ...), targets (n, B, ...), weights of rows (n, B), as is fed."""
        rows = len(batches[0].pixels)
        weights = np.stack([np.arange(rows) < batch.num_real for batch in batches])
        pixels = np.stack([batch.pixels for batch in batches])
        targets = {
            name: np.stack([batch.targets[name] for batch in batches])
            for name in batches[0].targets
        }
        fed = (pixels, targets, weights.astype(np.float32))
        shares = self.replicas.num_local
        if shares == 1:
            whole: tuple[Tree, Tree, Tensor] = tf.nest.map_structure(tf.constant, fed)
            return whole
        if rows % shares:
            raise TrainingError(
                f"a batch of {rows} images on {shares} devices: each must get as many; make the "
                f"batch size a multiple of {shares}"
            )

        def share(context: Any, values: np.ndarray) -> Tensor:
            at = context.replica_id_in_sync_group % shares * (rows // shares)
            return tf.constant(values[:, at : at + rows // shares])

        distribute = self.replicas.strategy.experimental_distribute_values_from_function
        shared: tuple[Tree, Tree, Tensor] = tf.nest.map_structure(
            lambda values: distribute(lambda context: share(context, values)), fed
        )
        return shared

    def _program(self, size: tuple[int, int]) -> Any:
        """Return the step over images of one height and width, to be compiled."""
        is_own = self._network.input_shape[1:3] in (size, (None, None))
        network = self._network if is_own else graph_surgery.with_image_size(self._network, size)

        def program(pixels: Tensor, targets: Tree, weights: Tensor) -> Tree:
            def gradients(*fed: Tree) -> Tree:
                return self._summed_gradients(network, *fed)

            strategy, first = self.replicas.strategy, self.replicas.first
            fed = (pixels, targets, weights)
            parts, numbers, slopes = strategy.run(gradients, args=fed)
            loss, num_images, norm = tf.unstack(first(numbers))
            is_good = (
                tf.math.is_finite(loss) & tf.math.is_finite(norm) & tf.greater(num_images, 0.0)
            )
            # Between the replicas, where Keras' optimizers may stand behind a condition.
            tf.cond(is_good, lambda: self._apply(slopes), lambda: self._skip(num_images))
            parts = {name: first(part) for name, part in parts.items()}
            return parts, tf.stack([loss, num_images, norm]), is_good

        return program

    def _summed_gradients(
        self,
        network: keras.Model,
        pixels: Tensor,  # (n, B, H, W, C)
        targets: Tree,  # each (n, B, ...)
        weights: Tensor,  # (n, B)
    ) -> Tree:
        """Return parts of the loss, (loss, images, norm) and gradients, over all replicas."""
        (num_images,) = all_reduce([tf.reduce_sum(weights)])
        count = pixels.shape[0]

        def micro(at: Any) -> tuple[list[Tensor], list[Tensor]]:
            """Return the sums of one micro-batch: loss, parts; and gradients."""
            chosen = tf.nest.map_structure(lambda values: values[at], targets)
            return self._gradients(network, pixels[at], chosen, weights[at], num_images, count)

        sums, slopes = micro(0)
        if count > 1:  # one behind the other: beside each other they would take n times the memory
            _, sums, slopes = tf.while_loop(
                lambda at, *_: at < count,
                lambda at, *so_far: (
                    at + 1, *tf.nest.map_structure(tf.add, so_far, micro(at))
                ),
                (tf.constant(1), sums, slopes),
                parallel_iterations=1,
            )  # fmt: skip
        (loss, *parts), slopes = tf.nest.pack_sequence_as(
            (sums, slopes), all_reduce([*sums, *slopes])
        )
        slopes = [slope / self._loss_scale.value for slope in slopes]
        norm = tf.linalg.global_norm(slopes)
        if self._clip_norm is not None:
            slopes, _ = tf.clip_by_global_norm(slopes, self._clip_norm, norm)
        named = dict(zip(self._learner.loss_weights, parts, strict=True))
        return named, tf.stack([loss, num_images, norm]), slopes

    def _gradients(
        self,
        network: keras.Model,
        pixels: Tensor,  # (B, H, W, C)
        targets: Tree,  # each (B, ...)
        weights: Tensor,  # (B,)
        num_images: Tensor,  # of the step, on all workers
        num_micro: int,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what this micro-batch adds to the loss, to each part of it, to each gradient."""
        divisor = tf.maximum(num_images, 1.0)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([weight.value for weight in self._weights])
            outputs = network(tf.cast(pixels, tf.float32), training=True)
            outputs = keras.tree.map_structure(lambda out: ops.cast(out, "float32"), outputs)
            losses = self._learner.losses(outputs, targets)
            parts = [
                tf.reduce_sum(tf.where(weights > 0, losses[name], 0.0)) / divisor
                for name in self._learner.loss_weights
            ]
            loss = sum(
                weight * part
                for weight, part in zip(self._learner.loss_weights.values(), parts, strict=True)
            )
            shares = self.replicas.num_replicas * num_micro
            for penalty in network.losses:
                loss += tf.cast(penalty, tf.float32) / shares
            scaled = loss * self._loss_scale.value
        slopes = tape.gradient(
            scaled,
            [weight.value for weight in self._weights],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [loss, *parts], [tf.convert_to_tensor(slope) for slope in slopes]

    def _apply(self, slopes: list[Tensor]) -> None:
        def move(*slopes: Tensor) -> None:
            self.optimizer.apply_gradients(zip(slopes, self._weights, strict=True))

        self.replicas.strategy.run(move, args=tuple(slopes))
        if self._scales_loss:
            steps = self._good_steps.value + 1
            is_due = steps >= _GROWTH_STEPS
            self._loss_scale.assign(self._loss_scale.value * tf.where(is_due, 2.0, 1.0))
            self._good_steps.assign(tf.where(is_due, tf.zeros_like(steps), steps))

    def _skip(self, num_images: Tensor) -> None:
        if self._scales_loss:
            factor = tf.where(num_images > 0, 0.5, 1.0)
            self._loss_scale.assign(self._loss_scale.value * factor)
            self._good_steps.assign(tf.zeros_like(self._good_steps.value))


def _without_sum(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer taking gradients as summed already.

    Keras sums them over the workers when it applies them; they are judged and clipped as a sum,
    so that is done before, and a second sum would count each worker's twice.
    """
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise TrainingError(
            f"keras {keras.__version__} sums gradients in a way unknown here; install keras 3.15"
        )
    optimizer._all_reduce_sum_gradients = list
    return optimizer
