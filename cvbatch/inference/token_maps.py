"""Patch tokens (B, N, D) of transformers as feature maps (B, h, w, D).

A network does not state where the patches are among its tokens. A grid is proposed from the number
of tokens, and accepted only if changed pixels in one cell of the image change the token of this
cell most. So class, distillation and register tokens are recognised, and other orders are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cvbatch.models.frameworks import tf

if TYPE_CHECKING:
    from cvbatch.inference.gradcam import Calls

MIN_TOKENS = 4  # fewer are not a map of the image
_MAX_EXTRA_TOKENS = 16  # class, distillation and register tokens
_MAX_CELLS = 32  # cells of the image that are changed, one at a time
_MAX_CELLS_DEEP = 7  # the same for a layer deep in the network
_MIN_AGREEMENT = 0.9  # fraction of these cells whose own token changes most: patches may overlap
_BATCH = 8
_SEED = 0


class TokenGrid(NamedTuple):
    """Position of the patches among the tokens: row-major, after `start` other tokens."""

    height: int
    width: int
    start: int

    def as_map(
        self,
        tokens: tf.Tensor,  # (B, N, D)
    ) -> tf.Tensor:  # (B, h, w, D)
        """Return the patch tokens as a feature map."""
        patches = tokens[:, self.start : self.start + self.height * self.width]
        return tf.reshape(patches, (tokens.shape[0], self.height, self.width, tokens.shape[2]))


class TokenMaps:
    """Grids of the tokens of one network, found by running it on generated images.

    Each answer is computed when it is first needed, because a convolutional network needs none.
    """

    def __init__(
        self,
        run: Callable[[tf.Tensor], tuple[Calls, tf.Tensor]],
        image_size: tuple[int, int],
        batch: int | None,
    ) -> None:
        """Prepare the tests of a network.

        Args:
            run: function of pixels (B, H, W, 3) that returns the recorded calls of the network and
                its scores (B, ...).
            image_size: height and width of the input in pixels.
            batch: batch size of the network; None: any.
        """
        self._run = run
        self._image_size = image_size
        self._batch = batch or _BATCH
        self._random = np.random.default_rng(_SEED)
        self.grid_of = cache(self._grid_of)
        self.influential_calls = cache(self._influential_calls)
        self.is_in_order = cache(self._is_in_order)

    def is_tokens(self, tensor: tf.Tensor, batch: int | None) -> bool:
        """Return whether the shape is (batch, N, D) with enough tokens for a grid."""
        shape = tensor.shape
        return bool(shape.rank == 3 and shape[0] == batch and (shape[1] or 0) >= MIN_TOKENS)

    def has_image_aspect(self, tensor: tf.Tensor) -> bool:
        """Return whether a tensor (B, h, w, c) has the image's aspect ratio, to one position.

        Attention weights (B, heads, N, N) and heads (B, N, heads, D) do not.
        """
        height, width = self._image_size
        difference = abs(tensor.shape[1] * width - tensor.shape[2] * height)
        return bool(difference <= max(height, width))

    def _grid_of(self, num_tokens: int) -> TokenGrid | None:
        """Return the grid of `num_tokens` tokens; None if none is certain."""
        for height, width in self._proposed(num_tokens):
            start = self._start_of(num_tokens, height, width)
            if start is not None:
                return TokenGrid(height, width, start)
        return None

    def _proposed(self, num_tokens: int) -> Iterator[tuple[int, int]]:
        """Yield grids with almost `num_tokens` cells, for cells that are square in the image."""
        aspect = self._image_size[0] / self._image_size[1]
        largest = math.ceil(math.sqrt(num_tokens * aspect))
        for height in range(largest, 0, -1):
            for width in {math.floor(height / aspect), math.ceil(height / aspect)}:
                if 0 <= num_tokens - height * width <= _MAX_EXTRA_TOKENS and height * width > 1:
                    yield height, width

    def _start_of(self, num_tokens: int, height: int, width: int) -> int | None:
        """Return how many tokens precede the patches of a grid; None if it is another grid."""

        def first_tokens(calls: Calls) -> tf.Tensor:
            outputs = (x for x in calls.outputs if self.is_tokens(x, self._batch))
            return next(x for x in outputs if x.shape[1] == num_tokens)

        count = height * width
        cells = self._random.permutation(count)[:_MAX_CELLS]
        changes = self._changes(first_tokens, cells, height, width)
        offsets, counts = np.unique(changes.argmax(axis=1) - cells, return_counts=True)
        start = int(offsets[counts.argmax()])
        is_certain = counts.max() >= _MIN_AGREEMENT * len(cells) and changes.max(axis=1).all()
        return start if is_certain and 0 <= start <= num_tokens - count else None

    def _is_in_order(self, call_index: int, num_tokens: int) -> bool:
        """Return whether a call keeps the order of the tokens in which their grid was found.

        Attention spreads a change over all tokens, but in most cells no other token changes more
        than twice as much as the cell's own.
        """
        grid: Any = self.grid_of(num_tokens)
        cells = self._random.permutation(grid.height * grid.width)[:_MAX_CELLS_DEEP]
        changes = self._changes(lambda calls: calls.outputs[call_index], cells, *grid[:2])
        own = changes[np.arange(len(cells)), cells + grid.start]
        return bool(np.mean(2 * own >= changes.max(axis=1)) > 0.5)

    def _changes(
        self,
        select: Callable[[Calls], tf.Tensor],
        cells: np.ndarray,  # (C,) int64
        height: int,
        width: int,
    ) -> np.ndarray:  # (C, N) float32
        """Return how much each token of a layer changes when the pixels of one cell change."""
        image_h, image_w = self._image_size
        images = np.repeat(self._noise(1), len(cells) + 1, axis=0)
        for image, cell in zip(images[1:], cells.tolist(), strict=True):
            row, column = divmod(cell, width)
            top, bottom = (round(i * image_h / height) for i in (row, row + 1))
            left, right = (round(i * image_w / width) for i in (column, column + 1))
            image[top:bottom, left:right] = self._noise(1)[0, top:bottom, left:right]

        def tokens_of(pixels: tf.Tensor) -> tf.Tensor:
            return tf.cast(select(self._run(pixels)[0]), tf.float32)

        padded = np.concatenate([images, np.repeat(images[:1], -len(images) % self._batch, axis=0)])
        with tf.init_scope():  # computes with values while a graph is traced
            compute = tf.function(tokens_of, autograph=False)
            parts = [compute(tf.constant(part)).numpy() for part in self._in_batches(padded)]
        tokens = np.concatenate(parts)[: len(images)]
        changes: np.ndarray = np.linalg.norm(tokens[1:] - tokens[0], axis=2)
        return changes

    def _in_batches(self, images: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(images), self._batch):
            yield images[start : start + self._batch]

    def _noise(self, count: int) -> np.ndarray:  # (count, H, W, 3) float32 in 0..255
        return self._random.uniform(0, 255, (count, *self._image_size, 3)).astype(np.float32)

    def _influential_calls(self, num_tokens: int) -> list[int]:
        """Return the calls with `num_tokens` whose patch tokens change the scores, ascending.

        After the last attention of a network with a class token only this token does.
        """
        grid: Any = self.grid_of(num_tokens)
        indices: list[int] = []

        def largest_gradients(pixels: tf.Tensor) -> list[tf.Tensor]:
            calls, scores = self._run(pixels)
            scores = tf.cast(tf.reshape(scores, (self._batch, -1)), tf.float32)
            total = tf.reduce_sum(scores * self._random.normal(size=scores.shape[1:]))
            indices[:] = [
                i
                for i, x in enumerate(calls.outputs)
                if self.is_tokens(x, self._batch) and x.shape[1] == num_tokens
            ]
            gradients = tf.gradients(
                total, [calls.outputs[i] for i in indices], unconnected_gradients="zero"
            )
            return [tf.reduce_max(tf.abs(grid.as_map(gradient))) for gradient in gradients]

        with tf.init_scope():
            compute = tf.function(largest_gradients, autograph=False)
            sizes = [float(size) for size in compute(tf.constant(self._noise(self._batch)))]
        return [i for i, size in zip(indices, sizes, strict=True) if size > 0]
