"""Import of class folders: labels, split folders, and splits by a stable hash."""

import pytest

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.datasets.splits import choose_split, parse_shares
from tests.support.datasets import check_sums, imported, kinds, picture, put


def images(*names):
    return {name: picture(seed=i) for i, name in enumerate(names)}


def labels(rows):
    return {name: (row["labels"][0]["label"], row["split"]) for name, row in rows.items()}


@pytest.mark.parametrize("names", [(), ("loose.png",), ("notes/readme.txt",)])
def test_a_source_without_labels_is_refused(tmp_path, names):
    source = put(tmp_path / "in", images(*names))
    source.mkdir(exist_ok=True)
    with pytest.raises(SourceError, match="contains no usable labelled image"):
        imported("folders", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_subfolders_belong_to_the_class_folder(tmp_path):
    source = put(tmp_path / "in", images("dog/a.png", "dog/old/b.png", "cat/a.png", "loose.png"))
    put(source, {"dog/notes.txt": "", "cat/c.png": b"broken"})
    report, rows = imported("folders", source, tmp_path / "out", split=(1.0, 0.0, 0.0))
    assert labels(rows) == {
        "cat/a.png": ("cat", "train"),
        "dog/a.png": ("dog", "train"),
        "dog/old/b.png": ("dog", "train"),
    }
    assert set(rows["cat/a.png"]) == {"image_id", "image", "width", "height", "split", "labels"}
    assert rows["dog/a.png"]["labels"] == [{"class_id": 1, "label": "dog", "score": 1.0}]
    assert kinds(report) == {"annotation_missing": 1, "image_unreadable": 1}
    assert report.num_ignored == 1
    check_sums(report)


def test_folders_named_like_splits_are_splits(tmp_path):
    source = put(tmp_path / "in", images("train/cat/a.png", "val/dog/a.png", "test/cat/b.png"))
    _, rows = imported("folders", source, tmp_path / "out")
    assert labels(rows) == {
        "train/cat/a.png": ("cat", "train"),
        "val/dog/a.png": ("dog", "validation"),
        "test/cat/b.png": ("cat", "test"),
    }
    _, rows = imported("folders", source, tmp_path / "all", split=(1.0, 0.0, 0.0))
    assert {split for _, split in labels(rows).values()} == {"train"}


def test_split_names_without_subfolders_are_classes(tmp_path):
    source = put(tmp_path / "in", images("train/a.png", "test/b.png"))
    report, _ = imported("folders", source, tmp_path / "out")
    assert report.classes["labels"] == {"test": 1, "train": 1}


def test_split_folders_mixed_with_others_are_refused(tmp_path):
    source = put(tmp_path / "in", images("train/cat/a.png", "extra/b.png"))
    with pytest.raises(SourceError, match=r"mixes splits, such as 'train', .* 'extra'"):
        imported("folders", source, tmp_path / "out")


def test_set_classes_keep_their_order_and_others_are_refused_or_dropped(tmp_path):
    source = put(tmp_path / "in", images("dog/a.png", "cat/a.png", "bird/a.png"))
    with pytest.raises(SourceError, match=r"in a folder that is not in --classes \(1\)"):
        imported("folders", source, tmp_path / "out", classes=("dog", "cat"))
    report, rows = imported(
        "folders", source, tmp_path / "out", {"unknown": "drop"}, classes=("dog", "cat", "emu")
    )
    assert {name: row["labels"][0]["class_id"] for name, row in rows.items()} == {
        "dog/a.png": 0,
        "cat/a.png": 1,
    }
    assert report.classes["labels"] == {"dog": 1, "cat": 1, "emu": 0}
    check_sums(report)


SHARES = (0.8, 0.1, 0.1)


def test_hashed_shares_are_close_to_the_requested_ones():
    splits = [choose_split(f"{i}.jpg", None, SHARES, 0) for i in range(10_000)]
    for split, share in zip(("train", "validation", "test"), SHARES, strict=True):
        deviation = (share * (1 - share) / 10_000) ** 0.5
        assert abs(splits.count(split) / 10_000 - share) < 5 * deviation
    other_seed = [choose_split(f"{i}.jpg", None, SHARES, 1) for i in range(10_000)]
    assert other_seed != splits


def test_a_share_of_zero_gets_no_image():
    for shares in ((1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5)):
        splits = {choose_split(f"{i}.jpg", None, shares, 0) for i in range(500)}
        names = ("train", "validation", "test")
        assert splits == {name for name, share in zip(names, shares, strict=True) if share}


def test_new_images_do_not_change_existing_splits(tmp_path):
    names = [f"cat/{i}.png" for i in range(12)]
    source = put(tmp_path / "in", images(*names[:6]))
    _, before = imported("folders", source, tmp_path / "before")
    put(source, images(*names))
    _, after = imported("folders", source, tmp_path / "after")
    assert len(after) == 12
    assert {name: after[name]["split"] for name in before} == {
        name: row["split"] for name, row in before.items()
    }


@pytest.mark.parametrize(
    "text", ["", "1", "0.8,0.2", "0.8,0.1,0.2", "0,0.5,0.5", "1.2,-0.1,-0.1", "a,b,c", "nan,0,1"]
)
def test_invalid_shares_are_refused(text):
    with pytest.raises(ConfigError, match=r"three shares"):
        parse_shares(text)


def test_shares_are_parsed():
    assert parse_shares("0.7,0.2,0.1") == (0.7, 0.2, 0.1)
    assert parse_shares("1, 0, 0") == (1, 0, 0)
