"""Cards of .keras files: written, read and replaced without Keras."""

import json
import subprocess
import sys
import zipfile

import pytest

from cvbatch.core.errors import ModelError
from cvbatch.models.metadata import CARD_MEMBER, MAX_CARD_BYTES, Card, read_card, write_card


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as members:
        members.writestr("config.json", "{}")
        members.writestr("model.weights.h5", b"\x00\x01")
    return path


def add_card(path, text):
    with zipfile.ZipFile(path, "a") as members:
        members.writestr(CARD_MEMBER, text)


def test_a_file_without_a_card_has_none(archive):
    assert read_card(archive) is None


def test_a_card_round_trips_and_other_members_stay(archive):
    write_card(archive, ("cat", "größer", ""), "classification")

    assert read_card(archive) == Card(("cat", "größer", ""), "classification")
    with zipfile.ZipFile(archive) as members:
        assert members.read("model.weights.h5") == b"\x00\x01"
        assert members.namelist() == ["config.json", "model.weights.h5", CARD_MEMBER]


def test_a_second_card_replaces_the_first(archive):
    write_card(archive, ("cat",), "classification")
    first = archive.read_bytes()
    write_card(archive, ("dog",), "classification")
    write_card(archive, ("cat",), "classification")

    assert archive.read_bytes() == first
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no json", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        ("[]", "is not a JSON object"),
        (json.dumps({"classes": "cat", "task": "x"}), "no list of strings"),
        (json.dumps({"classes": [1], "task": "x"}), "no list of strings"),
        (json.dumps({"classes": []}), "no string under `task`"),
        (" " * (MAX_CARD_BYTES + 1), "is longer than"),
    ],
)
def test_a_malformed_card_is_refused(archive, text, problem):
    add_card(archive, text)

    with pytest.raises(ModelError, match=problem):
        read_card(archive)


def test_a_file_that_is_not_keras_is_refused(tmp_path):
    (tmp_path / "text.keras").write_text("not a zip")

    for path in (tmp_path / "text.keras", tmp_path / "missing.keras"):
        with pytest.raises(ModelError, match=r"not a \.keras file"):
            read_card(path)
        with pytest.raises(ModelError, match=r"not a \.keras file"):
            write_card(path, (), "classification")


def test_reading_a_card_does_not_import_keras():
    code = "import sys, cvbatch.models.metadata; print({'tensorflow', 'keras'} & set(sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert process.stdout.strip() == "set()"
