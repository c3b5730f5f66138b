"""Predictions of each model, independent of batches; failures; post-processing by task."""

import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.types import Failure, ImageBatch, InputKey, ModelSpec
from cvbatch.geometry.resize import boxes_to_original, make_placement
from cvbatch.images.masks import decode_png
from cvbatch.inference.predictor import LoadedModel, Predictor

KEY = InputKey(8, 8, "stretch")


def config(task, **fields):
    models = [{"task": task, "model": "a.keras", **fields}]
    return parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": models}).models[0]


def spec(task, classes=("a", "b", "c")):
    return ModelSpec("net", task, classes, KEY.height, KEY.width, KEY.resize, "0" * 64, "conv")


def batch(values, failed=(), size=(16, 24)):
    """Return a batch of uniformly grey images; failed: positions without pixels."""
    decoded = [value for i, value in enumerate(values) if i not in failed]
    pixels = np.zeros((len(decoded), 8, 8, 3), np.uint8)
    pixels[:] = np.array(decoded, np.uint8).reshape(-1, 1, 1, 1)
    known = np.array([i not in failed for i in range(len(values))], np.int32)
    return ImageBatch(
        "chunk",
        [f"{i}.png" for i in range(len(values))],
        [f"/in/{i}.png" for i in range(len(values))],
        known * size[1],
        known * size[0],
        {i: Failure("decode", "empty", "0 bytes") for i in failed},
        {KEY: pixels},
    )


class Scores:
    """Program with batch size 4 whose class scores are a function of the grey of an image."""

    def __init__(self):
        self.calls = []

    def __call__(self, pixels):
        assert pixels.shape == (4, 8, 8, 3)
        self.calls.append(pixels[:, 0, 0, 0].tolist())
        grey = pixels[:, 0, 0, 0].astype(np.float32) / 255
        return {"scores": np.stack([grey, 1 - grey, np.full_like(grey, 0.4)], axis=1)}


def classifier(program, **fields):
    return LoadedModel(config("classification", **fields), spec("classification"), program, 4)


def test_empty_batch_gives_no_predictions():
    predictions = Predictor([classifier(Scores())])(batch([]))
    assert len(predictions) == 0
    assert predictions.models[0].labels is None


def test_program_is_not_called_for_failures():
    program = Scores()
    predictions = Predictor([classifier(program)])(batch([1, 2], failed=(0, 1)))
    assert program.calls == []
    assert sorted(predictions.failures) == [0, 1]


def test_labels_are_ranked_and_have_the_index_of_their_image():
    predictions = Predictor([classifier(Scores(), top_k=2)])(batch([255, 9, 0], failed=(1,)))
    labels = predictions.models[0].labels
    assert labels.image_index.tolist() == [0, 0, 2, 2]
    assert labels.class_id.tolist() == [0, 2, 1, 2]
    np.testing.assert_allclose(labels.score, [1, 0.4, 1, 0.4])


def test_lower_class_is_first_of_equal_scores():
    def program(pixels):
        return {"scores": np.full((4, 3), 0.5, np.float32)}

    labels = Predictor([classifier(program, top_k=3)])(batch([1])).models[0].labels
    assert labels.class_id.tolist() == [0, 1, 2]


def test_multi_label_selects_classes_that_reach_the_threshold():
    model = classifier(Scores(), multi_label=True, score_threshold=0.4)
    labels = Predictor([model])(batch([255, 127])).models[0].labels
    assert labels.image_index.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_labels_do_not_depend_on_the_batch(count):
    values = [(37 * i) % 256 for i in range(count)]
    labels = Predictor([classifier(Scores())])(batch(values)).models[0].labels
    for i, value in enumerate(values):
        expected = Predictor([classifier(Scores())])(batch([value])).models[0].labels
        of_image = labels.image_index == i
        np.testing.assert_array_equal(labels.class_id[of_image], expected.class_id)
        np.testing.assert_array_equal(labels.score[of_image], expected.score)


def test_last_batch_of_a_program_is_padded():
    program = Scores()
    Predictor([classifier(program)])(batch([1, 2, 3, 4, 5]))
    assert program.calls == [[1, 2, 3, 4], [5, 0, 0, 0]]


def test_nan_fails_its_image_in_every_model():
    def scores_with_nan(pixels):
        scores = Scores()(pixels)["scores"]
        scores[pixels[:, 0, 0, 0] == 7] = np.nan
        return {"scores": scores}

    def masks(pixels):
        return {"mask": pixels[..., 0]}

    models = [
        classifier(scores_with_nan, top_k=1),
        LoadedModel(config("segmentation"), spec("segmentation"), masks, 4),
    ]
    predictions = Predictor(models)(batch([5, 7, 9]))
    assert {i: failure.kind for i, failure in predictions.failures.items()} == {1: "not_finite"}
    assert predictions.models[0].labels.image_index.tolist() == [0, 2]
    assert predictions.models[1].masks.image_index.tolist() == [0, 2]
    masks = predictions.models[1].masks
    files = np.split(masks.png, np.cumsum(masks.num_bytes)[:-1])
    arrays = [decode_png(file.tobytes()) for file in files]
    assert [(mask.shape, np.unique(mask).tolist()) for mask in arrays] == [
        ((16, 24), [5]), ((16, 24), [9]),
    ]  # fmt: skip


def test_boxes_are_suppressed_and_mapped_to_the_original():
    def program(pixels):
        boxes = np.tile(
            np.array([[0, 0, 4, 4], [0, 0, 4, 3.9], [2, 2, 8, 8]], np.float32), (4, 1, 1)
        )
        scores = np.tile(np.array([[0.9, 0], [0.8, 0], [0, 0.7]], np.float32), (4, 1, 1))
        return {"boxes": boxes, "scores": scores}

    model = LoadedModel(config("detection"), spec("detection", ("x", "y")), program, 4)
    boxes = Predictor([model])(batch([1, 2], size=(16, 24))).models[0].boxes
    assert boxes.image_index.tolist() == [0, 0, 1, 1]
    assert boxes.class_id.tolist() == [0, 1, 0, 1]
    placement = make_placement(16, 24, KEY)
    expected = boxes_to_original(np.array([[0, 0, 4, 4], [2, 2, 8, 8]], np.float32), placement)
    np.testing.assert_allclose(boxes.xyxy[:2], expected)
    np.testing.assert_allclose(boxes.xyxy[1], [6, 4, 24, 16])


def test_keep_classes_selects_boxes_by_class_name():
    def program(pixels):
        boxes = np.tile(np.array([[0, 0, 4, 4], [4, 4, 8, 8]], np.float32), (4, 1, 1))
        scores = np.tile(np.array([[0.9, 0], [0, 0.7]], np.float32), (4, 1, 1))
        return {"boxes": boxes, "scores": scores}

    detection = config("detection", keep_classes=["y"])
    model = LoadedModel(detection, spec("detection", ("x", "y")), program, 4)
    assert Predictor([model])(batch([1])).models[0].boxes.class_id.tolist() == [1]


def test_localizer_gives_labels_and_one_box():
    def program(pixels):
        scores = np.tile(np.array([[0.2, 0.8]], np.float32), (4, 1))
        return {"scores": scores, "box": np.full((4, 4), 0.5, np.float32)}

    localization = config("localization", top_k=1, box_format="rel_center_xywh")
    model = LoadedModel(localization, spec("localization", ("x", "y")), program, 4)
    predictions = Predictor([model])(batch([1], size=(16, 24))).models[0]
    assert predictions.labels.class_id.tolist() == predictions.boxes.class_id.tolist() == [1]
    np.testing.assert_allclose(predictions.boxes.xyxy, [[6, 4, 18, 12]])
    np.testing.assert_allclose(predictions.boxes.score, [0.8])
