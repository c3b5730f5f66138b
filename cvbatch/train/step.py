"""Training step with gradients that are all-reduced over workers and micro-batches.

Keras' `fit` does not run on several workers. The loss is the mean over all images of the step,
independent of how they are split into workers and micro-batches; so the split does not change the
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cvbatch.core.errors import TrainingError
from cvbatch.models import graph_surgery
from cvbatch.models.frameworks import keras, ops, tf
from cvbatch.train.batches import Batch
from cvbatch.train.collectives import Replicas, all_reduce
from cvbatch.train.learners.base import Learner

Tensor = Any  # a Keras or TensorFlow tensor, or one for each replica
Tree = Any  # tensors in dicts and lists

# The defaults of keras.optimizers.LossScaleOptimizer. That class checks each worker's gradients
# before they are summed, so one worker could skip an update that the others wait for.
_INITIAL_LOSS_SCALE = 2.0**15
_GROWTH_STEPS = 2000


class StepResult(NamedTuple):
    """Loss and gradient norm of a step, the same on every worker."""

    loss: float  # weighted sum of the loss terms, plus the network's regularization
    parts: dict[str, float]  # loss terms, means over the images
    num_images: int  # on all workers, without padding
    gradient_norm: float  # before clipping
    is_applied: bool  # False: no weight was changed


class Step:
    """Compute one optimizer update from one or several micro-batches on each worker.

    The loss is Σ weight · Σ losses of the images / images of the step on all workers, plus the
    network's regularization. Gradients are summed over the workers, clipped, then applied. If the
    loss or a gradient is NaN or infinite, or there is no image, no weight changes; with float16, a
    NaN or infinite gradient halves the loss scale. Batch normalisation in training mode uses the
    statistics of each worker's micro-batch.

    Args:
        learner: the task's losses and their weights.
        network: the network to train: images or features → raw outputs. Its trainable weights must
            not change afterwards.
        optimizer: a new optimizer that neither clips nor accumulates.
        replicas: all training workers; None: the current strategy.
        clip_norm: maximum global norm of the gradients; None: no clipping.
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
                f"network {network.name!r} has no trainable weight; unfreeze some layers"
            )
        self._scales_loss = any(
            layer.compute_dtype == "float16" for layer in graph_surgery.flatten(network).layers
        )
        with self.replicas.strategy.scope():
            optimizer.build(self._weights)
            initial = _INITIAL_LOSS_SCALE if self._scales_loss else 1.0
            self._loss_scale = keras.Variable(initial, trainable=False, name="loss_scale")
            self._good_steps = keras.Variable(0, trainable=False, dtype="int", name="good_steps")
        self.optimizer = _without_all_reduce(optimizer)
        self._programs: dict[tuple[int, ...], Any] = {}

    @property
    def variables(self) -> list[Any]:
        """Return the state besides the network that later steps depend on, for checkpoints."""
        return [*self.optimizer.variables, self._loss_scale, self._good_steps]

    @property
    def learning_rate(self) -> float:
        """Return the learning rate of the next update."""
        return float(ops.convert_to_numpy(self.optimizer.learning_rate))

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        """Do one update of the weights.

        Args:
            batches: this worker's micro-batches, with equal shapes. Their number and shape must be
                the same on every worker; the number of real rows may differ.

        Raises:
            TrainingError: the loss or a gradient is NaN or infinite. No weight has changed.
        """
        inputs = self._inputs(batches)
        shape = (len(batches), *batches[0].pixels.shape)
        if shape not in self._programs:  # concrete functions: TensorFlow warns of many retracings
            program = tf.function(self._program((shape[2], shape[3])), autograph=False)
            self._programs[shape] = program.get_concrete_function(*inputs)
        parts, numbers, is_applied = self._programs[shape](*inputs)
        loss, num_images, norm = numbers.numpy().tolist()
        result = StepResult(
            loss,
            {name: float(part) for name, part in parts.items()},
            round(num_images),
            norm,
            bool(is_applied),
        )
        self._require_finite(result)
        return result

    def _require_finite(self, result: StepResult) -> None:
        if not np.isfinite(result.loss):
            parts = ", ".join(f"{name} {value:g}" for name, value in result.parts.items())
            raise TrainingError(
                f"the loss is {result.loss} ({parts}), but must be finite; lower the learning "
                "rate, clip the gradients' norm, or check for labels that are out of range"
            )
        if result.is_applied or result.num_images == 0:
            return
        if not self._scales_loss or float(self._loss_scale.numpy()) < 1:
            raise TrainingError(
                f"the norm of the gradients is {result.gradient_norm} at a loss of "
                f"{result.loss:g}, but must be finite; lower the learning rate, or train in float32"
            )

    def _inputs(self, batches: Sequence[Batch]) -> tuple[Tree, Tree, Tensor]:
        """Return pixels (n, B, ...), targets (n, B, ...) and row weights (n, B) as tensors."""
        rows = len(batches[0].pixels)
        weights = np.stack([np.arange(rows) < batch.num_real for batch in batches])
        pixels = np.stack([batch.pixels for batch in batches])
        targets = {
            name: np.stack([batch.targets[name] for batch in batches])
            for name in batches[0].targets
        }
        arrays = (pixels, targets, weights.astype(np.float32))
        num_local = self.replicas.num_local
        if num_local == 1:
            tensors: tuple[Tree, Tree, Tensor] = tf.nest.map_structure(tf.constant, arrays)
            return tensors
        if rows % num_local:
            raise TrainingError(
                f"a batch of {rows} images cannot be split equally on {num_local} devices; set a "
                f"batch size that is a multiple of {num_local}"
            )

        def slice_for(context: Any, values: np.ndarray) -> Tensor:
            start = context.replica_id_in_sync_group % num_local * (rows // num_local)
            return tf.constant(values[:, start : start + rows // num_local])

        distribute = self.replicas.strategy.experimental_distribute_values_from_function
        distributed: tuple[Tree, Tree, Tensor] = tf.nest.map_structure(
            lambda values: distribute(lambda context: slice_for(context, values)), arrays
        )
        return distributed

    def _program(self, image_size: tuple[int, int]) -> Any:
        """Return the step for images of one (height, width), as a function to compile."""
        network = graph_surgery.at_image_size(self._network, image_size)

        def program(pixels: Tensor, targets: Tree, weights: Tensor) -> Tree:
            def reduced_gradients(*inputs: Tree) -> Tree:
                return self._reduced_gradients(network, *inputs)

            strategy, first_local = self.replicas.strategy, self.replicas.first_local
            inputs = (pixels, targets, weights)
            parts, numbers, gradients = strategy.run(reduced_gradients, args=inputs)
            loss, num_images, norm = tf.unstack(first_local(numbers))
            is_good = (
                tf.math.is_finite(loss) & tf.math.is_finite(norm) & tf.greater(num_images, 0.0)
            )
            # In cross-replica context, where Keras' optimizers may be called conditionally.
            tf.cond(is_good, lambda: self._apply(gradients), lambda: self._skip(num_images))
            parts = {name: first_local(part) for name, part in parts.items()}
            return parts, tf.stack([loss, num_images, norm]), is_good

        return program

    def _reduced_gradients(
        self,
        network: keras.Model,
        pixels: Tensor,  # (n, B, H, W, C)
        targets: Tree,  # each (n, B, ...)
        weights: Tensor,  # (n, B)
    ) -> Tree:
        """Return loss terms, (loss, images, norm) and gradients, summed over all replicas."""
        (num_images,) = all_reduce([tf.reduce_sum(weights)])
        count = pixels.shape[0]

        def micro_batch(i: Any) -> tuple[list[Tensor], list[Tensor]]:
            """Return loss and loss terms, and gradients, of micro-batch i."""
            selected = tf.nest.map_structure(lambda values: values[i], targets)
            return self._gradients(network, pixels[i], selected, weights[i], num_images, count)

        losses, gradients = micro_batch(0)
        if count > 1:  # sequentially: in parallel they would need n times the memory
            _, losses, gradients = tf.while_loop(
                lambda i, *_: i < count,
                lambda i, *sums: (i + 1, *tf.nest.map_structure(tf.add, sums, micro_batch(i))),
                (tf.constant(1), losses, gradients),
                parallel_iterations=1,
            )
        (loss, *parts), gradients = tf.nest.pack_sequence_as(
            (losses, gradients), all_reduce([*losses, *gradients])
        )
        gradients = [gradient / self._loss_scale.value for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        if self._clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm, norm)
        named = dict(zip(self._learner.loss_weights, parts, strict=True))
        return named, tf.stack([loss, num_images, norm]), gradients

    def _gradients(
        self,
        network: keras.Model,
        pixels: Tensor,  # (B, H, W, C)
        targets: Tree,  # each (B, ...)
        weights: Tensor,  # (B,)
        num_images: Tensor,  # () of the step, on all workers
        num_micro_batches: int,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return this micro-batch's share of the loss and of each loss term, and its gradients."""
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
            num_shares = self.replicas.num_replicas * num_micro_batches
            for penalty in network.losses:
                loss += tf.cast(penalty, tf.float32) / num_shares
            scaled = loss * self._loss_scale.value
        gradients = tape.gradient(
            scaled,
            [weight.value for weight in self._weights],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [loss, *parts], [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _apply(self, gradients: list[Tensor]) -> None:
        def update(*gradients: Tensor) -> None:
            self.optimizer.apply_gradients(zip(gradients, self._weights, strict=True))

        self.replicas.strategy.run(update, args=tuple(gradients))
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


def _without_all_reduce(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer without its own all-reduce of the gradients.

    Keras sums gradients over the workers when it applies them. `Step` sums them before, to check
    and clip the sum, so a second all-reduce would count each worker's gradients twice.
    """
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise TrainingError(
            f"keras {keras.__version__} all-reduces gradients in an unsupported way; install "
            "keras 3.15"
        )
    optimizer._all_reduce_sum_gradients = list
    return optimizer
