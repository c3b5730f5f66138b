"""Detectors with masks, from the .keras file to the masks of the original, by every engine."""

import numpy as np
import pytest
from pycocotools import mask as coco_masks

import cvbatch
from cvbatch.config.models import DetectionConfig
from cvbatch.core.errors import ModelError
from cvbatch.core.types import InputKey
from cvbatch.geometry.resize import boxes_to_input, make_placement
from cvbatch.images.rle import decode_rle, parse_compressed_rle
from cvbatch.inference import programs
from cvbatch.inference.engines import ENGINES
from cvbatch.inference.postprocess_detection import read_outputs
from cvbatch.inference.sample_images import generated_pixels
from cvbatch.storage.store import Storage
from tests.support import reference_masks as reference
from tests.support.reference_masks import expected_masks

pytestmark = pytest.mark.keras


def network(size, outputs, activations=None):
    """A network whose outputs are these arrays, whatever the image is."""
    import keras
    from keras import layers

    image = keras.Input((*size, 3))
    pooled = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(image))
    tensors = {}
    for name, array in outputs.items():
        head = layers.Dense(array.size, kernel_initializer="zeros", name=f"{name}_values")
        tensors[name] = layers.Reshape(array.shape)(head(pooled))
        head.bias.assign(array.reshape(-1))
        kind = (activations or {}).get(name)
        if kind:
            tensors[name] = layers.Activation(kind)(tensors[name])
    return keras.Model(image, tensors)


def config(path, masks, **fields):
    settings = {"score_threshold": 0.0, "iou_threshold": 1.0, **fields}
    return DetectionConfig(task="detection", model=str(path), masks=masks, **settings)


def built(path, section, engine="litert"):
    from cvbatch.inference.compile import build

    identity = programs.identify(Storage(), section)
    return build(Storage(), programs.BuildRequest(section, identity, engine, "float32", 1))


def masks_by_row(section, program, size, input_hw, mode):
    """Return the masks (N, h, w) of an image in the order of the network's boxes."""
    placement = make_placement(*size, InputKey(*input_hw, mode))
    outputs = program.load(1)(np.zeros((1, *input_hw, 3), np.uint8))
    predictions = read_outputs(section, program.spec, outputs, np.array([0]), [placement])
    masks = predictions.box_masks
    strings = np.split(masks.counts, np.cumsum(masks.length)[:-1])
    order = np.argsort(-predictions.boxes.score, kind="stable")
    assert (order == np.arange(len(order))).all()  # the scores of the networks fall
    return np.array(
        [decode_rle(parse_compressed_rle(string.tobytes().decode()), size) for string in strings]
    )


def falling_scores(count, classes=1, best=0):
    """Scores (N, C) that fall from row to row; of the other classes they are below 0."""
    scores = np.full((count, classes), -0.5, np.float32)
    scores[:, best] = np.linspace(0.9, 0.1, count)
    return scores


LAYOUTS = {  # masks (N, h, w) → the output of the network
    "one mask": lambda masks: masks,
    "classes first": lambda masks: np.stack([-masks, masks, -masks], 1),
    "classes last": lambda masks: np.stack([-masks, masks, -masks], -1),
    "one class": lambda masks: masks[:, None],
}


@pytest.mark.runs(
    "Mask R-CNN-like detector (masks of boxes)",
    "`task: detection`, `masks: box`; outputs `boxes`, `scores` and `masks` (B, N, h, w), or of "
    "every class (B, N, C, h, w)",
)
@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize(
    ("layout", "activation"), [("one mask", "sigmoid"), ("classes last", None)]
)
def test_masks_of_boxes_equal_those_of_torchvision(tmp_path, engine, layout, activation):
    masks, boxes = reference.box_masks()
    size = reference.BOX_MASKS[0]
    logits = np.log(masks / (1 - masks))
    scores = np.clip(falling_scores(len(boxes), 3, best=1), 0, 1)
    outputs = {"boxes": boxes, "scores": scores, "masks": LAYOUTS[layout](logits)}
    path = tmp_path / "a.keras"
    network(size, outputs, {"masks": activation}).save(path)
    section = config(path, "box", score_threshold=0.05)
    program = built(path, section, engine)
    kind = "probabilities" if activation else "logits"
    assert f"its masks are {kind}" in program.note
    found = masks_by_row(section, program, size, size, "stretch")
    # float32 sigmoids may move a value across the threshold
    assert (found != expected_masks("box", len(boxes), size)).sum() <= 2


@pytest.mark.runs(
    "YOLO-seg head (prototypes)",
    "`task: detection`, `masks: prototypes`, `resize: letterbox`; outputs `boxes`, `scores`, "
    "`coefficients` (B, N, P) or (B, P, N) and `prototypes` (B, h, w, P) or (B, P, h, w)",
)
@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize("is_torch_order", [False, True])
def test_masks_of_prototypes_equal_those_of_ultralytics(tmp_path, engine, is_torch_order):
    maps, weights, boxes = reference.prototypes("whole_cells")
    size, input_hw, _ = reference.LETTERBOXED["whole_cells"]
    outputs = {
        "boxes": boxes_to_input(boxes, make_placement(*size, InputKey(*input_hw, "letterbox"))),
        "scores": falling_scores(len(boxes)),
        "coefficients": weights.T if is_torch_order else weights,
        "prototypes": maps if is_torch_order else maps.transpose(1, 2, 0),
    }
    path = tmp_path / "a.keras"
    network(input_hw, outputs).save(path)
    section = config(path, "prototypes", resize="letterbox")
    found = masks_by_row(section, built(path, section, engine), size, input_hw, "letterbox")
    assert (found != expected_masks("whole_cells", len(boxes), size)).sum() <= 2


@pytest.mark.process
def test_a_job_stores_the_masks_of_images_of_different_sizes(tmp_path):
    maps, weights, boxes = reference.prototypes("whole_cells")
    size, input_hw, _ = reference.LETTERBOXED["whole_cells"]
    outputs = {
        "boxes": boxes_to_input(boxes, make_placement(*size, InputKey(*input_hw, "letterbox"))),
        "scores": falling_scores(len(boxes)),
        "coefficients": weights,
        "prototypes": maps.transpose(1, 2, 0),
    }
    path = tmp_path / "a.keras"
    network(input_hw, outputs).save(path)
    images = [np.zeros((*size, 3), np.uint8), np.zeros((2 * size[0], 2 * size[1], 3), np.uint8)]
    section = config(path, "prototypes", resize="letterbox").model_dump()
    first, second = cvbatch.predict(images, model=section)
    expected = expected_masks("whole_cells", len(boxes), size)
    found = np.array([first.box_mask(i) for i in range(len(first.boxes))])
    assert (found != expected).sum() <= 2
    for i, mask in enumerate(expected):
        doubled = second.box_mask(i)
        assert doubled.shape == (2 * size[0], 2 * size[1])
        assert abs(doubled.sum() - 4 * mask.sum()) <= 0.05 * 4 * mask.sum() + 40
        assert coco_masks.area(second.boxes[i]["mask"]) == doubled.sum()


def predicted(section, program, size, input_hw, mode):
    """Return rows (K, 6) of boxes, scores and classes, and masks (K, h, w), best first."""
    placement = make_placement(*size, InputKey(*input_hw, mode))
    outputs = program.load(1)(np.zeros((1, *input_hw, 3), np.uint8))
    found = read_outputs(section, program.spec, outputs, np.array([0]), [placement])
    boxes, masks = found.boxes, found.box_masks
    strings = np.split(masks.counts, np.cumsum(masks.length)[:-1])
    regions = [parse_compressed_rle(string.tobytes().decode()) for string in strings]
    return (
        np.column_stack([boxes.xyxy, boxes.score, boxes.class_id]),
        np.array([decode_rle(region, size) for region in regions]),
    )


@pytest.mark.runs(
    "ultralytics YOLO-seg (B, 4 + C + P, N) with prototypes (B, P, h, w)",
    "`masks: prototypes`, `resize: letterbox`, `rescale`; `detector: yolo_v8` or `auto`",
)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_yolo_seg_equals_ultralytics(tmp_path, is_transposed):
    import keras

    table, maps = reference.yolo_seg()
    size, input_hw, _ = reference.LETTERBOXED["whole_cells"]
    arrays = {"a": table.T if is_transposed else table, "b": maps}
    named = network(input_hw, arrays)
    path = tmp_path / "a.keras"
    keras.Model(named.inputs, [named.output["b"], named.output["a"]]).save(path)
    settings = {"resize": "letterbox", "score_threshold": 0.25, "iou_threshold": 0.6}
    if is_transposed:  # YOLOv5 has such a table too
        settings["detector"] = "yolo_v8"
    section = config(path, "prototypes", **settings)
    rows, masks = predicted(section, built(path, section), size, input_hw, "letterbox")
    stored = np.load(reference.FIXTURE)["yolo_seg_boxes"]
    assert len(stored) > 10
    np.testing.assert_allclose(rows, stored, atol=1e-4)
    assert (masks != expected_masks("yolo_seg", len(stored), size)).sum() <= 2
    assert masks.any(axis=(1, 2)).sum() > 10


def test_yolo_seg_without_masks_has_the_same_boxes(tmp_path):
    table, maps = reference.yolo_seg()
    path = tmp_path / "a.keras"
    network((160, 160), {"output_0": table, "output_1": maps}).save(path)
    section = config(path, None, score_threshold=0.25, iou_threshold=0.6)
    program = built(path, section)
    assert "set masks: box, image or prototypes" in program.note
    assert program.spec.classes == ("0", "1")
    outputs = program.load(1)(np.zeros((1, 160, 160, 3), np.uint8))
    np.testing.assert_allclose(outputs["scores"].max(2)[0], table[4:6].max(0), atol=1e-6)


@pytest.mark.runs(
    "torchvision Mask R-CNN-like outputs: boxes, labels, scores, masks (B, N, 1, h, w)",
    "`masks: box`, `classes`; boxes with class ids are not suppressed again",
)
def test_boxes_with_class_ids_keep_their_masks(tmp_path):
    masks, boxes = reference.box_masks()
    size = reference.BOX_MASKS[0]
    count = len(boxes)
    labels = np.arange(count, dtype=np.float32) % 3
    scores = falling_scores(count)[:, 0]
    outputs = {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks[:, None]}
    path = tmp_path / "a.keras"
    network(size, outputs).save(path)
    section = config(path, "box", classes=["a", "b", "c"], score_threshold=0.05)
    rows, found = predicted(section, built(path, section), size, size, "stretch")
    np.testing.assert_array_equal(rows[:, 5], labels)
    assert (found != expected_masks("box", count, size)).sum() <= 2


def mask_tensors(section, outputs, values):
    import tensorflow as tf

    from cvbatch.inference.outputs_masks import mask_tensors

    batch = {name: tf.constant(array[None]) for name, array in outputs.items()}
    return {name: t.numpy()[0] for name, t in mask_tensors(section, batch, values).items()}


@pytest.mark.parametrize("kind", ["box", "image"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_kind_of_values_gives_numbers_above_0_inside(kind, layout):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(7, 5, 6)).astype(np.float32)
    base = {"boxes": np.zeros((7, 4)), "scores": np.zeros((7, 1 if layout == "one class" else 3))}
    section = config("a.keras", kind)
    for values, given in (("logits", logits), ("probabilities", 1 / (1 + np.exp(-logits)))):
        outputs = {**base, "masks": LAYOUTS[layout](given)}
        found = mask_tensors(section, outputs, values)["masks"]
        found = found if found.ndim == 3 else found[:, 1]
        np.testing.assert_array_equal(found > 0, logits > 0)
        is_logit = values == "logits" and kind == "image"
        expected = logits if is_logit else 1 / (1 + np.exp(-logits)) - 0.5
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("masks", "changes", "message"),
    [
        ("box", {}, "with one mask for each box"),
        ("box", {"masks": (5, 8, 8)}, "with one mask for each box"),
        ("image", {"masks": (6, 8, 8, 4)}, "are none of its axes"),
        ("image", {"masks": (6, 3, 8, 3)}, "may be two of its axes"),
        ("prototypes", {"masks": (6, 8, 8)}, "coefficients (B, N, P) and prototypes"),
        ("prototypes", {"coefficients": (6, 4), "prototypes": (8, 8, 5)}, "coefficients (B, N, P)"),
        ("prototypes", {"coefficients": (6, 6), "prototypes": (8, 8, 6)}, "may be two of its axes"),
        ("prototypes", {"coefficients": (6, 8), "prototypes": (8, 8, 8)}, "may be two of its axes"),
    ],
)
def test_outputs_whose_axes_are_not_clear_are_refused(masks, changes, message):
    from cvbatch.inference.graph import resolve

    shapes = {"boxes": (6, 4), "scores": (6, 3), **changes}
    model = network((8, 8), {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    with pytest.raises(ModelError) as raised:
        resolve(model, config("a.keras", masks))
    assert message in str(raised.value)


def decision(section, outputs, activations=None, checks_boxes=True):
    from cvbatch.inference.activation_check import decide

    model = network((64, 64), outputs, activations)
    return decide(model, section, generated_pixels((64, 64)), checks_boxes=checks_boxes).masks


def small_boxes(rng, count=12):
    first = rng.uniform(0, 44, (count, 2))
    return np.concatenate([first, first + rng.uniform(8, 20, (count, 2))], 1).astype(np.float32)


def inside_of(boxes, cells):
    """Logits over the image that are positive in the boxes, (N, cells, cells)."""
    centre = (np.arange(cells) + 0.5) * 64 / cells
    x = (centre > boxes[:, :1]) & (centre < boxes[:, 2:3])
    y = (centre > boxes[:, 1:2]) & (centre < boxes[:, 3:])
    return np.where(y[:, :, None] & x[:, None], 4, -4).astype(np.float32)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_masks_that_cover_something_else_than_the_job_says_are_refused(activation):
    rng = np.random.default_rng(2)
    boxes = small_boxes(rng)
    outputs = {"boxes": boxes, "scores": falling_scores(len(boxes))}
    of_image = {**outputs, "masks": inside_of(boxes, 32)}
    of_box = {**outputs, "masks": np.full((len(boxes), 14, 14), 3, np.float32)}
    of_box["masks"][:, 0] = -3
    activations = {"masks": activation}
    values = "probabilities" if activation else "logits"
    for kind, right, wrong in (("image", of_image, of_box), ("box", of_box, of_image)):
        section = config("a.keras", kind, detector="boxes_scores")
        assert decision(section, right, activations).values == values
        assert decision(section, wrong, activations, checks_boxes=False).values == values
        with pytest.raises(ModelError, match=f"set masks: {'box' if kind == 'image' else 'image'}"):
            decision(section, wrong, activations)


def test_masks_are_refused_where_graph_and_values_disagree():
    from cvbatch.inference.mask_check import decide_values
    from cvbatch.inference.value_ranges import Values

    sigmoid = Values(0, 1, activations=frozenset({"sigmoid"}), source="mask")
    linear, unknown = Values(source="mask"), Values(source="mask", is_known=False)
    for values, high, expected in (
        (sigmoid, 1.0, "probabilities"), (linear, 4.0, "logits"),
        (unknown, 1.0, "probabilities"), (unknown, 4.0, "logits"),
    ):  # fmt: skip
        assert decide_values("a", values, 0.0, high).values == expected
    for values, high in ((sigmoid, 4.0), (linear, 1.0)):
        with pytest.raises(ModelError, match="with a sigmoid, or without any activation"):
            decide_values("a", values, 0.0, high)


def test_masks_that_are_not_stored_are_reported(tmp_path):
    masks, boxes = reference.box_masks()
    outputs = {"boxes": boxes, "scores": falling_scores(len(boxes)), "masks": masks}
    path = tmp_path / "a.keras"
    network(reference.BOX_MASKS[0], outputs).save(path)
    program = built(path, config(path, None))
    assert "set masks: box, image or prototypes" in program.note
    assert program.names == ("boxes", "scores")
