"""The demo's three networks are made here from nothing, so that nobody need trust their weights.

    python -m cvbatch.demo.train [--out DIR] [--only NAME] [--epochs N] [--scenes N] [--seed N]

renders the scenes, trains, writes classifier.keras, segmenter.keras and detector.keras with
their cards, and prints their figures on scenes never seen. About 25 minutes on 2 free cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from cvbatch.arrays.anchors import shape_iou
from cvbatch.arrays.boxes import suppress
from cvbatch.arrays.pixels import mask_to_original, to_original
from cvbatch.demo import score
from cvbatch.demo.render import Scene
from cvbatch.demo.samples import Samples, make_samples, placement, render_scenes, shrink, take
from cvbatch.demo.shapes import CLASSES, MASK_CLASSES
from cvbatch.models import zoo
from cvbatch.models.card import write_card
from cvbatch.models.detectors import training_view

TRAIN_ARCHIVE = 1_000_000  # archives of users have smaller seeds, so they share no scene
UNSEEN_ARCHIVE = 2_000_000


@dataclass(frozen=True)
class Recipe:
    """What one network is for and how it is trained."""

    task: str
    classes: tuple[str, ...]
    epochs: int
    batch_size: int
    peak_rate: float  # of learning; it warms up and then falls along a cosine


RECIPES = {
    "classifier": Recipe("classification", CLASSES, 24, 16, 3e-3),
    "segmenter": Recipe("segmentation", MASK_CLASSES, 22, 32, 2e-3),
    "detector": Recipe("detection", CLASSES, 24, 32, 4e-3),
}
SIDES = {name: zoo.ZOO[f"demo_{name}"].image_size[0] for name in RECIPES}
IGNORE_IOU = 0.5  # an anchor of a box's own cell this like the box is not told that it is wrong
SCORE_THRESHOLD = 0.05
IOU_THRESHOLD = 0.6

Tensor = Any  # a keras.KerasTensor; Keras carries no type information
Target = Callable[[Samples], np.ndarray]
Loss = Callable[[Tensor, Tensor], Tensor]


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras carries no type information
    """Shuffled and varied batches, the same for the same seed, epoch and index."""

    def __init__(
        self, samples: Samples, side: int, target: Target, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self.samples, self.side, self.target = samples, side, target
        self.batch_size, self.seed = batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.samples.label) // self.batch_size

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.samples.label))
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        batch = take(self.samples, rows, self.side, rng)
        return batch.pixels[self.side].astype(np.float32), self.target(batch)

    def on_epoch_end(self) -> None:
        """Let the next epoch have its own order and variations."""
        self.epoch += 1


def fit(name: str, samples: Samples, epochs: int, seed: int) -> keras.Model:
    """Return one of the demo's networks, trained; for the detector, the view that decodes."""
    keras.utils.set_random_seed(seed)
    model = zoo.build(f"demo_{name}")
    trained, target, loss = _lesson(name, model)
    recipe = RECIPES[name]
    batches = Batches(samples, SIDES[name], target, recipe.batch_size, seed)
    steps = epochs * len(batches)
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.peak_rate / 100, steps - steps // 10, alpha=0.0,
        warmup_target=recipe.peak_rate, warmup_steps=steps // 10,
    )  # fmt: skip
    optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-3, clipnorm=5.0)
    trained.compile(optimizer, loss, jit_compile=False)
    trained.fit(batches, epochs=epochs, verbose=2)
    return model


def _lesson(name: str, model: keras.Model) -> tuple[keras.Model, Target, Loss]:
    """Return the view that is trained, what it is to answer, and what an error costs."""
    cross_entropy = keras.losses.SparseCategoricalCrossentropy()
    if name == "classifier":
        return model, lambda batch: batch.label, cross_entropy
    if name == "segmenter":
        return model, lambda batch: batch.mask, cross_entropy
    decode = model.get_layer("decode")
    side, stride = SIDES[name], decode.stride
    anchors = np.array(decode.anchors, np.float32)  # (A, 2) h, w as parts of the image's
    return (
        training_view(model),
        lambda batch: grid_target(
            batch.boxes, batch.box_class_id, side // stride, anchors, len(CLASSES)
        ),
        grid_loss(len(anchors)),
    )


def grid_target(
    boxes: np.ndarray,  # (B, M, 4) xyxy as parts of the image
    class_id: np.ndarray,  # (B, M), −1 for none
    grid: int,
    anchors: np.ndarray,  # (A, 2) height, width as parts of the image
    num_classes: int,
) -> np.ndarray:  # (B, grid, grid, A·5 + C) float32
    """Return what a grid detector should answer, in the order of `GridDecode`'s input.

    A box belongs to the cell that holds its centre and there to the anchor most like it in
    shape: that one gets (offset y, offset x, log h/anchor, log w/anchor, 1). Other anchors get
    objectness 0, those of the same cell that are nearly as like it −1: not asked. The cell's
    classes are one-hot, all 0 where no box is centred.
    """
    image, slot = np.nonzero(class_id >= 0)
    box = boxes[image, slot]  # (K, 4)
    center = (box[:, [1, 0]] + box[:, [3, 2]]) / 2 * grid  # (K, 2) y, x in cells
    cell = np.minimum(center.astype(np.int64), grid - 1)
    sides = box[:, [3, 2]] - box[:, [1, 0]]  # (K, 2) h, w
    likeness = shape_iou(sides, anchors)
    best = likeness.argmax(axis=1)
    numbers = np.zeros((len(boxes), grid, grid, len(anchors), 5), np.float32)
    classes = np.zeros((len(boxes), grid, grid, num_classes), np.float32)
    for k in range(len(box)):
        here = numbers[image[k], cell[k, 0], cell[k, 1]]  # (A, 5), a view
        here[(likeness[k] > IGNORE_IOU) & (here[:, 4] == 0), 4] = -1
        here[best[k]] = [*(center[k] - cell[k]), *np.log(sides[k] / anchors[best[k]]), 1]
        classes[image[k], cell[k, 0], cell[k, 1]] = np.eye(num_classes)[class_id[image[k], slot[k]]]
    flat = numbers.reshape(len(boxes), grid, grid, -1)
    return np.concatenate([flat, classes], axis=-1)


def grid_loss(num_anchors: int) -> Loss:
    """Return the loss of a raw grid against a `grid_target`, per box.

    Squared error of offsets and log sides where a box is (times 5), binary cross-entropy of
    objectness where it is asked, cross-entropy of the classes where a box is centred.
    """

    def loss(target: Tensor, raw: Tensor) -> Tensor:
        cells = ops.shape(raw)[:3]
        split = 5 * num_anchors
        wanted = ops.reshape(target[..., :split], (*cells, num_anchors, 5))
        said = ops.reshape(raw[..., :split], (*cells, num_anchors, 5))
        is_box = ops.cast(wanted[..., 4] > 0, "float32")
        is_asked = ops.cast(wanted[..., 4] >= 0, "float32")
        offset = ops.square(ops.sigmoid(said[..., 0:2]) - wanted[..., 0:2])
        sides = ops.square(said[..., 2:4] - wanted[..., 2:4])
        place = ops.sum((offset + sides) * is_box[..., None])
        logit = said[..., 4]
        object_cost = ops.softplus(logit) - logit * is_box
        logs = ops.log_softmax(raw[..., split:], axis=-1)
        class_cost = -ops.sum(target[..., split:] * logs)
        total = 5.0 * place + ops.sum(object_cost * is_asked) + class_cost
        return total / ops.maximum(ops.sum(is_box), 1.0)

    return loss


def measure(name: str, model: keras.Model, scenes: Sequence[Scene]) -> float:
    """Return the network's figure on scenes: top-1 accuracy, mean IoU, or AP50."""
    pixels = np.stack([shrink(scene, SIDES[name]) for scene in scenes])
    answer = model.predict(pixels.astype(np.float32), verbose=0)
    if name == "detector":
        return _average_precision(answer["boxes"], answer["scores"], scenes)
    if name == "classifier":
        return float(np.mean(answer.argmax(-1) == [scene.label for scene in scenes]))
    summed = np.zeros((len(MASK_CLASSES),) * 2, np.int64)
    for small, scene in zip(answer.argmax(-1).astype(np.uint8), scenes, strict=True):
        mask = mask_to_original(small, placement(scene, SIDES[name]))
        summed += score.confusion(scene.mask, mask, len(MASK_CLASSES))
    return score.mean_iou(summed)


def _average_precision(boxes: np.ndarray, scores: np.ndarray, scenes: Sequence[Scene]) -> float:
    truth, said = [], []
    for i, scene in enumerate(scenes):
        truth.append(score.Found(scene.boxes, scene.box_class_id, np.ones(len(scene.boxes))))
        kept, class_id = suppress(
            boxes[i], scores[i], score_threshold=SCORE_THRESHOLD, iou_threshold=IOU_THRESHOLD,
            max_detections=100,
        )  # fmt: skip
        xyxy = to_original(boxes[i, kept], placement(scene, SIDES["detector"]))
        said.append(score.Found(xyxy, class_id, scores[i, kept, class_id]))
    return score.average_precision(truth, said, len(CLASSES))


def save(name: str, model: keras.Model, folder: Path) -> Path:
    """Write the network with its card, ready to be loaded by name; return the file."""
    path = folder / f"{name}.keras"
    keras.Model(model.input, model.output, name=model.name).save(path)
    write_card(path, RECIPES[name].classes, RECIPES[name].task)
    return path


def main() -> None:
    """Train, write, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m cvbatch.demo.train")
    parser.add_argument("--out", type=Path, default=Path("demo-weights"))
    parser.add_argument("--only", choices=tuple(RECIPES), help="train one network, not all three")
    parser.add_argument("--epochs", type=int, help="for every network; by default its own number")
    parser.add_argument("--scenes", type=int, default=4000, help="to learn from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tf.config.experimental.enable_op_determinism()
    scenes = render_scenes(TRAIN_ARCHIVE + options.seed, options.scenes)
    samples = make_samples(scenes, sorted(set(SIDES.values())), SIDES["segmenter"])
    unseen = render_scenes(UNSEEN_ARCHIVE, 500)
    for name in [options.only] if options.only else RECIPES:
        started = time.monotonic()
        model = fit(name, samples, options.epochs or RECIPES[name].epochs, options.seed)
        path = save(name, model, options.out)
        figure = measure(name, model, unseen)
        print(
            f"{name}: {figure:.4f} on {len(unseen)} unseen scenes, {path.stat().st_size:,} bytes, "
            f"{time.monotonic() - started:.0f} s"
        )


if __name__ == "__main__":
    main()
