"""Benchmark of the HTML report of a million rows: seconds, memory, size.

Run: python -m benchmarks.page --folder DIR [--rows N] [--json FILE]

Writes a result with every column (labels, boxes, masks, heatmaps) in chunks of 512 images, then
runs `cvbatch report` on it as a separate process. The images are 64 files of noise in the size of
photographs, the worst case for the report; the manifest names each many times. A million rows take
about 0.5 GB of DIR and a few minutes to write; an existing result in DIR is reused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from benchmarks.measure import run_module
from cvbatch.config.loader import parse_job
from cvbatch.core.types import ModelSpec
from cvbatch.images.masks import count_pixels, encode_png, largest_first
from cvbatch.planning import manifest
from cvbatch.results import schema, writer
from cvbatch.sources.units import UNITS
from cvbatch.storage.store import Storage

PART_IMAGES, IMAGES, MADE_ROWS = 512, 64, 512
HEIGHT, WIDTH, BOXES, TOP_K, GRID = 375, 500, 8, 5, 7
LABELS = tuple(f"label {k}" for k in range(1000))
CLASSES = tuple(f"class {k}" for k in range(21))
MAX_SECONDS, MAX_MIB, MAX_BYTES = 60.0, 2048.0, 25_000_000
FAILED_EVERY = 200  # one failed row in this many


def write_images(folder: Path) -> list[str]:
    """Write noise as JPEG files; return their paths."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{i:03d}.jpg" for i in range(IMAGES)]
    for path in paths:
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        path.write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    return [str(path) for path in paths]


def predictions(kind: pa.Schema) -> list[dict[str, object]]:
    """Return `MADE_ROWS` rows of predictions."""
    rng = np.random.default_rng(1)
    rows = []
    for n in range(MADE_ROWS):
        row: dict[str, object] = dict.fromkeys(kind.names)
        if n % FAILED_EVERY == 7:
            error = {"stage": "decode", "kind": "truncated", "message": "the JPEG ends early"}
            rows.append({**row, "status": "failed", "error": error})
            continue
        scores = np.sort(rng.dirichlet(np.ones(TOP_K)))[::-1]
        mask = cv2.resize(rng.integers(0, 21, (4, 5)).astype(np.uint8), (WIDTH, HEIGHT), None,
                          0, 0, cv2.INTER_NEAREST)  # fmt: skip
        found, counts = largest_first(count_pixels(mask, len(CLASSES)))
        corner = rng.uniform(0, (WIDTH - 100, HEIGHT - 100), (BOXES, 2))
        row |= {"status": "ok", "width": WIDTH, "height": HEIGHT}
        row["labels"] = [
            {"class_id": k, "label": LABELS[k], "score": score}
            for k, score in zip(rng.choice(1000, TOP_K, False).tolist(), scores, strict=True)
        ]
        row["boxes"] = [
            {"x_min": x, "y_min": y, "x_max": x + 80, "y_max": y + 60, "class_id": k,
             "label": CLASSES[k], "score": rng.uniform(0.25, 1)}
            for (x, y), k in zip(corner.tolist(), rng.integers(0, 21, BOXES).tolist(), strict=True)
        ]  # fmt: skip
        row["mask"] = {"bytes": encode_png(mask), "path": None}
        row["mask_areas"] = [
            {"class_id": k, "label": CLASSES[k], "area": count}
            for k, count in zip(found.tolist(), counts.tolist(), strict=True)
        ]
        heatmap = {"model": "made", "layer": "last", "class_id": 1, "label": LABELS[1]}
        values = rng.random(GRID * GRID).astype(np.float32).tolist()
        size = {"height": GRID, "width": GRID, "values": values}
        row["heatmaps"] = [{**heatmap, "score": 0.5, **size}]
        rows.append(row)
    return rows


def write_result(folder: Path, num_rows: int) -> None:
    """Write a result as written by a job with three networks."""
    files = write_images(folder / "images")
    tasks = ("classification", "segmentation", "detection")
    named = [{"task": task, "model": "m.keras"} for task in tasks]
    named[0]["heatmap"] = {"layer": "auto"}  # type: ignore[assignment]
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": named})
    tables = (LABELS, CLASSES, CLASSES)
    models = [
        schema.ResultModel(
            config, ModelSpec("made", config.task, table, 299, 299, "stretch", "f" * 64)
        )
        for config, table in zip(job.models, tables, strict=True)
    ]
    kind = schema.result_schema(models)
    metadata = schema.result_metadata(models, "made", "made")
    made = pa.Table.from_pylist(predictions(kind), kind)
    offsets = np.array([*range(0, num_rows, PART_IMAGES), num_rows], np.int64)
    chunk_ids = [f"{c:016x}" for c in range(len(offsets) - 1)]
    ids = [f"made/{i:07d}.jpg" for i in range(num_rows)]
    uris = [files[i % IMAGES] for i in range(num_rows)]
    plain = {"uri": uris, "image_id": ids, "version": ["v"] * num_rows, "num_rows": [1] * num_rows}
    units = pa.table([plain.get(name, [0] * num_rows) for name in UNITS.names], schema=UNITS)
    groups = manifest.group_offsets(offsets)
    generation = manifest.Generation(units, offsets, chunk_ids, groups, {"format": "images"})
    out = folder / "result"
    manifest.write(Storage(), generation, manifest.generation_uri(str(out), 0, chunk_ids))
    for chunk_id, start, end in zip(chunk_ids, offsets, offsets[1:], strict=False):
        table = made.slice(0, int(end - start))
        for name, values in (("image_id", ids[start:end]), ("uri", uris[start:end])):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, kind.field(name), pa.array(values, pa.string()))
        writer.write_part(Storage(), str(out), chunk_id, [table], kind, metadata)
    (out / "_cvbatch" / "job.json").write_text('{"schema_version": 1, "fingerprint": "made"}')


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    if not (arguments.folder / "result" / "_cvbatch" / "job.json").exists():
        write_result(arguments.folder, arguments.rows)
    command = ["report", str(arguments.folder / "result"), "--json"]
    outcome = run_module("cvbatch", command, 600)
    figures = {
        "rows": arguments.rows,
        "seconds": round(outcome.seconds, 1),
        "peak_mib": round(outcome.peak_mib),
        "page_bytes": outcome.summary["num_bytes"],
    }
    print(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    is_over = figures["seconds"] > MAX_SECONDS or figures["peak_mib"] > MAX_MIB
    return int(is_over or figures["page_bytes"] > MAX_BYTES)


if __name__ == "__main__":
    raise SystemExit(main())
