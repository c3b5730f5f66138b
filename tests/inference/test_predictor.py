"""The Predictor says what each model alone would say, whatever the batches."""

import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.types import Failure, ImageBatch, InputKey, ModelSpec, pictures_of
from cvbatch.geometry.resize import boxes_to_original, make_placement
from cvbatch.inference.predictor import LoadedModel, Predictor

KEY = InputKey(8, 8, "stretch")


def config(task, **fields):
    models = [{"task": task, "model": "a.keras", **fields}]
    return parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": models}).models[0]


def spec(task, classes=("a", "b", "c")):
    return ModelSpec("net", task, classes, KEY.height, KEY.width, KEY.resize, "0" * 64, "conv")


def batch(values, failed=(), size=(16, 24)):
    """Return a batch of plain grey images; `failed` are positions without pixels."""
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
    """A program whose class scores follow from an image's grey: one it was compiled for 4 of."""

    def __init__(self):
        self.calls = []

    def __call__(self, pixels):
        assert pixels.shape == (4, 8, 8, 3)
        self.calls.append(pixels[:, 0, 0, 0].tolist())
        grey = pixels[:, 0, 0, 0].astype(np.float32) / 255
        return {"scores": np.stack([grey, 1 - grey, np.full_like(grey, 0.4)], axis=1)}


def classifier(program, **fields):
    return LoadedModel(config("classification", **fields), spec("classification"), program, 4)


def test_nothing_in_nothing_out():
    said = Predictor([classifier(Scores())])(batch([]))
    assert len(said) == 0
    assert said.models[0].labels is None


def test_a_batch_of_failures_reaches_no_model():
    program = Scores()
    said = Predictor([classifier(program)])(batch([1, 2], failed=(0, 1)))
    assert program.calls == []
    assert sorted(said.failures) == [0, 1]


def test_labels_are_ranked_and_belong_to_their_images():
    said = Predictor([classifier(Scores(), top_k=2)])(batch([255, 9, 0], failed=(1,)))
    labels = said.models[0].labels
    assert labels.image_index.tolist() == [0, 0, 2, 2]
    assert labels.class_id.tolist() == [0, 2, 1, 2]
    np.testing.assert_allclose(labels.score, [1, 0.4, 1, 0.4])


def test_equal_scores_rank_the_lower_class_first():
    def program(pixels):
        return {"scores": np.full((4, 3), 0.5, np.float32)}

    labels = Predictor([classifier(program, top_k=3)])(batch([1])).models[0].labels
    assert labels.class_id.tolist() == [0, 1, 2]


def test_several_labels_are_all_that_reach_the_threshold():
    model = classifier(Scores(), multi_label=True, score_threshold=0.4)
    labels = Predictor([model])(batch([255, 127])).models[0].labels
    assert labels.image_index.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_results_do_not_depend_on_how_images_fall_into_batches(count):
    values = [(37 * i) % 256 for i in range(count)]
    together = Predictor([classifier(Scores())])(batch(values)).models[0].labels
    for i, value in enumerate(values):
        alone = Predictor([classifier(Scores())])(batch([value])).models[0].labels
        mine = together.image_index == i
        np.testing.assert_array_equal(together.class_id[mine], alone.class_id)
        np.testing.assert_array_equal(together.score[mine], alone.score)


def test_a_program_is_called_with_full_batches_only():
    program = Scores()
    Predictor([classifier(program)])(batch([1, 2, 3, 4, 5]))
    assert program.calls == [[1, 2, 3, 4], [5, 0, 0, 0]]


def test_a_score_that_is_not_finite_fails_its_own_image_in_every_model():
    def broken(pixels):
        scores = Scores()(pixels)["scores"]
        scores[pixels[:, 0, 0, 0] == 7] = np.nan
        return {"scores": scores}

    def masks(pixels):
        return {"mask": pixels[..., 0]}

    models = [
        classifier(broken, top_k=1),
        LoadedModel(config("segmentation"), spec("segmentation"), masks, 4),
    ]
    said = Predictor(models)(batch([5, 7, 9]))
    assert {i: failure.kind for i, failure in said.failures.items()} == {1: "not_finite"}
    assert said.models[0].labels.image_index.tolist() == [0, 2]
    assert said.models[1].masks.image_index.tolist() == [0, 2]
    masks = said.models[1].masks
    pictures = pictures_of(masks.class_id, masks.height, masks.width)
    assert [(mask.shape, np.unique(mask).tolist()) for mask in pictures] == [
        ((8, 8), [5]), ((8, 8), [9]),
    ]  # fmt: skip


def test_boxes_are_suppressed_and_carried_to_the_original():
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


def test_kept_classes_are_kept_by_name():
    def program(pixels):
        boxes = np.tile(np.array([[0, 0, 4, 4], [4, 4, 8, 8]], np.float32), (4, 1, 1))
        scores = np.tile(np.array([[0.9, 0], [0, 0.7]], np.float32), (4, 1, 1))
        return {"boxes": boxes, "scores": scores}

    detection = config("detection", keep_classes=["y"])
    model = LoadedModel(detection, spec("detection", ("x", "y")), program, 4)
    assert Predictor([model])(batch([1])).models[0].boxes.class_id.tolist() == [1]


def test_a_localizer_gives_labels_and_one_box():
    def program(pixels):
        scores = np.tile(np.array([[0.2, 0.8]], np.float32), (4, 1))
        return {"scores": scores, "box": np.full((4, 4), 0.5, np.float32)}

    localization = config("localization", top_k=1, box_format="rel_center_xywh")
    model = LoadedModel(localization, spec("localization", ("x", "y")), program, 4)
    said = Predictor([model])(batch([1], size=(16, 24))).models[0]
    assert said.labels.class_id.tolist() == said.boxes.class_id.tolist() == [1]
    np.testing.assert_allclose(said.boxes.xyxy, [[6, 4, 18, 12]])
    np.testing.assert_allclose(said.boxes.score, [0.8])
