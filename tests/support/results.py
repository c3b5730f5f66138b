"""Random predictions, written as `cvbatch predict` writes them, for tests of readers."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_masks

from cvbatch.config.loader import parse_job
from cvbatch.config.predict import SourceConfig
from cvbatch.core.progress import Listener
from cvbatch.core.types import ModelSpec
from cvbatch.exporters.job import export
from cvbatch.exporters.options import ExportOptions
from cvbatch.images.masks import decode_png, encode_png
from cvbatch.planning.plan import make_plan
from cvbatch.results import schema, writer
from cvbatch.storage.store import Storage

CLASSES = ("background", "cat", "dög <b> & co")
TASKS = ("classification", "segmentation", "detection")
VECTOR_TASKS = ("embedding", "regression")
SIZE = (40, 60)


def random_predictions(seed, size=SIZE):
    """Return random predictions for one image: up to five boxes, labels and a mask."""
    rng = np.random.default_rng(seed)
    height, width = size
    boxes = []
    for _ in range(seed % 6):
        x, y = np.sort(rng.uniform(0, width, 2)), np.sort(rng.uniform(0, height, 2))
        sides = {"x_min": x[0], "x_max": x[1], "y_min": y[0], "y_max": y[1]}
        class_id = int(rng.integers(1, 3))
        score = float(rng.uniform(0.1, 1))
        boxes.append({**sides, "class_id": class_id, "label": CLASSES[class_id], "score": score})
    mask = rng.integers(0, 3, (5, 6)).astype(np.uint8).repeat(8, 0).repeat(10, 1)
    mask[rng.integers(0, 40), :] = 255
    labels = [
        {"class_id": i, "label": CLASSES[i], "score": score} for i, score in ((1, 0.7), (2, 0.2))
    ]
    return {"boxes": boxes, "mask": {"bytes": encode_png(mask)}, "labels": labels, "size": size}


def random_box_masks(predictions, seed):
    """Return a random mask for each box, as COCO's RLE; it may leave its box."""
    rng = np.random.default_rng(seed)
    masks = []
    for _ in predictions["boxes"]:
        region = rng.integers(0, 2, (5, 6)).repeat(8, 0).repeat(10, 1).astype(np.uint8)
        rle = coco_masks.encode(np.asfortranarray(region))
        masks.append({"size": list(region.shape), "counts": rle["counts"].decode()})
    return masks


def random_row(seed, classes=CLASSES):
    """Return random predictions with a value of every column."""
    predictions = random_predictions(seed)
    predictions["box_masks"] = random_box_masks(predictions, seed)
    values = np.random.default_rng(seed).random(6).astype(np.float32).tolist()
    vectors = {"embedding": values[:3], "values": values[3:]}
    named = {"model": "m", "layer": "last", "class_id": 1, "label": classes[1], "score": 0.75}
    heatmap = {**named, "height": 2, "width": 3, "values": values}
    counts = np.bincount(decode_png(predictions["mask"]["bytes"]).reshape(-1), minlength=256)[:3]
    areas = [
        {"class_id": i, "label": classes[i], "area": int(counts[i])} for i in np.argsort(-counts)
    ]
    predictions = {**predictions, "heatmaps": [heatmap], "mask_areas": areas, **vectors}
    for item in (*predictions["boxes"], *predictions["labels"]):
        item["label"] = classes[item["class_id"]]
    return predictions


def boxes_at(*sides):
    names = ("x_min", "y_min", "x_max", "y_max")
    rest = {"class_id": 1, "label": "cat", "score": 1.0}
    return [{**dict(zip(names, box, strict=True)), **rest} for box in sides]


FAILED_ROW = {
    "status": "failed",
    "error": {"stage": "decode", "kind": "truncated", "message": "cut\n"},
}


def write_predictions(
    out, source, predictions, tasks=TASKS, classes=CLASSES, format_="images", **options
):
    """Write a result over `source`; predictions: image_id → `random_predictions` or FAILED_ROW."""
    configs = [{"task": task, "model": "m.keras", **options.get(task, {})} for task in tasks]
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": configs})
    models = [
        schema.ResultModel(
            config,
            ModelSpec(
                *("m", config.task, classes, 20, 20, "letterbox", "f" * 64),
                dimension=3 if config.task in VECTOR_TASKS else 0,
            ),
        )
        for config in job.models
    ]
    arrow_schema = schema.result_schema(models)
    plan = make_plan(Storage(), SourceConfig(uri=str(source), format=format_), str(out), 4, 1 << 30)
    plan.commit()
    metadata = schema.result_metadata(models, "abc", "1")
    for ref in plan.chunks:
        rows = [
            row(image_id, item.uri, predictions.get(image_id, FAILED_ROW))
            for item in plan.read_chunk(ref).items
            for image_id in ids_of(item, format_)
        ]
        table = pa.Table.from_pylist(rows, arrow_schema)
        writer.write_part(Storage(), str(out), ref.chunk_id, [table], arrow_schema, metadata)
    return out


def ids_of(item, format_):
    """Return the ids of an item's images, in order."""
    if format_ == "images":
        return [item.image_id]
    if format_ == "parquet":
        return [f"{item.image_id}#{item.first_row + i}" for i in range(item.num_rows)]
    with tarfile.open(item.uri) as tar:
        return [f"{item.image_id}#{name}" for name in tar.getnames()]


def row(image_id, uri, predictions):
    height, width = predictions.get("size", (None, None))
    common = {"image_id": image_id, "uri": uri, "width": width, "height": height}
    return {
        **common,
        "status": "ok",
        **{key: predictions[key] for key in predictions if key != "size"},
    }


def exported(format_, result, sink, **options):
    report = export(format_, str(result), str(sink), ExportOptions(**options), Listener())
    return report.as_json()


def tree(folder):
    paths = sorted(path for path in Path(folder).rglob("*") if not path.is_dir())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def corners(predictions):
    """Return the boxes as they are stored in Parquet: (M, 4) float32."""
    sides = ("x_min", "y_min", "x_max", "y_max")
    return np.array(
        [[b[side] for side in sides] for b in predictions["boxes"]], np.float32
    ).reshape(-1, 4)
