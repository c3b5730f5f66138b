"""Result files: one row per image, plain Parquet types, reproducible bytes."""

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cvbatch.config.loader import parse_job
from cvbatch.core.types import (
    Boxes,
    BoxMasks,
    Failure,
    Heatmaps,
    Labels,
    ModelPredictions,
    ModelSpec,
    Predictions,
)
from cvbatch.images.masks import decode_png
from cvbatch.inference.postprocess_segmentation import encode_masks
from cvbatch.planning import part_files
from cvbatch.results import schema, writer
from cvbatch.storage.store import Storage

CLASSES = ("background", "cat", "dog")


def result_models(**changes):
    models = [
        {"task": "classification", "model": "c.keras", "heatmap": {}},
        {"task": "segmentation", "model": "s.keras", **changes},
        {"task": "detection", "model": "d.keras"},
    ]
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": models})
    return [
        schema.ResultModel(
            config,
            ModelSpec(config.model[0], config.task, CLASSES, 4, 6, "stretch", "f" * 64, "conv"),
        )
        for config in job.models
    ]


def sides(count, height, width):
    return np.full(count, height, np.int32), np.full(count, width, np.int32)


def predictions():
    index = np.array([0, 0, 2])
    ids, scores = np.array([1, 2, 0], np.int32), np.array([0.75, 0.25, 1], np.float32)
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 6:] = 2
    return Predictions(
        "chunk",
        ["a.png", "b.png", "c.png"],
        ["/in/a.png", "/in/b.png", "/in/c.png"],
        np.array([6, 0, 12], np.int32),
        np.array([4, 0, 8], np.int32),
        {1: Failure("decode", "not_an_image", "no known signature")},
        (
            ModelPredictions(
                labels=Labels(ids, scores, index),
                heatmaps=Heatmaps(
                    np.arange(18, dtype=np.float32) / 17, *sides(3, 2, 3), ids, scores, index
                ),
            ),
            ModelPredictions(
                masks=encode_masks([np.zeros((4, 6), np.uint8), mask], np.array([0, 2]), 3)
            ),
            ModelPredictions(
                boxes=Boxes(
                    np.array([[0, 1, 2, 3], [1, 1, 5, 4], [0, 0, 12, 8]], np.float32),
                    scores, ids, index,
                )
            ),
        ),
    )  # fmt: skip


def rows(**changes):
    models = result_models(**changes)
    return schema.to_rows(predictions(), models, schema.result_schema(models)).to_pylist()


def test_no_images_give_no_rows():
    models = result_models()
    empty = Predictions("c", [], [], np.zeros(0, np.int32), np.zeros(0, np.int32), {}, ())
    empty = replace(empty, models=(ModelPredictions(),) * 3)
    table = schema.to_rows(empty, models, schema.result_schema(models))
    assert table.num_rows == 0


def test_every_image_is_one_row_in_order_and_failed_ones_have_an_error():
    first, failed, last = rows()
    assert [row["image_id"] for row in (first, failed, last)] == ["a.png", "b.png", "c.png"]
    assert [row["status"] for row in (first, failed, last)] == ["ok", "failed", "ok"]
    assert failed.pop("error") == {
        "stage": "decode",
        "kind": "not_an_image",
        "message": "no known signature",
    }
    known = {"image_id", "uri", "status"}
    assert all(value is None for name, value in failed.items() if name not in known)
    assert first["error"] is None


def test_labels_boxes_and_heatmaps_belong_to_their_images():
    first, _, last = rows()
    assert first["labels"] == [
        {"class_id": 1, "label": "cat", "score": 0.75},
        {"class_id": 2, "label": "dog", "score": 0.25},
    ]
    assert [box["x_max"] for box in first["boxes"]] == [2, 5]
    assert last["boxes"][0] == {
        "x_min": 0, "y_min": 0, "x_max": 12, "y_max": 8,
        "class_id": 0, "label": "background", "score": 1,
    }  # fmt: skip
    assert [len(row["heatmaps"]) for row in (first, last)] == [2, 1]
    heatmap = last["heatmaps"][0]
    assert (heatmap["model"], heatmap["layer"], heatmap["label"]) == ("c", "conv", "background")
    assert (heatmap["height"], heatmap["width"]) == (2, 3)
    np.testing.assert_allclose(heatmap["values"], np.arange(12, 18) / 17, rtol=1e-6)


def test_masks_and_areas_have_the_size_of_the_original():
    first, _, last = rows()
    assert decode_png(first["mask"]["bytes"]).shape == (4, 6)
    mask = decode_png(last["mask"]["bytes"])
    assert mask.shape == (8, 12)
    assert (mask[:, :6] == 0).all()
    assert (mask[:, 6:] == 2).all()
    assert last["mask"]["path"] is None
    assert last["mask_areas"] == [
        {"class_id": 0, "label": "background", "area": 48},
        {"class_id": 2, "label": "dog", "area": 48},
    ]


def test_a_column_exists_only_if_a_model_fills_it():
    classifier, segmenter, detector = result_models()
    assert schema.result_schema([classifier]).names[6:] == ["labels", "heatmaps"]
    assert schema.result_schema([segmenter]).names[6:] == ["mask", "mask_areas"]
    assert schema.result_schema([detector]).names[6:] == ["boxes"]


def part(tables=None):
    models = result_models()
    arrow_schema = schema.result_schema(models)
    metadata = schema.result_metadata(models, "abc", "1.2.3")
    tables = [schema.to_rows(predictions(), models, arrow_schema)] if tables is None else tables
    return writer.encode_part(tables, arrow_schema, metadata)


def test_a_part_round_trips_with_its_metadata():
    file = pq.ParquetFile(pa.BufferReader(part()))
    assert file.read().to_pylist() == rows()
    assert set(file.metadata.metadata) == {b"cvbatch"}
    document = json.loads(file.metadata.metadata[b"cvbatch"])
    assert document["fingerprint"] == "abc"
    assert document["schema_version"] == 1
    assert [model["task"] for model in document["models"]] == [
        "classification", "segmentation", "detection",
    ]  # fmt: skip
    model = document["models"][1]
    assert model["classes"] == list(CLASSES)
    assert model["input_size"] == [4, 6]
    assert model["weights_sha256"] == "f" * 64


def test_column_types():
    file = pq.ParquetFile(pa.BufferReader(part()))
    types = {field.name: str(field.type) for field in file.schema_arrow}
    element = "class_id: int32, label: string, score: float"
    box = f"x_min: float, y_min: float, x_max: float, y_max: float, {element}"
    heatmap = (
        f"model: string, layer: string, {element}, height: int32, width: int32, "
        "values: list<element: float>"
    )
    assert types == {
        "image_id": "string",
        "uri": "string",
        "width": "int32",
        "height": "int32",
        "status": "string",
        "error": "struct<stage: string, kind: string, message: string>",
        "labels": f"list<element: struct<{element}>>",
        "boxes": f"list<element: struct<{box}>>",
        "mask": "struct<bytes: binary, path: string>",
        "mask_areas": "list<element: struct<class_id: int32, label: string, area: int64>>",
        "heatmaps": f"list<element: struct<{heatmap}>>",
    }


def test_equal_rows_give_equal_bytes_and_no_rows_give_a_valid_file():
    assert part() == part()
    assert pq.ParquetFile(pa.BufferReader(part([]))).metadata.num_rows == 0


def test_duckdb_polars_and_pandas_read_the_same_rows(tmp_path):
    duckdb, polars, pandas = (pytest.importorskip(n) for n in ("duckdb", "polars", "pandas"))
    folder = tmp_path / "result"
    (folder / "_cvbatch").mkdir(parents=True)
    path = folder / part_files.part_name("0011")
    path.write_bytes(part())
    (folder / "_cvbatch" / "job.json").write_text("{}")
    selected = duckdb.sql(
        f"select image_id, status, len(boxes) from '{folder}/*.parquet'"
    ).fetchall()
    assert selected == [("a.png", "ok", 2), ("b.png", "failed", None), ("c.png", "ok", 1)]
    assert polars.read_parquet(folder / "*.parquet")["status"].to_list() == ["ok", "failed", "ok"]
    assert len(pandas.read_parquet(path)) == 3
    png = pandas.read_parquet(path)["mask"][0]["bytes"]
    assert Image.open(BytesIO(png)).size == (6, 4)


def test_failed_rows_are_detected_from_the_footer(tmp_path):
    models = result_models()
    arrow_schema = schema.result_schema(models)
    table = schema.to_rows(predictions(), models, arrow_schema)
    for name, tables, has_failed in (("a", [table], True), ("b", [table.slice(0, 1)], False)):
        path = tmp_path / part_files.part_name(name)
        path.write_bytes(writer.encode_part(tables, arrow_schema, b"{}"))
        assert writer.has_failed_rows(Storage(), str(path)) is has_failed


MASKS = ("mask of a", "mask of b", "mask of c")


def box_masks(strings, image_index, height=4, width=6):
    data = "".join(strings).encode()
    lengths = np.array([len(string) for string in strings], np.int32)
    return BoxMasks(
        np.frombuffer(data, np.uint8), lengths, *sides(len(strings), height, width), image_index
    )


def rows_with_masks(predictions):
    models = result_models()
    (detection,) = models[2:]
    models[2] = replace(detection, config=detection.config.model_copy(update={"masks": "box"}))
    return schema.to_rows(predictions, models, schema.result_schema(models))


def test_masks_of_boxes_are_a_list_beside_the_boxes():
    batch = predictions()
    *others, detection = batch.models
    detection = replace(detection, box_masks=box_masks(MASKS, detection.boxes.image_index))
    table = rows_with_masks(replace(batch, models=(*others, detection)))
    found = table["box_masks"].to_pylist()
    assert found[1] is None
    assert [mask["counts"] for mask in found[0] + found[2]] == list(MASKS)
    assert [mask["size"] for mask in found[0] + found[2]] == [[4, 6]] * 3
    assert [len(masks) for masks in (found[0], found[2])] == [2, 1]
    assert pq.read_table(BytesIO(writer.encode_part([table], table.schema, b"{}"))) == table


def test_a_batch_without_a_decoded_image_has_no_masks():
    table = rows_with_masks(replace(predictions(), models=(ModelPredictions(),) * 3))
    assert table["box_masks"].null_count == 3


def test_masks_are_a_column_only_of_jobs_that_store_them():
    assert "box_masks" not in rows()[0]
