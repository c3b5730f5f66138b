"""`cvbatch models`: the list of networks, and the layers of one network."""

import json
import os
import pty
import subprocess
import sys

import pytest

from cvbatch.cli import model_listing
from cvbatch.core.errors import ModelError
from cvbatch.models import zoo_table as summaries
from tests.docs.models_table import marked_rows
from tests.support import jobs

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def test_an_empty_table_contains_only_titles():
    assert model_listing.zoo_table([]).as_text() == (
        "name  task  input  classes  parameters  multiply-adds"
    )


def test_networks_are_listed_in_aligned_columns_without_importing_keras():
    code = (
        "import sys; from cvbatch.cli.main import main; status = main(['models']);"
        "print(sorted({'keras', 'keras_hub', 'tensorflow', 'ray', 'pyarrow'}"
        " & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    titles, *rows, loaded = done.stdout.splitlines()
    assert loaded == "[] 0"
    networks = summaries.read_summaries()
    assert [row.split()[0] for row in rows] == [network.name for network in networks]
    ends = {len(line) for line in (titles, *rows)}
    assert len(ends) == 1  # the last column is right-aligned
    assert (
        done.stderr.splitlines()[-1]
        == f"cvbatch: {len(networks)} networks; use cvbatch models NAME to show one"
    )


def test_the_list_as_json_has_all_values():
    status, stdout, _ = jobs.cvbatch("models", "--json")
    assert status == 0
    assert [
        summaries.NetworkSummary(**row) for row in json.loads(stdout)
    ] == summaries.read_summaries()


def test_a_terminal_shows_a_drawn_table():
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "cvbatch", "models"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        command, stdout=slave, stderr=subprocess.PIPE, env=environment
    ) as process:
        os.close(slave)
        output = b""
        while chunk := _read(master):
            output += chunk
        assert process.stderr.read().splitlines()[-1].startswith(b"cvbatch: ")
    os.close(master)
    assert "┃" in output.decode()
    assert "MobileNetV2" in output.decode()


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux reports the end of a pseudo-terminal as an error
        return b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "2"], "need the NAME of a network"),
        (["yolo", "--batch", "0"], "'0' is not a whole number of at least 1"),
        (["yolo", "--image-size", "64"], "expected 2 arguments"),
        (["/no/such.keras"], "/no/such.keras does not exist"),
        (["net.keras", "--classes", "2"], "a .keras file contains the network"),
        (["net.keras", "--build", "width=2"], "a .keras file contains the network"),
        (["yolo", "--build", "width"], "'width': must be key=value"),
        (["--build", "width=2"], "need the NAME of a network"),
    ],
)
def test_invalid_arguments_exit_with_status_2_and_a_message(arguments, message):
    status, stdout, stderr = jobs.cvbatch("models", *arguments)
    assert (status, stdout) == (2, "")
    assert message in stderr
    assert "Traceback" not in stderr


@pytest.mark.keras
def test_a_network_is_shown_with_totals_and_without_logs_of_tensorflow():
    status, stdout, stderr = jobs.cvbatch(
        "models", "mini_xception", "--classes", "3", "--image-size", "64", "48", "--batch", "10"
    )
    assert status == 0
    assert stderr == "cvbatch: mini_xception, 51 layers\n"
    rows = [line.split() for line in stdout.splitlines()]
    assert rows[0] == ["layer", "kind", "output", "parameters", "multiply-adds", "bytes"]
    assert rows[1] == ["image", "InputLayer", "64×48×3", "0", "0", "36,864"]
    assert ["scores", "Dense", "3", "1,539", "1,536", "12"] in rows
    assert ["parameters", "722,883,", "of", "which", "trainable", "719,875"] in rows
    assert rows[-1][:3] == ["batch", "of", "10"]


@pytest.mark.keras
def test_a_build_option_changes_the_network():
    arguments = (
        "models",
        "mini_xception",
        "--build",
        "width=4",
        "--build",
        "num_blocks=2",
        "--json",
    )
    status, stdout, stderr = jobs.cvbatch(*arguments)
    assert status == 0, stderr
    filters = {row["path"]: row["output_shapes"][0][-1] for row in json.loads(stdout)["layers"]}
    assert filters["conv2d"] == 4  # the first convolution
    assert filters["add_1"] == 8  # the end of the second and last block
    assert "add_2" not in filters


@pytest.mark.keras
def test_a_file_is_shown_as_json(keras_files):
    path = keras_files / "nested_classifier.keras"
    status, stdout, stderr = jobs.cvbatch("models", path, "--json", "--batch", "2")
    assert status == 0, stderr
    output = json.loads(stdout)
    assert output["name"] == str(path)
    assert "inner/act" in [layer["path"] for layer in output["layers"]]
    conv, inner, dense = 8 * 27 + 8, 12 * 72 + 12, 12 * 7 + 7
    normalisation = 4 * 8
    assert output["parameters"] == conv + normalisation + inner + dense
    assert output["multiply_adds"] == 32 * 32 * 8 * 27 + 15 * 15 * 12 * 72 + 12 * 7
    trained = output["trainable_parameters"]
    assert trained == output["parameters"] - 2 * 8
    assert output["batch"] == {
        "batch_size": 2,
        "inference_bytes": 4 * output["parameters"] + 2 * output["inference_bytes"],
        "training_bytes": 4 * (output["parameters"] + 3 * trained) + 2 * output["training_bytes"],
    }


@pytest.mark.keras
@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("minixception", None, "did you mean mini_xception"),
        ("yolo", (100, 100), "multiples of"),
    ],
)
def test_an_impossible_network_is_refused(name, size, message):
    with pytest.raises(ModelError, match=message):
        model_listing.describe_network(name, None, size)


def test_families_of_kerashub_are_those_of_the_table():
    rows = [what for what, _ in marked_rows() if what.startswith("KerasHub")]
    for kind, families in model_listing._HUB_FAMILIES.items():
        listed = {row.split(": ")[1] for row in rows if f" {kind[:-1]} " in row}
        assert set(families) == listed
