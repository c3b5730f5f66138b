"""Predictions and labelled data with known values, written as the commands write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.progress import Listener
from cvbatch.images.masks import encode_png
from cvbatch.importers.annotations import AnnotatedDataset
from cvbatch.importers.shard_writer import ShardWriter
from cvbatch.importers.validation import LabelledImage
from cvbatch.planning import manifest
from cvbatch.results import writer as sink
from cvbatch.results.schema import COLUMN_TYPES
from cvbatch.sources.units import UNITS
from cvbatch.storage.store import Storage

Box = tuple[
    float, float, float, float, int, float
]  # xyxy, class id, score (is_crowd in ground truth)
ImageValues = Mapping[
    str, Any
]  # labels: [(class, score)], boxes: [Box], mask: (h, w); failed: True
TASK_OF = {"labels": "classification", "boxes": "detection", "mask": "segmentation"}
FAILURE = pa.struct([(name, pa.string()) for name in ("stage", "kind", "message")])


def write_result(
    folder: Path,
    rows: Mapping[str, ImageValues],
    classes: Mapping[str, Sequence[str]],
    part_images: int = 3,
    version: int = SCHEMA_VERSION,
    left: int = 0,
    is_replanned: bool = False,
    **options: object,
) -> Path:
    """Write the sink of a prediction.

    Args:
        left: number of planned parts, the last ones, that are not written.
        is_replanned: the images of the first part have changed, and it was not processed again.
    """
    ids = list(rows)
    offsets = np.array([*range(0, len(ids), part_images), len(ids)] if ids else [0], np.int64)
    chunk_ids = [f"{c:016x}" for c in range(len(offsets) - 1)]
    units = pa.table(
        {
            "image_id": ids, "uri": [f"/there/{i}" for i in ids], "size_bytes": [1] * len(ids),
            "version": ["v"] * len(ids), "row_group": [-1] * len(ids), "row_start": [0] * len(ids),
            "num_rows": [1] * len(ids), "first_row": [0] * len(ids),
        },
        schema=UNITS,
    )  # fmt: skip
    if ids:
        generation = manifest.Generation(
            units, offsets, chunk_ids, manifest.group_offsets(offsets), {"format": "images"}
        )
        manifest.write(Storage(), generation, manifest.generation_uri(str(folder), 0, chunk_ids))
    if is_replanned:
        first = manifest.Generation(
            units[: offsets[1]], offsets[:2], chunk_ids[:1], offsets[:2], {"format": "images"}
        )
        manifest.write(Storage(), first, manifest.generation_uri(str(folder), 1, ["again"]))
    state = folder / "_cvbatch" / "job.json"
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text(json.dumps({"schema_version": version, "fingerprint": "f" * 64}))
    models = [
        {"name": "m", "task": TASK_OF[column], "classes": list(names), "options": dict(options)}
        for column, names in classes.items()
    ]
    metadata = {"schema_version": version, "fingerprint": "f" * 64, "models": models}
    masks = ["box_masks"] if any("box_masks" in values for values in rows.values()) else []
    schema = pa.schema(
        [("image_id", pa.string()), ("uri", pa.string()), ("width", pa.int32())]
        + [("height", pa.int32()), ("status", pa.string()), ("error", FAILURE)]
        + [(column, COLUMN_TYPES[column]) for column in [*classes, *masks]]
    )
    done = list(zip(chunk_ids, pairwise(offsets.tolist()), strict=True))
    for chunk_id, (start, end) in done[: len(done) - left]:
        part = [_result_row(i, rows[i], classes) for i in ids[start:end]]
        table = pa.Table.from_pylist(part, schema)
        sink.write_part(
            Storage(), str(folder), chunk_id, [table], schema, json.dumps(metadata).encode()
        )
    return folder


def _result_row(
    image_id: str, values: ImageValues, classes: Mapping[str, Sequence[str]]
) -> dict[str, object]:
    row: dict[str, object] = {"image_id": image_id, "uri": f"/there/{image_id}"}
    row |= {"width": 200, "height": 200, "status": "ok", "error": None}
    if values.get("failed"):
        error = {"stage": "decode", "kind": "truncated", "message": "cut"}
        return {**row, "status": "failed", "error": error} | dict.fromkeys(classes)
    if "labels" in classes:
        row["labels"] = [
            {"class_id": k, "label": classes["labels"][k], "score": s} for k, s in values["labels"]
        ]
    if "boxes" in classes:
        sides = ("x_min", "y_min", "x_max", "y_max")
        row["boxes"] = [
            {**dict(zip(sides, box[:4], strict=True)), "class_id": box[4],
             "label": classes["boxes"][box[4]], "score": box[5]}
            for box in values["boxes"]
        ]  # fmt: skip
        row["box_masks"] = values.get("box_masks")
    if "mask" in classes:
        row["mask"] = {"bytes": encode_png(values["mask"]), "path": None}
    return row


def write_truth(
    folder: Path,
    rows: Mapping[str, ImageValues],
    classes: Mapping[str, Sequence[str]],
    multi_label: bool = False,
    shard_images: int = 4,
) -> Path:
    """Write labelled Parquet; the value "split" of a row is optional."""
    columns = [*classes, *(["box_is_crowd"] if "boxes" in classes else [])]
    dataset = AnnotatedDataset(
        tuple(columns),
        {column: tuple(names) for column, names in classes.items()},
        multi_label,
        lambda report: iter(()),
    )
    writer = ShardWriter(Storage(), str(folder), dataset, "made", shard_images)
    for image_id, values in rows.items():
        boxes = np.array(values.get("boxes", []), np.float32).reshape(-1, 6)
        writer.add(
            LabelledImage(
                image_id=image_id,
                data=b"not read",
                width=200,
                height=200,
                split=values.get("split", "test"),
                labels=list(values.get("labels", [])),
                boxes=boxes[:, :4],
                class_id=boxes[:, 4].astype(np.int32),
                score=np.ones(len(boxes), np.float32),
                is_crowd=boxes[:, 5].astype(bool),
                mask=values.get("mask"),
            )
        )
    writer.close()
    return folder


class TextListener(Listener):
    """A listener that stores the lines it receives."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, line: str) -> None:
        self.lines.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)
