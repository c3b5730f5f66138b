"""Labelled data are found without reading an image, and dealt out once each in an epoch."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from cvbatch.core.errors import SourceError, TrainingError
from cvbatch.core.types import VOID_CLASS, Failure, InputKey
from cvbatch.datasets.examples import example_of, in_order, read_rows, shuffled
from cvbatch.datasets.reader import RowGroup, Split, Wanted, box_shapes, find_labelled
from cvbatch.geometry.resize import boxes_to_input, boxes_to_original, make_placement, mask_to_input
from cvbatch.images.decode import Limits
from cvbatch.storage.store import Storage
from tests.support import datasets

LABELS, SINGLE, BOXES, MASKS = (
    Wanted("labels"), Wanted("labels", True), Wanted("boxes"), Wanted("mask"),
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


def places(split, order):
    return [(split.groups[g].uri, split.groups[g].number, r) for p in order for g, r in p.tolist()]


def test_of_nothing_nothing_is_found(tmp_path):
    with pytest.raises(SourceError, match="holds no labelled Parquet; import the data"):
        find_labelled(Storage(), [str(tmp_path)], LABELS)
    split = Split("train", (), 0)
    assert len(split) == 0
    assert list(shuffled(split, 0, 0, 10)) == list(in_order(split)) == []


def test_splits_classes_and_counts(voc):
    found = find_labelled(Storage(), [voc], BOXES)
    assert found.classes == ("cat", "dog")
    assert {name: len(split) for name, split in found.splits.items()} == {
        "train": 3,
        "validation": 1,
    }
    again = find_labelled(Storage(), [f"{voc}/"], BOXES)
    assert (again.identity, again.splits) == (found.identity, found.splits)


def test_images_without_the_one_label_are_left_out_and_counted(voc):
    train = find_labelled(Storage(), [voc], Wanted("boxes", True)).splits["train"]
    assert (len(train), train.num_unlabelled) == (1, 2)
    (order,) = in_order(train)
    rows = read_rows(Storage(), train.groups[order[0, 0]], order[:, 1].tolist(), "boxes")
    assert [row.image_id for row in rows] == ["JPEGImages/a.png"]


def damaged(folder, tmp_path, said):
    (tmp_path / "_cvbatch").mkdir()
    (tmp_path / "_cvbatch/import.json").write_text(said)
    return [str(tmp_path)]


REFUSALS = {
    "no masks": (lambda voc, other, tmp: ([voc], MASKS), "has no column 'mask', which this task"),
    "classes differ": (lambda voc, other, tmp: ([voc, other], LABELS), "classes differ: .* has "),
    "a missing file": (lambda voc, other, tmp: ([f"{voc}/x.parquet"], LABELS), "does not exist"),
    "not finished": (
        lambda voc, other, tmp: (damaged(voc, tmp, '{"is_complete": false}'), LABELS),
        "its import was not finished; run the cvbatch import again",
    ),
    "half a summary": (lambda voc, other, tmp: (damaged(voc, tmp, "{"), LABELS), "not finished"),
}


@pytest.mark.parametrize(("given", "told"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_why(given, told, voc, folders, tmp_path):
    uris, wanted = given(voc, folders.replace("out", "other"), tmp_path)
    if "other" in uris[-1]:
        uris[-1] = str(tmp_path / "o")
        files = {f"bird/{i}.png": datasets.picture(seed=i) for i in range(3)}
        datasets.imported("folders", datasets.put(tmp_path / "in", files), tmp_path / "o")
    with pytest.raises(SourceError, match=told):
        find_labelled(Storage(), uris, wanted)


def test_what_cvbatch_did_not_write_is_refused(tmp_path):
    import pyarrow as pa

    pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="is not labelled data as cvbatch writes it"):
        find_labelled(Storage(), [str(tmp_path)], LABELS)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut short")
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(SourceError, match="cannot be read as labelled Parquet"):
        find_labelled(Storage(), [str(tmp_path)], LABELS)
    (tmp_path / "_cvbatch").mkdir()
    (tmp_path / "_cvbatch/job.json").write_text(json.dumps({}))
    with pytest.raises(SourceError, match="result of a prediction"):
        find_labelled(Storage(), [str(tmp_path)], LABELS)


def test_every_image_comes_once_in_an_epoch_in_an_order_of_its_own(folders):
    train = find_labelled(Storage(), [folders], SINGLE).splits["train"]
    whole = places(train, in_order(train))
    assert len(set(whole)) == len(whole) == 9
    first = places(train, shuffled(train, 0, 0, 100))
    assert sorted(first) == sorted(whole) and first != whole
    assert first == places(train, shuffled(train, 0, 0, 100))
    for seed, epoch in ((0, 1), (1, 0)):
        other = places(train, shuffled(train, seed, epoch, 100))
        assert sorted(other) == sorted(whole) and other != first


def test_a_pool_is_of_whole_row_groups_and_as_small_as_it_may_be():
    groups = tuple(RowGroup(f"{i}", 0, None, 4, 100) for i in range(5))
    pools = list(shuffled(Split("train", groups, 0), 3, 0, 6))
    assert [len(pool) for pool in pools] == [8, 8, 4]
    for pool in pools:
        assert all(sorted(pool[pool[:, 0] == g, 1]) == [0, 1, 2, 3] for g in set(pool[:, 0]))


def test_rows_come_as_asked_for(voc):
    train = find_labelled(Storage(), [voc], BOXES).splits["train"]
    (order,) = in_order(train)
    whole = read_rows(Storage(), train.groups[0], order[:, 1].tolist(), "boxes")
    assert read_rows(Storage(), train.groups[0], [2, 0], "boxes") == [whole[2], whole[0]]
    assert {row.image_id[-5] for row in whole} == {"a", "b", "d"}
    (row,) = (row for row in whole if row.image_id.endswith("b.png"))
    assert row.boxes == ((0.0, 0.0, 5.0, 5.0, 0), (5.0, 1.0, 20.0, 12.0, 1))
    with pytest.raises(TrainingError, match="cannot be read any more"):
        read_rows(Storage(), train.groups[0]._replace(number=7), [0], "boxes")


def test_shapes_are_parts_of_the_image(voc):
    train = find_labelled(Storage(), [voc], BOXES).splits["train"]
    expected = [[6 / 12, 10 / 20], [5 / 12, 5 / 20], [11 / 12, 15 / 20]]
    found = box_shapes(Storage(), train)
    np.testing.assert_allclose(found[np.lexsort(found.T[::-1])], sorted(expected), rtol=1e-6)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
def test_boxes_find_back(resize):
    placement = make_placement(30, 70, InputKey(24, 32, resize))
    boxes = np.array([[30, 5, 40, 25], [0, 0, 70, 30]], np.float32)
    laid = boxes_to_input(boxes, placement)
    np.testing.assert_allclose(boxes_to_original(laid[:1], placement), boxes[:1], atol=1e-4)
    target = placement.target
    whole = [target.left, target.top, target.left + target.width, target.top + target.height]
    np.testing.assert_allclose(laid[1], whole, atol=1e-4)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
def test_a_mask_is_laid_as_its_image(resize):
    """An image whose red says its class: every pixel of the mask agrees with the one laid."""
    mask = np.zeros((30, 70), np.uint8)
    mask[:, 30:] = 3
    mask[18:, :] = 7
    placement = make_placement(30, 70, InputKey(24, 32, resize))
    laid = mask_to_input(mask, placement)
    assert laid.shape == (24, 32)
    source, target = placement.source, placement.target
    for y in range(24):
        for x in range(32):
            down = (y - target.top + 0.5) / target.height
            right = (x - target.left + 0.5) / target.width
            if not (0 <= down < 1 and 0 <= right < 1):
                assert laid[y, x] == VOID_CLASS
                continue
            at = source.top + down * source.height, source.left + right * source.width
            near = {
                mask[min(29, int(at[0] + d)), min(69, int(at[1] + d))] for d in (-1e-3, 0, 1e-3)
            }
            assert laid[y, x] in near


def test_an_example_is_what_the_row_says(voc):
    train = find_labelled(Storage(), [voc], BOXES).splits["train"]
    key = InputKey(24, 40, "stretch")  # twice the image
    rows = read_rows(Storage(), train.groups[0], [0, 1, 2], "boxes")
    rows.sort(key=lambda row: row.image_id)
    one, two, none = (example_of(row, key, Limits()) for row in rows)
    assert one.pixels.shape == (24, 40, 3) and one.mask is None
    np.testing.assert_allclose(one.boxes_xyxy, [[2, 4, 22, 16]])
    assert two.box_class.tolist() == [0, 1]
    assert none.boxes_xyxy.shape == (0, 4) and none.image_id == "JPEGImages/d.png"


def test_masks_are_found_without_being_read(tmp_path):
    images = {f"images/{i}.png": datasets.picture(seed=i) for i in range(3)}
    mask = np.zeros((12, 20), np.uint8)
    mask[:, 10:] = 1
    source = datasets.put(tmp_path, images | {"masks/0.png": datasets.label_png(mask)})
    datasets.imported(
        "trimaps", source, tmp_path / "out", {"missing": "drop"},
        images=str(tmp_path / "images"), masks=str(tmp_path / "masks"),
        classes=("left", "right"), values=(0, 1), split=(1.0, 0.0, 0.0),
    )  # fmt: skip
    found = find_labelled(Storage(), [str(tmp_path / "out")], MASKS)
    (row,) = read_rows(Storage(), found.splits["train"].groups[0], [0], "mask")
    example = example_of(row, InputKey(6, 10, "stretch"), Limits())
    assert found.classes == ("left", "right")
    assert (example.mask == mask[::2, ::2]).all()


def test_a_broken_image_and_a_mask_of_another_size_are_failures(voc):
    train = find_labelled(Storage(), [voc], BOXES).splits["train"]
    (row,) = read_rows(Storage(), train.groups[0], [0], "boxes")
    key = InputKey(8, 8, "stretch")
    assert example_of(row._replace(data=b"text"), key, Limits()).kind == "not_an_image"
    for mask in (b"text", datasets.label_png(np.zeros((5, 5), np.uint8))):
        failure = example_of(row._replace(mask=mask), key, Limits())
        assert isinstance(failure, Failure) and failure.kind == "mask"
    fine = row._replace(mask=datasets.label_png(np.full((12, 20), 2, np.uint8)))
    assert (example_of(fine, key, Limits()).mask == 2).all()
