"""Data sets that FiftyOne's own exporters wrote, the path from other labelling tools."""

import numpy as np
import pytest
from PIL import Image

from tests.support.datasets import boxes_of, check_sums, imported, kinds

pytestmark = pytest.mark.process

SIZE = (60, 40)  # width, height
BOXES = [("cat", (6, 8, 24, 24)), ("dog", (30, 20, 45, 30))]


def write(folder, exporter):
    """Write three images with 1, 2 and 2 boxes; the exporters need no database."""
    fo = pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    metadata = fo.ImageMetadata(width=SIZE[0], height=SIZE[1], num_channels=3)
    width, height = SIZE
    with exporter:
        for i in range(3):
            path = folder / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((height, width, 3), 40 * i, np.uint8)).save(path)
            detections = [
                fo.Detection(
                    label=label,
                    bounding_box=[
                        box[0] / width,
                        box[1] / height,
                        (box[2] - box[0]) / width,
                        (box[3] - box[1]) / height,
                    ],
                    mask=np.ones((box[3] - box[1], box[2] - box[0]), bool),
                )
                for label, box in BOXES[: i + 1]
            ]
            exporter.export_sample(str(path), fo.Detections(detections=detections), metadata)


def make_exporter(format_, folder):
    pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    import fiftyone.utils.coco as coco
    import fiftyone.utils.voc as voc
    import fiftyone.utils.yolo as yolo

    classes = {"coco": coco.COCODetectionDatasetExporter, "voc": voc.VOCDetectionDatasetExporter}
    classes["yolo"] = yolo.YOLOv5DatasetExporter
    options = {} if format_ == "voc" else {"classes": ["cat", "dog"]}
    return classes[format_](export_dir=str(folder), export_media=True, **options)


@pytest.mark.parametrize("format_", ["coco", "voc", "yolo"])
def test_what_fiftyone_exports_is_imported(tmp_path, format_):
    write(tmp_path / "images", make_exporter(format_, tmp_path / "in"))
    report, rows = imported(format_, tmp_path / "in", tmp_path / "out", has_masks=False)
    assert len(rows) == 3
    shift = 1 if format_ == "voc" else 0  # it counts from 0, Pascal VOC from 1
    for name, row in rows.items():
        expected = [
            (label, x0 - shift, y0 - shift, x1, y1)
            for label, (x0, y0, x1, y1) in BOXES[: int(name[-5]) + 1]
        ]
        assert [box[0] for box in boxes_of(row)] == [box[0] for box in expected]
        np.testing.assert_allclose(
            [box[1:] for box in boxes_of(row)], [box[1:] for box in expected], atol=1e-4
        )
        if format_ == "coco":
            areas = [(x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1) in BOXES]
            assert row["box_area"] == areas[: len(expected)]
    assert kinds(report) == {}
    check_sums(report)
