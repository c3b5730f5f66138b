"""Predictions of tiled images, compared with untiled predictions and with Keras on the tiles."""

import cv2
import numpy as np
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.core.types import EncodedImage, InputKey, ModelSpec, Tiling
from cvbatch.geometry.resize import resize_image
from cvbatch.geometry.tiling import count_tiles, tile_placements
from cvbatch.images.decode import Limits, decode_images
from cvbatch.images.masks import decode_png
from cvbatch.inference import builder, programs
from cvbatch.inference.predictor import LoadedModel, Predictor
from cvbatch.results import schema
from cvbatch.storage.store import Storage
from tests.support.class_maps import interpolated
from tests.support.reference_arrays import suppress_reference
from tests.support.serving import serving_graph

KERAS = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SIZES = [(40, 30), (32, 24), (90, 20), (20, 130), (25, 24), (70, 75), (33, 1)]
SMALL_TILES, LARGE_TILES = {"size": 32, "overlap": 0.25}, {"size": 200}


def sample_images(sizes=SIZES):
    """Return PNGs of smooth random colours."""
    images = []
    for i, (height, width) in enumerate(sizes):
        coarse = np.random.default_rng(i).integers(0, 256, (7, 9, 3), np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        images.append(EncodedImage(f"{i}", f"file:{i}", cv2.imencode(".png", image)[1].tobytes()))
    return images


def three_tasks(models, tiles):
    sections = [
        {
            "task": "classification",
            "model": str(models / "nested_classifier.keras"),
            "heatmap": {"top_k": 3},
        },
        {
            "task": "segmentation",
            "model": str(models / "segmenter.keras"),
            "resize": "letterbox",
        },
        {
            "task": "detection",
            "model": str(models / "detector.keras"),
            "score_threshold": 0.4,
            "iou_threshold": 0.3,
        },
    ]
    for section in sections:
        section |= {"tiles": tiles} if tiles is not None else {}
    return parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": sections}).models


def load_models(configs, batch_size=4):
    models = []
    for config in configs:
        request = programs.BuildRequest(
            config, programs.identify(Storage(), config), "litert", "float32", batch_size
        )
        built = builder.build(Storage(), request)
        models.append(LoadedModel(config, built.spec, built.load(1), batch_size))
    return models


def rows(models, images, batch_size=4, limits=Limits()):  # noqa: B008 - frozen
    """Return the rows of the result as a worker writes them."""
    keys = list(dict.fromkeys(model.spec.input_key for model in models))
    result_models = [schema.ResultModel(model.config, model.spec) for model in models]
    arrow_schema = schema.result_schema(result_models)
    predictions = map(Predictor(models), decode_images(images, keys, limits, "c", batch_size))
    tables = [
        schema.to_rows(batch, result_models, arrow_schema).to_pylist() for batch in predictions
    ]
    return [row for table in tables for row in table]


@pytest.fixture(scope="module")
def tiled(keras_files):
    return load_models(three_tasks(keras_files, SMALL_TILES))


class TestThreeTasks:
    pytestmark = KERAS

    def test_image_that_fits_one_tile_has_the_untiled_row(self, tiled, keras_files):
        untiled = load_models(three_tasks(keras_files, None))
        expected = rows(untiled, sample_images())
        large_tiles = load_models(three_tasks(keras_files, LARGE_TILES))
        assert rows(large_tiles, sample_images()) == expected
        keys = [model.spec.input_key for model in tiled]
        tiled_rows = rows(tiled, sample_images())
        for row, untiled_row, size in zip(tiled_rows, expected, SIZES, strict=True):
            fits = [count_tiles(*size, key) == 1 for key in keys]
            assert len(set(fits)) == 1
            assert (row == untiled_row) == fits[0]

    @pytest.mark.parametrize("batch_size", [1, 32])
    def test_rows_do_not_depend_on_the_batch_size(self, tiled, keras_files, batch_size):
        other = load_models(three_tasks(keras_files, SMALL_TILES), batch_size)
        assert rows(other, sample_images(), batch_size) == rows(tiled, sample_images())

    def test_rows_do_not_depend_on_order_and_memory_limit(self, tiled):
        images = sample_images()
        expected = rows(tiled, images)
        assert rows(tiled, images[::-1])[::-1] == expected
        assert rows(tiled, images, limits=Limits(batch_tile_bytes=1)) == expected
        assert [row for image in images for row in rows(tiled, [image])] == expected

    def test_tiled_row_equals_merged_keras_outputs(self, tiled, keras_files):
        import keras

        images = [image for image, size in zip(sample_images(), SIZES, strict=True) if size[0] > 32]
        names = ("nested_classifier", "segmenter", "detector")
        models = [keras.models.load_model(keras_files / f"{name}.keras") for name in names]
        for image, row in zip(images, rows(tiled, images), strict=True):
            pixels = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR_RGB)
            placements = [
                tile_placements(*pixels.shape[:2], model.spec.input_key) for model in tiled
            ]
            assert all(len(of_model) > 1 for of_model in placements)
            tiles = [
                np.stack([resize_image(pixels, p) for p in of_model]).astype("float32")
                for of_model in placements
            ]
            scores = models[0].predict(tiles[0], verbose=0).max(axis=0)
            assert [label["class_id"] for label in row["labels"]] == np.argsort(-scores)[
                :5
            ].tolist()
            np.testing.assert_allclose(
                [label["score"] for label in row["labels"]], np.sort(scores)[:-6:-1], atol=1e-5
            )
            assert [len(row["heatmaps"])] == [3]
            check_mask(row, placements[1], models[1].predict(tiles[1], verbose=0))
            check_boxes(row, placements[2], models[2].predict(tiles[2], verbose=0))


def check_mask(row, placements, probabilities):
    """Compare a mask with means over all tiles, except where two classes are almost equal."""
    values = [interpolated(tile, p) for tile, p in zip(probabilities, placements, strict=True)]
    mean = np.nanmean(values, axis=0)
    ranked = np.sort(mean, axis=2)
    is_clear = ranked[..., -1] - ranked[..., -2] > 1e-5
    mask = decode_png(row["mask"]["bytes"])
    assert is_clear.mean() > 0.99
    np.testing.assert_array_equal(mask[is_clear], mean.argmax(axis=2)[is_clear])
    assert sum(area["area"] for area in row["mask_areas"]) == mask.size


def check_boxes(row, placements, outputs):
    """Compare boxes with one reference suppression over the boxes of all tiles."""
    boxes = []
    for placement, tile in zip(placements, outputs["boxes"].astype(np.float64), strict=True):
        (top, left, h, w), inner = placement.source, placement.target
        mapped = tile * np.array([w / inner.width, h / inner.height] * 2)
        mapped += np.array([left, top] * 2)
        boxes.append(mapped.clip(0, [placement.width, placement.height] * 2))
    boxes, scores = np.concatenate(boxes), np.concatenate(outputs["scores"])
    kept, class_id = suppress_reference(
        boxes, scores, score_threshold=0.4, iou_threshold=0.3, max_detections=300
    )
    sides = ("x_min", "y_min", "x_max", "y_max")
    row_boxes = [[box[side] for side in sides] for box in row["boxes"]]
    assert len(row_boxes) == len(kept) > 0
    np.testing.assert_allclose(row_boxes, boxes[kept], atol=1e-3)
    assert [box["class_id"] for box in row["boxes"]] == class_id.tolist()


# ---- programs without a network


def fake(task, program, tiling=(8, 8, 2, 2), **fields):
    models = [{"task": task, "model": "a.keras", "tiles": {}, **fields}]
    config = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": models}).models[0]
    spec = ModelSpec("net", task, ("a", "b"), 8, 8, "stretch", "0" * 64, "conv", *tiling)
    return LoadedModel(config, spec, program, 4)


def grey(*values):
    """Return an image of 8 rows with one 8 × 8 tile of each grey value."""
    image = np.repeat(np.array([values], np.uint8), 8, axis=0).repeat(8, axis=1)
    return EncodedImage(f"{values}", "", cv2.imencode(".png", image)[1].tobytes())


def nan_program(value, outputs):
    """Return a program that gives NaN for tiles of one grey value."""

    def program(pixels):
        results = {name: np.full((4, *shape), 0.5, np.float32) for name, shape in outputs.items()}
        for array in results.values():
            array[pixels[:, 0, 0, 0] == value] = np.nan
        return results

    return program


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("classification", {"scores": (2,)}),
        ("detection", {"boxes": (3, 4), "scores": (3, 2)}),
        ("segmentation", {"probabilities": (8, 8, 2)}),
    ],
)
def test_nan_of_a_tile_fails_its_image_in_every_model(task, outputs):
    models = [fake("classification", nan_program(-1, {"scores": (2,)}), (8, 8, 0, 0))]
    other = fake(task, nan_program(7, outputs), (8, 8, 0, 0))
    models = [other] if task == "classification" else [*models, other]
    images = [grey(1, 2), grey(1, 7, 3), grey(7), grey(7, 1), grey(4, 5, 6), grey(4)]
    for ordered_models in (models, models[::-1]):
        kinds = [row["error"] and row["error"]["kind"] for row in rows(ordered_models, images)]
        assert kinds == [None, "not_finite", "not_finite", "not_finite", None, None]


def test_batches_of_a_program_have_tiles_of_several_images():
    batches = []

    def program(pixels):
        batches.append(pixels[:, 0, 0, 0].tolist())
        return {"scores": pixels[:, 0, 0, :2].astype(np.float32) / 255}

    model = fake("classification", program, (8, 8, 0, 0), top_k=1)
    images = [grey(10, 20, 30), grey(40), grey(60, 50)]
    labels = [row["labels"][0]["score"] for row in rows([model], images)]
    np.testing.assert_allclose(labels, np.array([30, 40, 60]) / 255, rtol=1e-6)
    assert batches == [[10, 20, 30, 40], [60, 50, 0, 0]]


def test_program_is_not_called_without_images():
    def program(pixels):
        raise RuntimeError("called without an image")

    model = fake("segmentation", program)
    assert rows([model], []) == []
    (row,) = rows([model], [EncodedImage("a", "a", b"")])
    assert (row["status"], row["mask"]) == ("failed", None)


def test_models_of_equal_tiling_have_the_same_input_key():
    def program(pixels):
        return {"scores": np.zeros((4, 2), np.float32)}

    first, second = fake("classification", program), fake("detection", program)
    other_tiling = fake("detection", program, (8, 8, 3, 3))
    assert first.spec.input_key == second.spec.input_key != other_tiling.spec.input_key
    assert first.spec.input_key == InputKey(8, 8, "stretch", Tiling(8, 8, 2, 2))


# ---- probabilities in the graph


@pytest.mark.parametrize("engine", ["litert", "tensorflow"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("units", "activation"), [(3, "softmax"), (3, None), (1, "sigmoid"), (1, None), (2, "sigmoid")]
)
class TestProbabilities:
    pytestmark = KERAS

    def test_mask_is_the_argmax_of_the_probabilities(self, units, activation, stride, engine):
        import keras
        from keras import layers

        from cvbatch.inference.engines import ENGINES

        keras.utils.set_random_seed(3)
        image = keras.Input((12, 16, 3))
        x = layers.Conv2D(4, 3, strides=stride, padding="same")(layers.Rescaling(1 / 64)(image))
        logits = layers.Conv2D(units, 3, padding="same")(x)
        maps = logits if activation is None else layers.Activation(activation)(logits)
        model = keras.Model(image, maps)
        models = [{"task": "segmentation", "model": "a.keras"}]
        raw = {"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": models}
        images = np.random.default_rng(1).integers(0, 256, (2, 12, 16, 3), np.uint8)
        results = []
        for keys in ({"mask_size": "model"}, {}, {"tiles": {}}):
            graph = serving_graph(model, parse_job({**raw, "models": [models[0] | keys]}).models[0])
            payload, names = ENGINES[engine].compile(graph, 2, 12, 16)
            results.append(ENGINES[engine].load(payload, names, 1)(images))
        at_input, original, tiled = results
        assert set(at_input) == {"mask"}
        assert set(original) == set(tiled) == {"probabilities"}
        np.testing.assert_array_equal(original["probabilities"], tiled["probabilities"])
        maps = model(images.astype("float32"))
        function = getattr(keras.ops, activation or ("softmax" if units > 1 else "sigmoid"))
        expected = keras.ops.convert_to_numpy(maps if activation else function(maps))
        np.testing.assert_allclose(tiled["probabilities"], expected, atol=1e-5)
        expected = keras.ops.image.resize(maps, (12, 16))
        expected = keras.ops.convert_to_numpy(expected if activation else function(expected))
        if units == 1:
            expected = np.concatenate([1 - expected, expected], axis=3)
        clear = np.abs(np.diff(np.sort(expected, axis=3)[..., -2:], axis=3))[..., 0] > 1e-4
        np.testing.assert_array_equal(at_input["mask"][clear], expected.argmax(axis=3)[clear])
        assert len(np.unique(at_input["mask"])) > 1
