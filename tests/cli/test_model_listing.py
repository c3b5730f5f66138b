"""`cvbatch models` as its users meet it: the zoo at once, one network layer by layer."""

import json
import os
import pty
import subprocess
import sys

import pytest

from cvbatch.cli import model_listing
from cvbatch.core.errors import ModelError
from cvbatch.models import zoo_table as figures
from tests.support import jobs

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_an_empty_table_is_its_titles():
    assert model_listing.zoo_table([]).as_text() == (
        "name  task  input  classes  parameters  multiply-adds"
    )


def test_the_zoo_is_listed_in_aligned_columns_without_loading_keras():
    code = (
        "import sys; from cvbatch.cli.main import main; status = main(['models']);"
        "print(sorted({'keras', 'tensorflow', 'ray', 'pyarrow'} & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    titles, *rows, loaded = done.stdout.splitlines()
    assert loaded == "[] 0"
    networks = figures.read_summaries()
    assert [row.split()[0] for row in rows] == [one.name for one in networks]
    ends = {len(line) for line in (titles, *rows)}
    assert len(ends) == 1  # the last column is of numbers, flush right
    assert done.stderr == f"cvbatch: {len(networks)} networks; cvbatch models NAME shows one\n"


def test_the_zoo_as_json_is_the_figures():
    status, said, _ = jobs.cvbatch("models", "--json")
    assert status == 0
    assert [figures.NetworkSummary(**row) for row in json.loads(said)] == figures.read_summaries()


def test_on_a_terminal_the_table_is_drawn():
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "cvbatch", "models"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        command, stdout=slave, stderr=subprocess.PIPE, env=environment
    ) as process:
        os.close(slave)
        shown = b""
        while piece := _read(master):
            shown += piece
        assert process.stderr.read().startswith(b"cvbatch: ")
    os.close(master)
    assert "┃" in shown.decode()
    assert "MobileNetV2" in shown.decode()


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux tells the end of a pseudo-terminal so
        return b""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batch", "2"], "are about one network: name it"),
        (["yolo", "--batch", "0"], "'0' is not a whole number of at least 1"),
        (["yolo", "--image-size", "64"], "expected 2 arguments"),
        (["/no/such.keras"], "/no/such.keras does not exist"),
        (["net.keras", "--classes", "2"], "a .keras file is built already"),
        (["net.keras", "--build", "width=2"], "a .keras file is built already"),
        (["yolo", "--build", "width"], "'width': write it as key=value"),
        (["--build", "width=2"], "are about one network: name it"),
    ],
)
def test_wrong_words_are_status_2_in_a_sentence(words, told):
    status, said, message = jobs.cvbatch("models", *words)
    assert (status, said) == (2, "")
    assert told in message
    assert "Traceback" not in message


@pytest.mark.keras
def test_one_network_is_shown_with_totals_and_nothing_of_tensorflow():
    status, said, told = jobs.cvbatch(
        "models", "mini_xception", "--classes", "3", "--image-size", "64", "48", "--batch", "10"
    )
    assert status == 0
    assert told == "cvbatch: mini_xception, 51 layers\n"
    rows = [line.split() for line in said.splitlines()]
    assert rows[0] == ["layer", "kind", "output", "parameters", "multiply-adds", "bytes"]
    assert rows[1] == ["image", "InputLayer", "64×48×3", "0", "0", "36,864"]
    assert ["scores", "Dense", "3", "1,539", "1,536", "12"] in rows
    assert ["parameters", "722,883,", "of", "which", "trainable", "719,875"] in rows
    assert rows[-1][:3] == ["batch", "of", "10"]


@pytest.mark.keras
def test_an_option_changes_the_network():
    words = ("models", "mini_xception", "--build", "width=4", "--build", "num_blocks=2", "--json")
    status, said, told = jobs.cvbatch(*words)
    assert status == 0, told
    filters = {row["path"]: row["output_shapes"][0][-1] for row in json.loads(said)["layers"]}
    assert filters["conv2d"] == 4  # the first convolution
    assert filters["add_1"] == 8  # the end of the second and last block
    assert "add_2" not in filters


@pytest.mark.keras
def test_a_file_is_shown_as_json(keras_files):
    path = keras_files / "nested_classifier.keras"
    status, said, told = jobs.cvbatch("models", path, "--json", "--batch", "2")
    assert status == 0, told
    shown = json.loads(said)
    assert shown["name"] == str(path)
    assert "inner/act" in [layer["path"] for layer in shown["layers"]]
    conv, inner, dense = 8 * 27 + 8, 12 * 72 + 12, 12 * 7 + 7
    normalisation = 4 * 8
    assert shown["parameters"] == conv + normalisation + inner + dense
    assert shown["multiply_adds"] == 32 * 32 * 8 * 27 + 15 * 15 * 12 * 72 + 12 * 7
    trained = shown["trainable_parameters"]
    assert trained == shown["parameters"] - 2 * 8
    assert shown["batch"] == {
        "batch_size": 2,
        "inference_bytes": 4 * shown["parameters"] + 2 * shown["inference_bytes"],
        "training_bytes": 4 * (shown["parameters"] + 3 * trained) + 2 * shown["training_bytes"],
    }


@pytest.mark.keras
@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        ("minixception", None, "nearest are mini_xception"),
        ("yolo", (100, 100), "multiples of"),
    ],
)
def test_a_network_that_cannot_be_is_refused(name, size, told):
    with pytest.raises(ModelError, match=told):
        model_listing.describe_network(name, None, size)
