"""Masks of boxes that are imported are those of pycocotools, upright and beside their boxes."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from tests.support import jobs
from tests.support.datasets import check_sums, coco, imported, kinds, picture, put
from tests.support.results import SIZE, exported, random_row, write_predictions

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
POLYGONS = [[[2.3, 1.2, 11.7, 2.1, 7.4, 9.8]], [[1, 1, 6, 1, 6, 5, 1, 5], [9, 6, 15, 6, 15, 11]]]
PIXELS = np.zeros((12, 20), np.uint8, order="F")
PIXELS[3:8, 4:19:2] = 1
RLE = coco_masks.encode(PIXELS)
COMPRESSED = {"size": [12, 20], "counts": RLE["counts"].decode()}
_EDGES = np.flatnonzero(np.diff(PIXELS.T.ravel().astype(int))) + 1
RUNS = {"size": [12, 20], "counts": np.diff(_EDGES, prepend=0, append=240).tolist()}


def write_coco(folder, segmentations, orientation=1, **more):
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "bbox": [1, 1, 15, 10],
            "segmentation": shape,
            "iscrowd": 0,
            **more,
        }
        for i, shape in enumerate(segmentations, 1)
    ]
    document = coco([{"id": 1, "file_name": "a.png"}], annotations)
    files = {"annotations/instances_train.json": document}
    return put(folder, {**files, "train/a.png": picture(orientation=orientation)})


def stored_masks(row):
    return [None if rle is None else coco_masks.decode(rle) for rle in row["box_masks"]]


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_outlines_of_boxes_are_the_masks_of_pycocotools_upright(tmp_path, orientation):
    source = write_coco(tmp_path / "in", [*POLYGONS, COMPRESSED], orientation)
    report, rows = imported("coco", source, tmp_path / "out", has_box_masks=True)
    check_sums(report)
    oracle = COCO(str(source / "annotations" / "instances_train.json"))
    (row,) = rows.values()
    assert len(row["boxes"]) == len(row["box_masks"]) == 3
    exif = Image.Exif()
    exif[274] = orientation
    for annotation, mask in zip(oracle.anns.values(), stored_masks(row), strict=True):
        file = io.BytesIO()
        Image.fromarray(oracle.annToMask(annotation) * 255).save(file, "PNG", exif=exif)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
        np.testing.assert_array_equal(mask, upright > 0)


def test_boxes_without_an_outline_have_no_mask_and_are_counted(tmp_path):
    wrong_size = {**COMPRESSED, "size": [20, 12]}
    source = write_coco(tmp_path / "in", [POLYGONS[0], [], wrong_size, RUNS])
    report, rows = imported("coco", source, tmp_path / "out", has_box_masks=True)
    (row,) = rows.values()
    assert [mask is None for mask in row["box_masks"]] == [False, True, True, False]
    np.testing.assert_array_equal(stored_masks(row)[3], PIXELS)
    assert kinds(report) == {"outline_missing": 1, "outline_invalid": 1}


def test_dropped_boxes_take_their_masks_with_them(tmp_path):
    source = write_coco(tmp_path / "in", [POLYGONS[0], COMPRESSED])
    path = source / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"bbox": [1, 1, 15, 10]', '"bbox": [50, 1, 9, 9]', 1))
    _, rows = imported("coco", source, tmp_path / "out", has_box_masks=True)
    (row,) = rows.values()
    assert len(row["boxes"]) == 1
    np.testing.assert_array_equal(stored_masks(row)[0], PIXELS)


def test_masks_of_boxes_are_a_column_only_where_they_are_imported(tmp_path):
    source = write_coco(tmp_path / "in", POLYGONS)
    imported("coco", source, tmp_path / "out")
    (part,) = (tmp_path / "out").glob("*.parquet")
    assert "box_masks" not in pq.read_schema(part).names


@pytest.mark.process
def test_an_export_of_labels_gives_the_same_masks_back(tmp_path):
    source = write_coco(tmp_path / "in", [*POLYGONS, COMPRESSED], iscrowd=1, area=5)
    _, rows = imported("coco", source, tmp_path / "labels", has_box_masks=True)
    exported("coco", tmp_path / "labels", tmp_path / "out")
    document = COCO(str(tmp_path / "out" / "annotations" / "instances_train.json"))
    assert [(a["iscrowd"], a["area"]) for a in document.anns.values()] == [(1, 5)] * 3
    _, back = imported("coco", tmp_path / "out", tmp_path / "back", has_box_masks=True)
    (row,), (again,) = rows.values(), back.values()
    assert again["box_masks"] == row["box_masks"]


def test_pseudo_labels_have_the_masks_of_their_boxes(tmp_path):
    prediction = random_row(5)
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    write_predictions(
        tmp_path / "result", tmp_path / "images", {"a.png": prediction}, detection={"masks": "box"}
    )
    _, rows = imported("predictions", tmp_path / "result", tmp_path / "out", min_score=0.5)
    (row,) = rows.values()
    pairs = zip(prediction["boxes"], prediction["box_masks"], strict=True)
    expected = [rle for box, rle in pairs if box["score"] >= 0.5]
    assert 0 < len(expected) < 5
    assert row["box_masks"] == expected
