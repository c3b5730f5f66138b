"""Small labelled data sets in every import format."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from cvbatch.core.progress import Listener
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.job import import_labels
from cvbatch.importers.options import ImportOptions

Box = tuple[str, float, float, float, float]  # class name, coordinates as in the format


def picture(height: int = 12, width: int = 20, orientation: int = 1, seed: int = 0) -> bytes:
    """Return a PNG of random pixels, (height, width) as stored, with an EXIF orientation."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return encoded(Image.fromarray(pixels), orientation)


def encoded(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    if orientation != 1:
        exif[274] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


def put(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def voc_xml(
    boxes: Iterable[Box] = (), size: tuple[int, int] | None = (12, 20), difficult: int = 0
) -> str:
    """Return an annotation; size is (height, width), boxes are xmin, ymin, xmax, ymax."""
    sides = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>" if size else ""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in boxes
    )
    return f"<annotation>{sides}{objects}</annotation>"


def voc(folder: Path, images: Mapping[str, Iterable[Box]], **lists: Iterable[str]) -> Path:
    """Write a Pascal VOC data set of 12 x 20 images; lists: name → stems, such as train=["a"]."""
    for i, (stem, boxes) in enumerate(images.items()):
        image, annotation = f"JPEGImages/{stem}.png", f"Annotations/{stem}.xml"
        put(folder, {image: picture(seed=i), annotation: voc_xml(boxes)})
    for name, stems in lists.items():
        put(folder, {f"ImageSets/Main/{name}.txt": "".join(f"{stem}\n" for stem in stems)})
    return folder


def coco(
    images: Iterable[Mapping[str, object]],
    annotations: Iterable[Mapping[str, object]] = (),
    categories: Mapping[int, str] | None = None,
) -> str:
    """Return a COCO annotation file; missing keys of images and annotations get defaults."""
    named = {7: "cat", 3: "dog"} if categories is None else categories
    image_defaults = {"height": 12, "width": 20}
    annotation_defaults = {"bbox": [1, 2, 3, 4], "category_id": 3, "iscrowd": 0, "segmentation": []}
    return json.dumps(
        {
            "images": [{**image_defaults, **image} for image in images],
            "annotations": [{**annotation_defaults, **annotation} for annotation in annotations],
            "categories": [{"id": key, "name": name} for key, name in named.items()],
        }
    )


def label_png(mask: np.ndarray, palette: bool = False) -> bytes:
    """Return class ids as a greyscale or palette PNG."""
    if not palette:
        return cv2.imencode(".png", mask)[1].tobytes()
    image = Image.fromarray(mask)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return encoded(image)


def imported(
    format_: str,
    source: Path | str,
    sink: Path | str,
    chosen: Mapping[str, str] | None = None,
    listener: Listener | None = None,
    **options: object,
) -> tuple[ImportReport, dict[str, dict[str, object]]]:
    """Import a data set; return the report, and image_id → row.

    Images are not decoded unless `check_images` is set: starting the decoders takes a second.
    """
    defaults = {"has_masks": format_ != "coco", "check_images": False}
    import_options = ImportOptions(**defaults | options)
    listener = listener or Listener()
    report = import_labels(format_, str(source), str(sink), import_options, chosen or {}, listener)
    return report, {row["image_id"]: row for row in rows(Path(sink))}


def rows(sink: Path) -> list[dict[str, object]]:
    paths = sorted(sink.glob("part-*.parquet"))
    return [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]


def files(sink: Path) -> dict[str, bytes]:
    """Return the shards: name → bytes."""
    return {path.name: path.read_bytes() for path in sorted(sink.glob("part-*.parquet"))}


def boxes_of(row: Mapping[str, object]) -> list[tuple[object, ...]]:
    """Return (label, x_min, y_min, x_max, y_max) of each box."""
    keys = ("label", "x_min", "y_min", "x_max", "y_max")
    return [tuple(box[key] for key in keys) for box in row["boxes"]]


def kinds(report: ImportReport) -> dict[str, int]:
    return {kind: oddity.count for kind, oddity in report.issues.items()}


def check_sums(report: ImportReport) -> None:
    """Check that everything found was written or is counted as dropped."""
    counts = report.as_json()
    images, objects = counts["images"], counts["objects"]
    assert images["found"] == images["written"] + images["dropped"]
    assert objects["found"] == (
        objects["written"] + objects["dropped"] + objects["of_dropped_images"]
    )
