"""`cvbatch import`: report, exit status and last line."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.support import jobs
from tests.support.datasets import coco, files, picture, put, voc, voc_xml

pytestmark = pytest.mark.process

BOXES = {"a": [("cat", 1, 1, 5, 5), ("cat", 15, 2, 25, 6)], "b": [("dog", 2, 2, 9, 9)], "c": []}


def last_line(stderr):
    return stderr.strip().splitlines()[-1]


def test_the_report_is_text_or_json_and_is_stored_in_the_sink(tmp_path):
    source = voc(tmp_path / "in", BOXES, train="ab", test="c")
    status, stdout, stderr = jobs.cvbatch("import", "voc", source, tmp_path / "out")
    assert status == 0, stderr
    assert last_line(stderr) == f"cvbatch: done, 3 images into {tmp_path / 'out'}"
    assert stdout.splitlines()[:4] == [
        "images   3 found, 3 written",
        "objects  3 found, 3 written",
        "  train       2 images, 3 objects",
        "  test        1 images, 0 objects",
    ]
    assert "issue    boxes partly outside their image: 1 clipped" in stdout
    status, stdout, stderr = jobs.cvbatch("import", "voc", source, tmp_path / "json", "--json")
    report = json.loads(stdout)
    assert report["images"] == {"found": 3, "written": 3, "dropped": 0}
    assert [issue["kind"] for issue in report["oddities"]] == ["box_partly_outside", "no_objects"]
    written = json.loads((tmp_path / "json" / "_cvbatch" / "import.json").read_text())
    assert {key: written[key] for key in report} == report
    assert written["files"] == {name: len(data) for name, data in files(tmp_path / "json").items()}


def test_formats_accept_their_options(tmp_path):
    put(tmp_path, {"f/cat/a.png": picture(), "f/dog/a.png": picture(), "names.txt": "dog\ncat\n"})
    status, _, stderr = jobs.cvbatch(
        "import", "folders", tmp_path / "f", tmp_path / "f-out",
        "--classes", tmp_path / "names.txt", "--split", "1,0,0", "--seed", 3, "--shard-images", 1,
    )  # fmt: skip
    assert status == 0, stderr
    parts = sorted((tmp_path / "f-out").glob("*.parquet"))
    assert [path.name[:16] for path in parts] == ["part-train-00000", "part-train-00001"]
    rows = [row for path in parts for row in pq.ParquetFile(path).read(["labels"]).to_pylist()]
    assert {(row["labels"][0]["class_id"], row["labels"][0]["label"]) for row in rows} == {
        (0, "dog"), (1, "cat"),
    }  # fmt: skip
    square = {"image_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]}
    text = coco([{"id": 1, "file_name": "a.png"}], [square])
    put(tmp_path, {"c/images/a.png": picture(), "c/annotations/instances_val.json": text})
    status, stdout, stderr = jobs.cvbatch(
        "import", "coco", tmp_path / "c", tmp_path / "c-out", "--masks"
    )
    assert status == 0, stderr
    assert "mask     background 1, dog 1, cat 0" in stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "FORMAT"),
        (["createml", "a", "b"], "'createml' is unknown"),
        (["voc", "a"], "DST"),
        (["voc", "a", "b", "--outside", "keep"], "'keep' is unknown"),
        (["folders", "a", "b", "--outside", "drop"], "--outside is no option of"),
        (["folders", "a", "b", "--split", "1,1,1"], "three shares"),
        (["folders", "a", "b", "--classes", "a,,b"], "a name is empty"),
        (["folders", "a", "b", "--classes", "a,b,a"], "'a' is listed twice"),
        (["folders", "a", "b", "--classes", "none.txt"], "none.txt does not exist"),
        (["folders", "a", "b", "--shard-images", "0"], "must be 1 or more"),
        (["predictions", "a", "b", "--min-score", "nan"], "must be between 0 and 1"),
        (["trimaps", "a", "b", "--values", "1,x"], "must be pixel values"),
        (["folders", "no/such/folder", "b"], "no/such/folder"),
        (["folders", "https://host/x", "b"], "https://host/x is a web address"),
    ],
)
def test_invalid_arguments_exit_with_status_2_and_a_message(tmp_path, arguments, message):
    status, stdout, stderr = jobs.cvbatch("import", *arguments, cwd=tmp_path)
    assert (status, stdout) == (2, "")
    assert message in stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_a_refused_import_names_all_errors_and_writes_nothing(tmp_path):
    source = voc(tmp_path / "in", BOXES)
    put(source, {"Annotations/c.xml": voc_xml([("cat", 30, 1, 40, 5)])})
    status, stdout, stderr = jobs.cvbatch(
        "import", "voc", source, tmp_path / "out", "--outside", "refuse", "--no-area", "refuse",
        "--classes", "cat",
    )  # fmt: skip
    assert (status, stdout) == (2, "")
    for kind in ("partly outside their image", "wholly outside their image", "not listed"):
        assert f"{kind} (1), such as" in last_line(stderr)
    assert "--unknown drop" in last_line(stderr)
    assert not (tmp_path / "out").exists()


def test_malicious_files_exit_with_status_2_without_a_traceback(tmp_path):
    bomb = "<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'>]><annotation>&a;</annotation>"
    source = put(voc(tmp_path / "in", {"a": []}), {"Annotations/a.xml": bomb})
    status, _, stderr = jobs.cvbatch("import", "voc", source, tmp_path / "out")
    assert status == 2
    assert "DOCTYPE" in last_line(stderr)
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()


def test_an_import_imports_neither_ray_nor_tensorflow(tmp_path):
    source = voc(tmp_path / "in", BOXES)
    arguments = ["import", "voc", str(source), str(tmp_path / "out")]
    code = (
        f"import sys; from cvbatch.cli.main import main; status = main({arguments!r});"
        "print(sorted({'keras', 'tensorflow', 'ray'} & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
