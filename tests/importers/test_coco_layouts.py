"""COCO files of several tools: where their files are, how they name images, and their groups."""

import json

import pytest

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.importers.dataset_files import FileTree, split_in_name
from cvbatch.importers.image_lookup import ImageLookup, path_parts
from cvbatch.importers.options import parse_import_options
from tests.support.datasets import boxes_of, check_sums, coco, imported, kinds, picture, put

BOX = {"image_id": 1, "bbox": [2, 2, 8, 6]}


def document(name="a.png"):
    return coco([{"id": 1, "file_name": name}], [BOX])


LAYOUTS = {
    "CVAT": (
        {"annotations/instances_default.json": document(), "images/a.png": picture()},
        {"images/a.png": None},
    ),
    "CVAT subset": (
        {"annotations/instances_default.json": document(), "images/default/a.png": picture()},
        {"images/default/a.png": None},
    ),
    "COCO": (
        {"annotations/instances_val2017.json": document(), "val2017/a.png": picture()},
        {"val2017/a.png": "validation"},
    ),
    "images beside the folder of annotations": (
        {"annotations/instances_test.json": document(), "pictures/a.png": picture()},
        {"pictures/a.png": "test"},
    ),
    "Roboflow": (
        {
            f"{split}/{name}": data
            for split in ("train", "valid", "test")
            for name, data in (("_annotations.coco.json", document()), ("a.png", picture()))
        },
        {"train/a.png": "train", "valid/a.png": "validation", "test/a.png": "test"},
    ),
    "one folder of Roboflow": (
        {"_annotations.coco.json": document(), "a.png": picture()}, {"a.png": None},
    ),
    "FiftyOne": ({"labels.json": document(), "data/a.png": picture()}, {"data/a.png": None}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised_with_its_splits(tmp_path, layout):
    files, expected = LAYOUTS[layout]
    report, rows = imported("coco", put(tmp_path / "in", files), tmp_path / "out")
    assert sorted(rows) == sorted(expected)
    for name, split in expected.items():
        assert split is None or rows[name]["split"] == split
        assert boxes_of(rows[name]) == [("dog", 2, 2, 10, 8)]
    assert set(kinds(report)) <= {"image_by_name"}
    check_sums(report)
    # The same ids without images, so that an evaluation joins both alike.
    if len(expected) > 1:
        _, rows = imported("coco", tmp_path / "in", tmp_path / "labels", has_images=False)
        assert sorted(rows) == sorted(expected)


def test_the_files_of_another_layout_are_not_read_too(tmp_path):
    files = LAYOUTS["COCO"][0] | {"labels.json": '["dog"]', "test/_annotations.coco.json": "{}"}
    _, rows = imported("coco", put(tmp_path / "in", files), tmp_path / "out")
    assert list(rows) == ["val2017/a.png"]


def test_files_are_named_one_by_one_with_their_split(tmp_path):
    files = {"labels/a.json": document("a.png"), "labels/my_val.json": document("b.png")}
    source = put(
        tmp_path / "in", files | {"pictures/a.png": picture(), "pictures/b.png": picture()}
    )
    arguments = {"annotations": ["test=labels/a.json", "labels/my_val.json"]}
    options = parse_import_options(arguments)
    _, rows = imported(
        "coco", source, tmp_path / "out", annotations=options.annotations,
        images=str(source / "pictures"),
    )  # fmt: skip
    splits = {name: row["split"] for name, row in rows.items()}
    assert splits == {"pictures/a.png": "test", "pictures/b.png": "validation"}
    with pytest.raises(ConfigError, match="'dev' is not a split; use one of train, validation"):
        parse_import_options({"annotations": ["dev=labels/a.json"]})


def test_one_file_uses_the_images_beside_it(tmp_path):
    source = put(tmp_path / "in", {"train.json": document("x/a.png"), "x/a.png": picture()})
    _, rows = imported("coco", source / "train.json", tmp_path / "out")
    assert {name: row["split"] for name, row in rows.items()} == {"x/a.png": "train"}


@pytest.mark.parametrize(
    "name",
    [
        "sub/a.png", "sub\\a.png", "./sub/a.png", "C:\\Users\\me\\data\\sub\\a.png",
        "/home/me/images/sub/a.png", "../images/sub/a.png", "file:///data/sub/a.png", "a.png",
        "s3://bucket/data/sub/a.png",
    ],
)  # fmt: skip
def test_an_image_is_found_by_the_end_of_its_path(tmp_path, name):
    files = {"images/sub/a.png": picture(seed=1), "images/sub/b.png": picture(seed=2)}
    files["annotations/instances_train.json"] = document(name)
    report, rows = imported("coco", put(tmp_path / "in", files), tmp_path / "out")
    assert list(rows) == ["images/sub/a.png"]
    assert rows["images/sub/a.png"]["image"]["bytes"] == picture(seed=1)
    is_exact = path_parts(name) == ["sub", "a.png"]
    assert kinds(report) == ({} if is_exact else {"image_by_name": 1})
    if not is_exact:
        with pytest.raises(SourceError, match="no usable labelled image"):
            imported("coco", tmp_path / "in", tmp_path / "drop", {"by-name": "drop"})
        with pytest.raises(SourceError, match="use --by-name keep"):
            imported("coco", tmp_path / "in", tmp_path / "refuse", {"by-name": "refuse"})


def test_an_ambiguous_name_is_counted_and_never_guessed(tmp_path):
    files = {f"images/{folder}/a.png": picture(seed=i) for i, folder in enumerate("xyz")}
    entries = [
        {"id": 1, "file_name": "a.png"},
        {"id": 2, "file_name": "old/y/a.png"},
        {"id": 3, "file_name": "gone.png"},
    ]
    text = coco(entries, [{**BOX, "image_id": i} for i in (1, 1, 2, 3)])
    files["annotations/instances_default.json"] = text
    report, rows = imported("coco", put(tmp_path / "in", files), tmp_path / "out")
    assert list(rows) == ["images/y/a.png"]
    assert kinds(report) == {"image_ambiguous": 1, "image_by_name": 1, "image_missing": 1}
    check_sums(report)
    with pytest.raises(SourceError, match="whose name several images have"):
        imported("coco", tmp_path / "in", tmp_path / "refused", {"missing": "refuse"})


def test_the_lookup_equals_a_search_through_all_names():
    names = ["a.png", "x/a.png", "x/y/a.png", "z/y/a.png", "z/b.png", "b/c.png"]
    lookup = ImageLookup(FileTree("/base/", {name: name for name in names}))
    queries = [
        *names,
        "a.png",
        "q/y/a.png",
        "x/y/a.png",
        "q/b.png",
        "b.png",
        "none.png",
        "w/x/a.png",
    ]
    for query in queries:
        parts = query.split("/")
        longest = {}
        for name in names:
            own = name.split("/")
            n = 0
            while n < min(len(own), len(parts)) and own[-1 - n] == parts[-1 - n]:
                n += 1
            if n:
                longest.setdefault(n, []).append(name)
        best = longest[max(longest)] if longest else []
        expected = query if query in names else best[0] if len(best) == 1 else None
        assert lookup.find(query).file == expected, query


def test_a_path_with_the_folder_of_the_images_is_exact(tmp_path):
    folder = tmp_path / "in"
    text = document(f"{folder}/images/sub/a.png")
    files = {"annotations/instances_train.json": text, "images/sub/a.png": picture()}
    report, rows = imported("coco", put(folder, files), tmp_path / "out")
    assert list(rows) == ["images/sub/a.png"]
    assert kinds(report) == {}


def test_labels_alone_need_no_images_and_are_refused_for_training(tmp_path):
    from cvbatch.datasets.reader import LabelSpec, scan_dataset
    from cvbatch.storage.store import Storage

    entries = [{"id": 1, "file_name": "x\\a.png"}, {"id": 2, "file_name": "b.png", "width": 0}]
    annotations = [
        {**BOX, "bbox": [15, 2, 80, 6]}, {**BOX, "image_id": 2, "bbox": [15, 2, 80, 6]},
    ]  # fmt: skip
    source = put(tmp_path, {"instances_val.json": coco(entries, annotations)})
    report, rows = imported(
        "coco", source / "instances_val.json", tmp_path / "out", has_images=False
    )
    assert sorted(rows) == ["b.png", "x/a.png"]
    assert boxes_of(rows["x/a.png"]) == [("dog", 15, 2, 20, 8)]  # clipped to the declared size
    assert boxes_of(rows["b.png"]) == [("dog", 15, 2, 95, 8)]  # its size is not known
    assert [(rows[n]["width"], rows[n]["image"]) for n in sorted(rows)] == [
        (None, None),
        (20, None),
    ]
    assert {row["split"] for row in rows.values()} == {"validation"}
    check_sums(report)
    with pytest.raises(SourceError, match="labels without images"):
        scan_dataset(Storage(), [str(tmp_path / "out")], LabelSpec("boxes"))
    with pytest.raises(ConfigError, match="exclude each other"):
        parse_import_options({"images": "x", "has_images": False})


@pytest.mark.parametrize("size", [(10**9, 10**9), (1, 1e308), (2**63, 1)])
def test_a_declared_size_of_no_image_is_ignored(tmp_path, size):
    entry = {"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}
    put(tmp_path, {"a.json": coco([entry], [BOX])})
    options = {"has_images": False, "has_masks": True}
    report, rows = imported("coco", tmp_path / "a.json", tmp_path / "out", **options)
    assert (rows["a.png"]["width"], rows["a.png"]["mask"]) == (None, None)
    assert boxes_of(rows["a.png"]) == [("dog", 2, 2, 10, 8)]
    assert report.issues["size_invalid"].count == 1


def test_the_group_of_roboflow_is_no_class(tmp_path):
    content = json.loads(document())
    content["categories"] = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 3, "name": "dog", "supercategory": "animals"},
        {"id": 4, "name": "cat", "supercategory": "animals"},
    ]
    files = {"train/_annotations.coco.json": json.dumps(content), "train/a.png": picture()}
    report, _ = imported("coco", put(tmp_path / "in", files), tmp_path / "out")
    assert list(report.classes["boxes"]) == ["dog", "cat"]
    assert kinds(report) == {"category_group": 1}
    content["annotations"][0]["category_id"] = 0  # it is a class when an object has it
    put(tmp_path / "in", {"train/_annotations.coco.json": json.dumps(content)})
    report, _ = imported("coco", tmp_path / "in", tmp_path / "used")
    assert list(report.classes["boxes"]) == ["animals", "dog", "cat"]
    # A project that is called like its only class.
    content["categories"] = [
        {"id": 0, "name": "dog", "supercategory": "none"},
        {"id": 3, "name": "dog", "supercategory": "dog"},
    ]
    content["annotations"][0]["category_id"] = 3
    put(tmp_path / "in", {"train/_annotations.coco.json": json.dumps(content)})
    report, _ = imported("coco", tmp_path / "in", tmp_path / "same")
    assert report.classes["boxes"] == {"dog": 1}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train2017", "train"), ("val", "validation"), ("valid", "validation"),
        ("test-dev", "test"), ("my_val_v2", "validation"),
        ("valminusminival2014", "validation"), ("default", None),
        ("Training", "train"), ("trainval35k", "train"), ("contest", None), ("", None),
        ("intervals", None), ("data.test", "test"),
    ],
)  # fmt: skip
def test_splits_in_names(name, split):
    assert split_in_name(name) == split
