"""Common mistakes of new users: command, message and remedy, as docs/mistakes.md lists them.

`python -m tests.cli.mistakes` runs every command in a folder with images, labels and results, and
writes the page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from cvbatch.cli.main import main
from cvbatch.core.progress import Listener
from cvbatch.importers.job import import_labels
from cvbatch.importers.options import parse_import_options
from tests.support import jobs, results

PAGE = Path(__file__).parents[2] / "docs" / "mistakes.md"
HOME = "/home/me"  # stands for the folder in which the commands run
_PROGRESS = re.compile(r"\d\d:\d\d:\d\d |checked \d")
_HASH = re.compile(r"\b[0-9a-f]{11,16}\b")
_OPENING = f"""# Common mistakes

What a command says about each, and what to do. The exit status is 2, and nothing is written. The
commands run in `{HOME}`, which contains `photos/cat`, `photos/dog`, their `labels`, and a `result`.
Messages of other kinds: [faults.md](faults.md). `python -m tests.cli.mistakes` writes this page.
"""
_HEAD = "| you typed | it says | do |\n| --- | --- | --- |\n"


class Mistake(NamedTuple):
    """One wrong command.

    Attributes:
        command: as typed in a shell, without `cvbatch`; the shell finds no file for a pattern.
        remedy: what to do.
        job: content of job.yaml, if there is one.
        is_slow: whether TensorFlow starts before the command is refused.
    """

    command: str
    remedy: str
    job: str = ""
    is_slow: bool = False


def _slow(command: str, remedy: str) -> Mistake:
    """Return a mistake that is refused when the network is built, which takes half a minute."""
    return Mistake(command, remedy, is_slow=True)


_MODEL = "predict photos --model demo_classifier"
_OUT = "--model demo_classifier --out out"
_JOB = "predict --config job.yaml"
_COMPLETE = "source: photos\nsink: out\nmodels: demo_classifier\n"
_NAMES = "take a name that `cvbatch models` lists"
_ONNX = "export the network to ONNX"
_FOLDERS = (
    "check the folder; a relative path is below the current folder, in a job file below its folder"
)
_IMPORT = "import labels first: `cvbatch import folders photos labels`"

SECTIONS: dict[str, tuple[Mistake, ...]] = {
    "The command": (
        Mistake("", "name a command; `cvbatch --help` lists them"),
        Mistake("predit photos", "correct the command"),
        Mistake("predict photos", "name a model"),
        Mistake("predict --model demo_classifier", "name the images"),
        Mistake("predict photos --models demo_classifier", "correct the option"),
        Mistake("predict photos -m demo_classifier", "write options with two hyphens"),
        Mistake("predict photos/cat --model demo_classifier photos/dog", "images before options"),
        Mistake(f"{_MODEL} demo_detector", "repeat `--model`"),
        Mistake("train", "name labels and a model"),
        Mistake("evaluate", "name the result and the labels"),
        Mistake("export coc result out", "correct the format"),
        Mistake("import photos labels", "name the format of the labels"),
    ),
    "The model": (
        Mistake("predict photos --model MobilNetV2", _NAMES),
        Mistake("train labels --model mobilenet_v2 --weights imagenet", _NAMES),
        Mistake("explain photos --model resnet-50", _NAMES),
        Mistake("models MobilNetV2", _NAMES),
        Mistake("predict photos --model clip", _NAMES),
        Mistake("predict photos --model yolov8n.pt", _ONNX),
        Mistake("predict photos --model net.pth", _ONNX),
        Mistake("predict photos --model model.safetensors", _ONNX),
        Mistake("predict photos --model net.weights.h5", "name the network, and these weights"),
        Mistake("predict photos --model hf://microsoft/resnet-50", "download it first"),
        Mistake("predict photos --model kaggle://keras/resnet/keras/r18", "download it first"),
        Mistake("predict photos --model https://example.com/net.keras", "download it first"),
        Mistake("predict photos --model nets.keras", "correct the name of the file"),
        Mistake("predict photos --model net.keras", "save the model with Keras 3"),
        Mistake("train labels --model yolo", "train from scratch: `--weights random`"),
        Mistake(f"{_MODEL} --weights imagnet", "correct the name of the weights"),
        Mistake(f"{_MODEL} --task detect", "correct the task"),
        Mistake(f"{_MODEL} --classes name.txt", "correct the name of the class file"),
        Mistake("train labels --model net.onnx", "train a Keras network"),
        Mistake(f"{_MODEL} --model lenet5 --weights random", "run two jobs"),
        _slow(f"{_MODEL} --task detection --out out", "set the task of the network"),
        _slow(f"{_MODEL} --classes names.txt --out out", "name all classes, in their order"),
        _slow(f"{_MODEL} --weights imagenet --out out", "train the head first"),
        _slow(
            f"{_MODEL} --set run.actor_memory_bytes=1000 --set run.actors=1 --out out",
            "allow more memory",
        ),
    ),
    "The images": (
        Mistake(f"predict photo {_OUT}", _FOLDERS),
        Mistake(f"predict empty {_OUT}", "name a folder with images"),
        Mistake(f"predict notes {_OUT}", "name a folder with images"),
        Mistake(f"predict *.jpg {_OUT}", "name the folder; subfolders are read too"),
        Mistake(rf"predict 'C:\Users\me\photos' {_OUT}", "use a path of this system"),
        Mistake(f"predict https://example.com/a.jpg {_OUT}", "download them first"),
        Mistake(f"predict s3:/bucket/photos {_OUT}", "write two slashes"),
        Mistake("predict job.yaml", "set --config"),
        Mistake(f"predict result {_OUT}", "name the images"),
    ),
    "The result": (
        Mistake(f"{_MODEL} --out photos", "give the result its own folder"),
        Mistake(f"{_MODEL} --out .", "give the result its own folder"),
        Mistake(f"{_MODEL} --out names.txt", "name a folder"),
        Mistake(f"{_MODEL} --out gcs://bucket/result", "correct the scheme"),
        Mistake(f"{_MODEL} --out labels", "give the result its own folder"),
        Mistake(f"{_MODEL} --out result", "another folder, or `--overwrite`"),
    ),
    "The job file": (
        Mistake("predict --config nightly.yaml", "correct the name, or write one"),
        Mistake(_JOB, "correct the keys", _COMPLETE.replace("source", "sorce") + "runs: {}\n"),
        Mistake(_JOB, "correct the key", _COMPLETE + "run: {batchsize: 8}\n"),
        Mistake(_JOB, "move the key into its section", _COMPLETE + "batch_size: 8\n"),
        Mistake(
            _JOB, "correct the key",
            "source: photos\nsink: out\nmodels:\n"
            "- {model: demo_classifier, heatmap: {layers: auto}, tresh: 0.5}\n",
        ),
        Mistake(_JOB, "correct the values", _COMPLETE + "run: {batch_size: big, engine: litrt}\n"),
        Mistake(_JOB, "indent with spaces", "source:\n\turi: photos\n"),
        Mistake(_JOB, "close the bracket", "source: {uri: photos\nsink: out\n"),
        Mistake(_JOB, "use the command of the job file", "source: labels\nsink: out\n"
                "model: demo_classifier\ntraining: {epochs: 2}\n"),
        Mistake(_JOB, "name the model as an item of models", "source: photos\nsink: out\n"
                "model: demo_classifier\n"),
        Mistake(_JOB, "start from a template", "just text\n"),
        Mistake(_JOB, "remove the secret", _COMPLETE.replace("out", "${AWS_SECRET_ACCESS_KEY}")),
        Mistake(_JOB, "export the variable", _COMPLETE.replace("photos", "${ARCHIVE}")),
    ),
    "`--set`": (
        Mistake(f"{_MODEL} --set run.batch_size 8", "write KEY=VALUE"),
        Mistake(f"{_MODEL} --set batch_size=8", "name the section"),
        Mistake(f"{_MODEL} --set models.top_k=3", "name the model by its index"),
        Mistake(f"{_MODEL} --set models.0.heatmap={{layer: auto}}", "quote the value"),
        Mistake(f"{_MODEL} --set 'models.0.heatmap={{layer: auto'", "close the bracket"),
    ),
    "Labels, evaluation, report, export": (
        Mistake("train photos --model MobileNetV2", _IMPORT),
        Mistake("train labels --model MobileNetV2", "import with `--split`, or set null"),
        Mistake("train labels --model MobileNetV2 --task detection", "import boxes"),
        Mistake("train result --model MobileNetV2", "convert the result to labels"),
        Mistake("import folders photo labels2", _FOLDERS),
        Mistake("import folders photos/cat labels2", "name the folder of the class folders"),
        Mistake("import coco photos labels2", "name the folder of the data set, or its JSON file"),
        Mistake("import yolo photos labels2", "name the folder with images and labels"),
        Mistake("import csv labels.csv labels2", "correct the paths of the images"),
        Mistake("import folders photos labels2 --split 80,10,10", "write shares of 1"),
        Mistake("import folders photos labels", "another folder, or `--overwrite`"),
        Mistake("evaluate result photos", _IMPORT),
        Mistake("evaluate labels result", "the result first, then the labels"),
        Mistake("evaluate result", "name the labels"),
        Mistake("evaluate result labels", "map the classes"),
        Mistake("evaluate result others --set 'evaluation.class_map={disc: cat, ring: null}'",
                "use the labels of these images"),
        Mistake("report result --truth photos", _IMPORT),
        Mistake("report result --out photos", "name a file"),
        Mistake("report photos", "name the sink of a job"),
        Mistake("report results", "correct the name"),
        Mistake("export coco result out", "export a result with boxes or masks"),
        Mistake("export fiftyone result names.txt", "name a folder"),
        Mistake("export coco photos out", "name the sink of a job"),
    ),
}  # fmt: skip
CASES = [mistake for group in SECTIONS.values() for mistake in group]


def write_home(folder: Path) -> Path:
    """Write images, labels, a result and model files; return the folder."""
    names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
    images = {f"photos/{name}": jobs.encoded_image(3 * i) for i, name in enumerate(names)}
    models = dict.fromkeys(("net.keras", "yolov8n.pt", "net.onnx"), b"model")
    texts = {"notes/a.txt": b"notes", "names.txt": b"cat\ndog\n"}
    texts["labels.csv"] = b"image,label\npictures/a1.png,cat\n"
    jobs.write_files(folder, images | models | texts)
    (folder / "empty").mkdir()
    photos, options = str(folder / "photos"), parse_import_options({})
    jobs.write_files(folder, {"new/cat/a.png": jobs.encoded_image(3)})
    for source, labels in (("photos", "labels"), ("new", "others")):
        places = (str(folder / source), str(folder / labels))
        import_labels("folders", *places, options, {}, Listener())
    labels_of_image = [{"class_id": 1, "label": "disc", "score": 0.7}]
    rows = {name: {"labels": labels_of_image, "size": results.SIZE} for name in names}
    result, classes = folder / "result", ("ring", "disc")
    results.write_predictions(result, photos, rows, ("classification",), classes)
    (result / "_cvbatch" / "job.json").write_text('{"fingerprint": "00000000000"}')
    return folder


def message_of(mistake: Mistake, home: Path) -> str:
    """Run a wrong command in the folder; return its message, without progress and the folder.

    Raises:
        AssertionError: the command was not refused, printed a traceback, or wrote a file.
    """
    if mistake.job:
        (home / "job.yaml").write_text(mistake.job, encoding="utf-8")
    before = _names_below(home)
    stderr, stdout = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(home),
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(stdout),
        mock.patch.dict(os.environ),
    ):
        os.environ.pop("ARCHIVE", None)
        try:
            status = main(shlex.split(mistake.command))
        except SystemExit as usage:
            status = int(str(usage.code))
    (home / "job.yaml").unlink(missing_ok=True)
    lines = [line for line in stderr.getvalue().splitlines() if not _PROGRESS.match(line)]
    message = _HASH.sub("0f0f0f", "\n".join(lines).replace(str(home), HOME))
    assert (status, stdout.getvalue()) == (2, ""), message
    assert "Traceback" not in message
    assert _names_below(home) - {"job.yaml"} == before - {"job.yaml"}
    return message


def _names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def page(home: Path) -> str:
    """Return docs/mistakes.md."""
    parts = [_OPENING]
    for title, mistakes in SECTIONS.items():
        rows = (row(mistake, message_of(mistake, home)) for mistake in mistakes)
        parts.append(f"## {title}\n\n{_HEAD}{''.join(rows)}")
    return "\n".join(parts)


def row(mistake: Mistake, message: str) -> str:
    """Return the row of a mistake in the table of the page."""
    typed = _code(f"cvbatch {mistake.command}".strip())
    if mistake.job:
        typed += " with<br>" + _code(mistake.job.rstrip("\n"))
    return f"| {typed} | {_code(message)} | {mistake.remedy} |\n"


def _code(text: str) -> str:
    """Return lines as code in a cell of a table."""
    lines = (line.replace("|", "\\|").replace("\t", "→") for line in text.split("\n"))
    return "<br>".join(f"`` {line} ``" if "`" in line else f"`{line}`" for line in lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        PAGE.write_text(page(write_home(Path(temporary))), encoding="utf-8")
