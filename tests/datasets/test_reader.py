"""Scanning labelled Parquet, decoding training examples, and the order of an epoch."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from cvbatch.core.errors import SourceError, TrainingError
from cvbatch.core.types import VOID_CLASS, Failure, InputKey
from cvbatch.datasets.examples import decode_example, in_order, read_rows, shuffled
from cvbatch.datasets.reader import (
    LabelSpec,
    RowGroup,
    Split,
    list_parquet_files,
    relative_box_sizes,
    scan_dataset,
)
from cvbatch.geometry.resize import boxes_to_input, boxes_to_original, make_placement, mask_to_input
from cvbatch.images.decode import Limits
from cvbatch.storage.store import Storage
from tests.support import datasets

LABELS, SINGLE, BOXES, MASKS = (
    LabelSpec("labels"), LabelSpec("labels", True), LabelSpec("boxes"), LabelSpec("mask"),
)  # fmt: skip
SPLITS = {"train": ["a", "b", "d"], "val": ["c"]}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Four images of 12 x 20; b has two boxes, d has none."""
    folder = tmp_path_factory.mktemp("voc")
    boxes = {
        "a": [("cat", 2, 3, 11, 8)],
        "b": [("cat", 1, 1, 5, 5), ("dog", 6, 2, 20, 12)],
        "c": [("dog", 1, 1, 20, 12)],
        "d": [],
    }
    datasets.imported("voc", datasets.voc(folder / "in", boxes, **SPLITS), folder / "out")
    return str(folder / "out")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    files = {f"{'cat' if i % 2 else 'dog'}/{i}.png": datasets.picture(seed=i) for i in range(9)}
    datasets.imported(
        "folders", datasets.put(folder / "in", files), folder / "out", split=(1.0, 0.0, 0.0)
    )
    return str(folder / "out")


def positions(split, order):
    return [(split.groups[g].uri, split.groups[g].number, r) for p in order for g, r in p.tolist()]


def test_an_empty_folder_and_an_empty_split(tmp_path):
    with pytest.raises(SourceError, match="contains no labelled Parquet; import the data"):
        scan_dataset(Storage(), [str(tmp_path)], LABELS)
    split = Split("train", (), 0)
    assert len(split) == 0
    assert list(shuffled(split, 0, 0, 10)) == list(in_order(split)) == []


def test_splits_classes_and_counts(voc):
    dataset = scan_dataset(Storage(), [voc], BOXES)
    assert dataset.classes == ("cat", "dog")
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 3,
        "validation": 1,
    }
    again = scan_dataset(Storage(), [f"{voc}/"], BOXES)
    assert (again.identity, again.splits) == (dataset.identity, dataset.splits)


def test_images_without_exactly_one_label_are_counted_and_skipped(voc):
    train = scan_dataset(Storage(), [voc], LabelSpec("boxes", True)).splits["train"]
    assert (len(train), train.num_unlabelled) == (1, 2)
    (order,) = in_order(train)
    rows = read_rows(Storage(), train.groups[order[0, 0]], order[:, 1].tolist(), "boxes")
    assert [row.image_id for row in rows] == ["JPEGImages/a.png"]


def with_import_state(tmp_path, text):
    (tmp_path / "_cvbatch").mkdir()
    (tmp_path / "_cvbatch/import.json").write_text(text)
    return [str(tmp_path)]


REFUSALS = {
    "no masks": (lambda voc, other, tmp: ([voc], MASKS), "has no column 'mask', which this task"),
    "classes differ": (lambda voc, other, tmp: ([voc, other], LABELS), "classes differ: .* has "),
    "a missing file": (lambda voc, other, tmp: ([f"{voc}/x.parquet"], LABELS), "does not exist"),
    "not finished": (
        lambda voc, other, tmp: (with_import_state(tmp, '{"is_complete": false}'), LABELS),
        "its import was not finished; run the cvbatch import again",
    ),
    "half a summary": (
        lambda voc, other, tmp: (with_import_state(tmp, "{"), LABELS),
        "not finished",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_has_a_reason(arguments, message, voc, folders, tmp_path):
    uris, spec = arguments(voc, folders.replace("out", "other"), tmp_path)
    if "other" in uris[-1]:
        uris[-1] = str(tmp_path / "o")
        files = {f"bird/{i}.png": datasets.picture(seed=i) for i in range(3)}
        datasets.imported("folders", datasets.put(tmp_path / "in", files), tmp_path / "o")
    with pytest.raises(SourceError, match=message):
        scan_dataset(Storage(), uris, spec)


def test_other_parquet_is_refused(tmp_path):
    import pyarrow as pa

    pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="is not labelled Parquet of cvbatch"):
        scan_dataset(Storage(), [str(tmp_path)], LABELS)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut short")
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(SourceError, match="cannot be read as labelled Parquet"):
        scan_dataset(Storage(), [str(tmp_path)], LABELS)
    (tmp_path / "_cvbatch").mkdir()
    (tmp_path / "_cvbatch/job.json").write_text(json.dumps({}))
    with pytest.raises(SourceError, match="result of a prediction"):
        scan_dataset(Storage(), [str(tmp_path)], LABELS)


def test_an_epoch_has_every_image_once_in_its_own_order(folders):
    train = scan_dataset(Storage(), [folders], SINGLE).splits["train"]
    ordered = positions(train, in_order(train))
    assert len(set(ordered)) == len(ordered) == 9
    first = positions(train, shuffled(train, 0, 0, 100))
    assert sorted(first) == sorted(ordered) and first != ordered
    assert first == positions(train, shuffled(train, 0, 0, 100))
    for seed, epoch in ((0, 1), (1, 0)):
        other = positions(train, shuffled(train, seed, epoch, 100))
        assert sorted(other) == sorted(ordered) and other != first


def test_a_pool_has_complete_row_groups_and_the_minimum_size():
    groups = tuple(RowGroup(f"{i}", 0, None, 4, 100) for i in range(5))
    pools = list(shuffled(Split("train", groups, 0), 3, 0, 6))
    assert [len(pool) for pool in pools] == [8, 8, 4]
    for pool in pools:
        assert all(sorted(pool[pool[:, 0] == g, 1]) == [0, 1, 2, 3] for g in set(pool[:, 0]))


def test_rows_are_read_in_the_requested_order(voc):
    train = scan_dataset(Storage(), [voc], BOXES).splits["train"]
    (order,) = in_order(train)
    rows = read_rows(Storage(), train.groups[0], order[:, 1].tolist(), "boxes")
    assert read_rows(Storage(), train.groups[0], [2, 0], "boxes") == [rows[2], rows[0]]
    assert {row.image_id[-5] for row in rows} == {"a", "b", "d"}
    (row,) = (row for row in rows if row.image_id.endswith("b.png"))
    assert row.boxes == ((0.0, 0.0, 5.0, 5.0, 0), (5.0, 1.0, 20.0, 12.0, 1))
    with pytest.raises(TrainingError, match="can no longer be read"):
        read_rows(Storage(), train.groups[0]._replace(number=7), [0], "boxes")


def test_box_sizes_are_relative_to_the_image(voc):
    train = scan_dataset(Storage(), [voc], BOXES).splits["train"]
    expected = [[6 / 12, 10 / 20], [5 / 12, 5 / 20], [11 / 12, 15 / 20]]
    sizes = relative_box_sizes(Storage(), train)
    np.testing.assert_allclose(sizes[np.lexsort(sizes.T[::-1])], sorted(expected), rtol=1e-6)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
def test_boxes_map_back_to_the_original(resize):
    placement = make_placement(30, 70, InputKey(24, 32, resize))
    boxes = np.array([[30, 5, 40, 25], [0, 0, 70, 30]], np.float32)
    mapped = boxes_to_input(boxes, placement)
    np.testing.assert_allclose(boxes_to_original(mapped[:1], placement), boxes[:1], atol=1e-4)
    target = placement.target
    image_box = [target.left, target.top, target.left + target.width, target.top + target.height]
    np.testing.assert_allclose(mapped[1], image_box, atol=1e-4)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
def test_a_mask_is_resized_like_its_image(resize):
    """Every pixel of the resized mask has the class of the nearest original pixel, or is void."""
    mask = np.zeros((30, 70), np.uint8)
    mask[:, 30:] = 3
    mask[18:, :] = 7
    placement = make_placement(30, 70, InputKey(24, 32, resize))
    resized = mask_to_input(mask, placement)
    assert resized.shape == (24, 32)
    source, target = placement.source, placement.target
    for y in range(24):
        for x in range(32):
            down = (y - target.top + 0.5) / target.height
            right = (x - target.left + 0.5) / target.width
            if not (0 <= down < 1 and 0 <= right < 1):
                assert resized[y, x] == VOID_CLASS
                continue
            at = source.top + down * source.height, source.left + right * source.width
            near = {
                mask[min(29, int(at[0] + d)), min(69, int(at[1] + d))] for d in (-1e-3, 0, 1e-3)
            }
            assert resized[y, x] in near


def test_an_example_has_the_labels_of_its_row(voc):
    train = scan_dataset(Storage(), [voc], BOXES).splits["train"]
    key = InputKey(24, 40, "stretch")  # twice the image
    rows = read_rows(Storage(), train.groups[0], [0, 1, 2], "boxes")
    rows.sort(key=lambda row: row.image_id)
    one_box, two_boxes, no_box = (decode_example(row, key, Limits()) for row in rows)
    assert one_box.pixels.shape == (24, 40, 3) and one_box.mask is None
    np.testing.assert_allclose(one_box.boxes_xyxy, [[2, 4, 22, 16]])
    assert two_boxes.box_class.tolist() == [0, 1]
    assert no_box.boxes_xyxy.shape == (0, 4) and no_box.image_id == "JPEGImages/d.png"


def test_masks_are_imported_and_read(tmp_path):
    images = {f"images/{i}.png": datasets.picture(seed=i) for i in range(3)}
    mask = np.zeros((12, 20), np.uint8)
    mask[:, 10:] = 1
    source = datasets.put(tmp_path, images | {"masks/0.png": datasets.label_png(mask)})
    datasets.imported(
        "trimaps", source, tmp_path / "out", {"missing": "drop"},
        images=str(tmp_path / "images"), masks=str(tmp_path / "masks"),
        classes=("left", "right"), values=(0, 1), split=(1.0, 0.0, 0.0),
    )  # fmt: skip
    dataset = scan_dataset(Storage(), [str(tmp_path / "out")], MASKS)
    (row,) = read_rows(Storage(), dataset.splits["train"].groups[0], [0], "mask")
    example = decode_example(row, InputKey(6, 10, "stretch"), Limits())
    assert dataset.classes == ("left", "right")
    assert (example.mask == mask[::2, ::2]).all()


def test_a_broken_image_and_a_mask_of_another_size_are_failures(voc):
    train = scan_dataset(Storage(), [voc], BOXES).splits["train"]
    (row,) = read_rows(Storage(), train.groups[0], [0], "boxes")
    key = InputKey(8, 8, "stretch")
    assert decode_example(row._replace(data=b"text"), key, Limits()).kind == "not_an_image"
    for mask in (b"text", datasets.label_png(np.zeros((5, 5), np.uint8))):
        failure = decode_example(row._replace(mask=mask), key, Limits())
        assert isinstance(failure, Failure) and failure.kind == "mask"
    valid = row._replace(mask=datasets.label_png(np.full((12, 20), 2, np.uint8)))
    assert (decode_example(valid, key, Limits()).mask == 2).all()


@pytest.mark.parametrize(
    ("name", "command"),
    [("a.json", "coco"), ("a.csv", "FORMAT"), ("a", "FORMAT")],
)
def test_a_file_of_another_format_is_refused_with_the_command_that_converts_it(
    tmp_path, name, command
):
    (tmp_path / name).write_text("{}")
    with pytest.raises(SourceError, match=f"cvbatch import {command}") as error:
        list_parquet_files(Storage(), str(tmp_path / name))
    assert "is a file" in str(error.value)
