"""Masks of segmentation networks with every kind of output equal the Keras model's own call."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ModelError
from cvbatch.core.types import VOID_CLASS, EncodedImage, Tiling
from cvbatch.geometry.resize import resize_image
from cvbatch.geometry.tiling import tile_placements
from cvbatch.images.decode import decode_images
from cvbatch.images.masks import decode_png
from cvbatch.images.options import Limits
from cvbatch.inference import compile, programs
from cvbatch.inference.class_maps import ClassRule
from cvbatch.inference.predictor import LoadedModel, Predictor
from cvbatch.inference.sample_images import generated_pixels
from cvbatch.results import schema
from cvbatch.storage.store import Storage
from tests.inference.test_class_maps import ARG_MAX, check
from tests.support.class_maps import interpolated

pytestmark = pytest.mark.keras
SIZE = (32, 24)
ORIGINAL = (75, 92)
NAMES = ["a", "b", "c"]


def network(head, *, stride=1, units=3, scale=1.0):
    """Return a Keras model; head: function of its logits (B, h, w, units)."""
    import keras
    from keras import initializers, layers

    keras.utils.set_random_seed(5)
    image = keras.Input((*SIZE, 3))
    x = layers.AveragePooling2D(5, 1, "same")(layers.Rescaling(1 / 127.5, -1)(image))
    kernel = initializers.RandomNormal(stddev=2 * scale, seed=3)
    logits = layers.Conv2D(units, 3, stride, "same", kernel_initializer=kernel)(x)
    return keras.Model(image, head(logits))


def sigmoid(logits):
    from keras import layers

    return layers.Activation("sigmoid")(logits)


def softmax(logits):
    from keras import layers

    return layers.Activation("softmax")(logits)


def job_model(**keys):
    model = {"task": "segmentation", "model": "a.keras", **keys}
    return parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": [model]}).models[0]


def build(model, tmp_path, engine="litert", **keys):
    """Save a network and compile it as a job does."""
    file = tmp_path / "network.keras"
    model.save(file)
    config = job_model(**{**keys, "model": str(file)})
    identity = programs.identify(Storage(), config)
    built = compile.build(Storage(), programs.BuildRequest(config, identity, engine, "float32", 2))
    return LoadedModel(config, built.spec, built.load(1), 2), built


def row_of(loaded, image):
    """Return the row of the result for one image, as a worker writes it."""
    data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    key = loaded.spec.input_key
    (batch,) = decode_images([EncodedImage("a", "a", data)], [key], Limits(), "c", 2)
    models = [schema.ResultModel(loaded.config, loaded.spec)]
    predictions = Predictor([loaded])(batch)
    (row,) = schema.to_rows(predictions, models, schema.result_schema(models)).to_pylist()
    return row


def mask_of(loaded, image):
    return decode_png(row_of(loaded, image)["mask"]["bytes"])


def picture():
    return generated_pixels(ORIGINAL)[0]


def called(model, loaded, image):
    """Return the Keras model's own output for an image, and its placement."""
    (placement,) = tile_placements(*image.shape[:2], loaded.spec.input_key)
    pixels = resize_image(image, placement)[None].astype("float32")
    return np.asarray(model(pixels))[0], placement


def ids(logits):
    from keras import ops

    return ops.argmax(logits, axis=-1)


def ids_with_channel(logits):
    from keras import ops

    return ops.expand_dims(ids(logits), -1)


def float_ids(logits):
    from keras import ops

    return ops.cast(ids_with_channel(logits), "float32")


@pytest.mark.runs("segmentation network with arg-max inside", "`classes`: the names of the ids")
@pytest.mark.parametrize(
    ("engine", "head", "stride"),
    [("litert", ids, 2), ("tensorflow", ids_with_channel, 1), ("litert", float_ids, 2)],
)
def test_class_ids_are_copied(head, stride, engine, tmp_path):
    model = network(head, stride=stride)
    loaded, built = build(model, tmp_path, engine, classes=NAMES)
    assert "holds class ids (0 to 2" in built.activation_reason
    expected = called(model, loaded, picture())[0]
    height, width = expected.shape[:2]
    expected = expected.reshape(height, width)
    mask = mask_of(loaded, picture())
    assert mask.shape == ORIGINAL and len(np.unique(mask)) == 3
    rows = (np.arange(ORIGINAL[0]) * 2 + 1) * height // (2 * ORIGINAL[0])
    columns = (np.arange(ORIGINAL[1]) * 2 + 1) * width // (2 * ORIGINAL[1])
    np.testing.assert_array_equal(mask, expected[np.ix_(rows, columns)])
    loaded, _ = build(model, tmp_path, engine, classes=NAMES, mask_size="model")
    np.testing.assert_array_equal(
        mask_of(loaded, picture()), expected.repeat(stride, 0).repeat(stride, 1)
    )


def test_an_id_that_no_class_has_is_void():
    """The check when the network is built cannot see all images."""
    import tensorflow as tf

    from cvbatch.inference.forward_pass import ForwardPass
    from cvbatch.inference.outputs_segmentation import compute

    outputs = {"output": tf.constant([[[[0], [1], [2], [3], [254], [-1]]]])}
    forward = ForwardPass(job_model(classes=NAMES), (1, 6), outputs, None, "none")
    assert compute(forward)["mask"].numpy().tolist() == [[[0, 1, 2] + [VOID_CLASS] * 3]]


@pytest.mark.runs(
    "multi-label segmentation (sigmoid channels)",
    "`background: add`, or the name of a channel with `score_threshold`",
)
@pytest.mark.parametrize(
    ("engine", "keys"),
    [
        ("litert", {"background": "add"}),
        ("tensorflow", {"background": "add", "score_threshold": 0.8}),
        ("litert", {"background": "b", "score_threshold": 0.8}),
        ("litert", {"background": "add", "mask_size": "model"}),
        ("litert", {}),
    ],
)
def test_independent_channels(keys, engine, tmp_path):
    model = network(sigmoid)
    loaded, built = build(model, tmp_path, engine, classes=NAMES, **keys)
    assert built.activation == "none"
    assert ("set background: add" in built.activation_reason) == (not keys)
    has_more = keys.get("background") == "add"
    assert built.spec.classes == (("background", *NAMES) if has_more else tuple(NAMES))
    scores, placement = called(model, loaded, picture())
    row = row_of(loaded, picture())
    mask = decode_png(row["mask"]["bytes"])
    rule = ClassRule.of(loaded.config, built.spec.classes, 3)
    expected = scores if keys.get("mask_size") == "model" else interpolated(scores, placement)
    check(mask, expected, rule)
    assert len(np.unique(mask)) == 3 + has_more
    areas = {area["label"]: area["area"] for area in row["mask_areas"]}
    assert areas == {
        name: int((mask == i).sum()) for i, name in enumerate(built.spec.classes) if i in mask
    }


@pytest.mark.runs(
    "binary segmentation (one sigmoid channel) with its own threshold", "`score_threshold`"
)
@pytest.mark.parametrize(
    ("head", "threshold"),
    [(sigmoid, None), (sigmoid, 0.8), (lambda logits: logits, None), (lambda logits: logits, 0.3)],
)
def test_one_channel(head, threshold, tmp_path):
    model = network(head, units=1)
    loaded, _ = build(model, tmp_path, score_threshold=threshold)
    scores, placement = called(model, loaded, picture())
    positive = scores if head is sigmoid else 1 / (1 + np.exp(-scores))
    rule = ClassRule(threshold or 0.5, 0, 1)
    mask = mask_of(loaded, picture())
    check(mask, interpolated(positive, placement), rule)
    assert set(np.unique(mask)) == {0, 1}


def flat(logits):
    from keras import layers

    return layers.Activation("softmax")(layers.Reshape((-1, 3))(logits))


@pytest.mark.runs("(B, H·W, C) class maps", "as they are; H·W may be that of a stride")
@pytest.mark.parametrize(("engine", "stride"), [("litert", 1), ("tensorflow", 4)])
def test_rows_of_pixels(stride, engine, tmp_path):
    model = network(flat, stride=stride)
    loaded, _ = build(model, tmp_path, engine)
    scores, placement = called(model, loaded, picture())
    maps = scores.reshape(SIZE[0] // stride, SIZE[1] // stride, 3)
    check(mask_of(loaded, picture()), interpolated(maps, placement))


@pytest.mark.runs("(B, H, W) class map of one class", "as it is; `score_threshold`")
def test_map_without_a_channel(tmp_path):
    from keras import layers

    def head(logits):
        return layers.Activation("sigmoid")(layers.Reshape(SIZE)(logits))

    model = network(head, units=1)
    loaded, _ = build(model, tmp_path)
    scores, placement = called(model, loaded, picture())
    check(mask_of(loaded, picture()), interpolated(scores[..., None], placement),
          ClassRule(0.5, 0, 1))  # fmt: skip


@pytest.mark.runs("segmentation network (softmax, or logits of classes)", "as it is")
@pytest.mark.parametrize(
    ("stride", "resize"),
    [(1, "stretch"), (4, "letterbox"), (4, {"mode": "crop", "fraction": 0.8})],
)
def test_softmax_is_interpolated_to_the_original(stride, resize, tmp_path):
    model = network(softmax, stride=stride)
    loaded, _ = build(model, tmp_path, resize=resize)
    scores, placement = called(model, loaded, picture())
    mask = mask_of(loaded, picture())
    check(mask, interpolated(scores, placement))
    assert ((mask == VOID_CLASS).any()) == isinstance(resize, dict)


@pytest.mark.parametrize("head", [softmax, sigmoid])
def test_tiles_are_interpolated_then_averaged(head, tmp_path):
    keys = {"background": "add"} if head is sigmoid else {}
    model = network(head, stride=2)
    tiles = {"size": [40, 50], "overlap": 8}
    loaded, built = build(model, tmp_path, classes=NAMES, tiles=tiles, **keys)
    key = loaded.spec.input_key
    assert key.tiling == Tiling(40, 50, 8, 8)
    placements = tile_placements(*ORIGINAL, key)
    assert len(placements) > 3
    pixels = np.stack([resize_image(picture(), p) for p in placements]).astype("float32")
    scores = [
        interpolated(grid, p) for grid, p in zip(np.asarray(model(pixels)), placements, strict=True)
    ]
    rule = ClassRule.of(loaded.config, built.spec.classes, 3)
    assert (rule == ARG_MAX) == (head is softmax)
    check(mask_of(loaded, picture()), np.nanmean(scores, axis=0), rule)


@pytest.mark.parametrize(
    ("head", "keys", "message"),
    [
        (ids, {}, "set classes: to their names"),
        (ids, {"classes": ["a", "b"]}, "holds 0 to 2 for 4 images, and ids of the 2 classes"),
        (float_ids, {"classes": ["a", "b"]}, "the whole numbers 0 to 2, which may be class ids"),
        (lambda logits: sigmoid(logits[..., :1]), {"classes": NAMES}, "holds fractions"),
        (ids, {"classes": NAMES, "tiles": {}}, "tiles needs scores; remove tiles"),
        (ids, {"classes": NAMES, "score_threshold": 0.4}, "score_threshold needs scores"),
        (sigmoid, {"score_threshold": 0.4}, "set background: to the name of a class, or to add"),
        (sigmoid, {"classes": NAMES, "score_threshold": 0.4, "background": "d"}, "no class 'd'"),
        (lambda logits: sigmoid(logits[..., :1]), {"background": "add"}, "remove background"),
        (lambda logits: logits[:, 1:, 1:, 0], {}, r"outputs are output \(B, 31, 23\)"),
    ],
)
def test_keys_that_do_not_fit_the_network_are_refused(head, keys, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        build(network(head), tmp_path, **keys)


def test_one_channel_of_zeros_and_ones_is_not_activated(tmp_path):
    from keras import ops

    def head(logits):
        return ops.cast(logits > 0, "float32")

    model = network(head, units=1)
    loaded, built = build(model, tmp_path)
    assert built.activation == "none"
    scores, placement = called(model, loaded, picture())
    check(mask_of(loaded, picture()), interpolated(scores, placement), ClassRule(0.5, 0, 1))


def test_a_shape_with_two_meanings_is_refused():
    from cvbatch.inference.outputs_segmentation import as_maps

    output = {"output": np.zeros((2, 16, 16))}  # 16 x 16 cells, or 4 x 4 cells with 16 classes
    with pytest.raises(ModelError, match="may be one map or a row of pixels"):
        as_maps(job_model(), output, (64, 64))
