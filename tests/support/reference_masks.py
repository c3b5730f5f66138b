"""Seeded masks of boxes, and the script that pastes them with torchvision and ultralytics.

The script writes tests/fixtures/instance_masks.npz, with torch 2.14, torchvision and
ultralytics 8:

    python tests/support/reference_masks.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FIXTURE = Path(__file__).parents[1] / "fixtures" / "instance_masks.npz"

# height and width of the original; of the network's input; cells of a mask or of prototypes
BOX_MASKS = ((61, 83), (28, 28))
LETTERBOXED = {
    "whole_cells": ((200, 150), (160, 160), (40, 40)),
    "parts_of_cells": ((90, 160), (160, 160), (40, 40)),  # the padding is 35 pixels of 4 to a cell
}
NUM_PROTOTYPES = 8


def smooth(rng, shape):
    """Noise of a few cells' width, so that masks have a few parts."""
    coarse = rng.normal(size=(*shape[:-2], 5, 5))
    for axis in (-2, -1):
        weights = np.maximum(0, 1 - np.abs(np.linspace(0, 4, shape[axis])[:, None] - np.arange(5)))
        coarse = np.moveaxis(np.tensordot(coarse, weights, (axis, 1)), -1, axis)
    return coarse.astype(np.float32)


def random_boxes(rng, count, size):
    """Boxes (count, 4) float32 of fractions of pixels; some leave the image."""
    height, width = size
    first = rng.uniform(-0.2, 0.8, (count, 2)) * (width, height)
    return np.concatenate([first, first + rng.uniform(1, 60, (count, 2))], 1).astype(np.float32)


def box_masks():
    """Return masks (N, 28, 28) in 0..1 and boxes (N, 4) in pixels of the original."""
    rng = np.random.default_rng(1)
    size, cells = BOX_MASKS
    logits = smooth(rng, (12, *cells))
    return 1 / (1 + np.exp(-3 * logits)), random_boxes(rng, 12, size)


def prototypes(name):
    """Return prototypes (P, h, w), coefficients (N, P), boxes (N, 4) in pixels of the original."""
    rng = np.random.default_rng(2)
    size, _, cells = LETTERBOXED[name]
    maps = smooth(rng, (NUM_PROTOTYPES, *cells))
    weights = rng.normal(size=(10, NUM_PROTOTYPES)).astype(np.float32)
    boxes = np.clip(random_boxes(rng, 10, size), 0, (size[1], size[0]) * 2)
    return maps, weights, boxes.astype(np.float32)


def yolo_seg():
    """Return table (4 + 2 + P, 525) and prototypes (P, 40, 40) of a YOLO-seg, input 160 x 160."""
    rng = np.random.default_rng(5)
    maps, _, _ = prototypes("whole_cells")
    centres = rng.uniform((20, 0), (140, 160), (525, 2))  # of 200 x 150, 20 columns are padding
    table = np.concatenate(
        [
            centres,
            rng.uniform(15, 60, (525, 2)),
            np.where(rng.random((525, 1)) < 0.08, rng.uniform(0, 1, (525, 2)), 0.01),
            rng.normal(size=(525, NUM_PROTOTYPES)),
        ],
        axis=1,
    )
    return table.T.astype(np.float32), maps


def expected_masks(name, count, size):
    """Return the stored masks (count, height, width) of "box" or of a key of LETTERBOXED."""
    bits = np.unpackbits(np.load(FIXTURE)[name], count=count * size[0] * size[1])
    return bits.reshape(count, *size).astype(bool)


def main():
    """Write the masks of both libraries, one bit a pixel."""
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image
    from ultralytics.utils.ops import process_mask_native

    masks, boxes = map(torch.from_numpy, box_masks())
    pasted = paste_masks_in_image(masks[:, None], boxes, BOX_MASKS[0])[:, 0] > 0.5
    found = {"box": np.packbits(pasted.numpy())}
    for name, (size, _, _) in LETTERBOXED.items():
        native = process_mask_native(*map(torch.from_numpy, prototypes(name)), size)
        found[name] = np.packbits(native.numpy())
    found |= by_ultralytics()
    np.savez_compressed(FIXTURE, **found)


def by_ultralytics():
    """Return the boxes, scores and classes of `yolo_seg`, (K, 6), and their masks, bits."""
    import torch
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import process_mask_native, scale_boxes

    table, maps = map(torch.from_numpy, yolo_seg())
    size, input_hw, _ = LETTERBOXED["whole_cells"]
    (found,) = non_max_suppression(table[None], conf_thres=0.25, iou_thres=0.6, nc=2)
    found[:, :4] = scale_boxes(input_hw, found[:, :4], size)
    masks = process_mask_native(maps, found[:, 6:], found[:, :4], size)
    return {"yolo_seg_boxes": found[:, :6].numpy(), "yolo_seg": np.packbits(masks.numpy())}


if __name__ == "__main__":
    main()
