"""Options of the command line that set keys of the job file, so that no job file is needed."""

from __future__ import annotations

from typing import Any, NamedTuple


class JobOption(NamedTuple):
    """An option of the command line that sets a key of the job file.

    Attributes:
        name: of the option, or of a positional argument.
        key: its place in the job file; `models.*.task` is that of every model.
        keywords: argparse's.
    """

    name: str
    key: str
    keywords: dict[str, Any]

    @property
    def attribute(self) -> str:
        """Return the attribute of the parsed arguments."""
        return self.name.lstrip("-").replace("-", "_")


def _option(name: str, key: str, metavar: str, help_text: str, **keywords: Any) -> JobOption:
    return JobOption(name, key, {"metavar": metavar, "help": help_text, **keywords})


def _per_model(name: str, key: str, metavar: str, help_text: str) -> JobOption:
    text = f"{help_text}; can be repeated, once for each --model"
    return _option(name, f"models.*.{key}", metavar, text, action="append")


def _classes(text: str) -> str | list[str]:
    """Return names separated by commas as a list, and one word as the name of a file."""
    return [name.strip() for name in text.split(",")] if "," in text else text


_TASK_HELP = "task of the model, such as segmentation; default: that of the network"
_WEIGHTS_HELP = "weights: imagenet, demo, random, or a file; default: the network's pretrained ones"
_IMAGES = {"nargs": "*", "default": None}
_ONE = {"nargs": "?", "default": None}
_OUT = "folder or URI for the result; default: {}"

_IMAGES_OPTION = _option(
    "images", "source.uri", "IMAGES", "folders, files, patterns or URIs", **_IMAGES
)
_ONE_MODEL = (
    _option("--model", "model.model", "MODEL", "a network's name or a model file; required"),
    _option("--task", "model.task", "TASK", _TASK_HELP),
    _option("--weights", "model.weights", "WEIGHTS", _WEIGHTS_HELP),
)

JOB_OPTIONS: dict[str, tuple[JobOption, ...]] = {
    "predict": (
        _IMAGES_OPTION,
        _option(
            "--model",
            "models",
            "MODEL",
            "a network's name or a model file; can be repeated",
            action="append",
        ),
        _per_model("--task", "task", "TASK", _TASK_HELP),
        _per_model("--weights", "weights", "WEIGHTS", _WEIGHTS_HELP),
        _option(
            "--classes",
            "models.*.classes",
            "NAMES",
            "class names separated by commas, or a file with one per line; can be repeated, once "
            "for each --model",
            action="append",
            type=_classes,
        ),
        JobOption(
            "--heatmap",
            "models.*.heatmap",
            {
                "action": "store_const",
                "const": {},
                "help": "also compute a Grad-CAM heatmap of the top class; default: none",
            },
        ),
        _option(
            "--batch-size", "run.batch_size", "N", "images per call of a model; default: 32",
            type=int,
        ),
        _option("--out", "sink.uri", "DIR", _OUT.format("result")),
    ),
    "train": (
        _option("labels", "source.uri", "LABELS", "labelled Parquet", **_IMAGES),
        *_ONE_MODEL,
        _option("--epochs", "training.epochs", "N", "number of epochs; default: 10", type=int),
        _option(
            "--batch-size", "training.batch_size", "N", "images per step and worker; default: 16",
            type=int,
        ),
        _option("--out", "sink.uri", "DIR", _OUT.format("trained")),
    ),
    "evaluate": (
        _option("predictions", "predictions.uri", "RESULT", "sink of `cvbatch predict`", **_ONE),
        _option("labels", "truth.uri", "LABELS", "labelled Parquet", **_IMAGES),
        _option("--out", "sink.uri", "DIR", _OUT.format("RESULT-evaluation")),
    ),
    "explain": (
        _IMAGES_OPTION,
        *_ONE_MODEL,
        _option("--out", "sink.uri", "DIR", _OUT.format("explained")),
    ),
}  # fmt: skip

EXAMPLES = {
    "predict": "predict photos/ --model MobileNetV2 --out result/",
    "train": "train labels/ --model MobileNetV2 --out trained/",
    "evaluate": "evaluate result/ labels/",
    "explain": "explain photos/ --model MobileNetV2 --out explained/",
}

# Sections that a job needs, except its sink; how messages name them on the command line.
REQUIRED: dict[str, dict[str, str]] = {
    "predict": {"source": "IMAGES", "models": "--model"},
    "train": {"source": "LABELS", "model": "--model"},
    "evaluate": {"predictions": "RESULT"},
    "explain": {"model": "--model"},
}
