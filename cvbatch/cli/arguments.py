"""Command-line arguments: a table of commands and their options, read by argparse."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import shtab

from cvbatch.cli.job_options import JOB_OPTIONS
from cvbatch.core.json_log import CommandResult, write_last_line
from cvbatch.core.suggestions import closest_names, did_you_mean, hint
from cvbatch.core.version import __version__
from cvbatch.exporters.options import EXPORT_DESCRIPTIONS, FLAGS
from cvbatch.importers.flags import FORMAT_DESCRIPTIONS, format_flags


class Argument(NamedTuple):
    """A positional argument or an option, and argparse's keywords for it."""

    name: str
    keywords: dict[str, Any]


class Command(NamedTuple):
    """A command: what it does, and its arguments."""

    purpose: str
    arguments: tuple[Argument, ...]


def _switch(name: str, help_text: str) -> Argument:
    return Argument(name, {"action": "store_true", "help": help_text})


def _text(name: str, metavar: str, help_text: str, **keywords: Any) -> Argument:
    return Argument(name, {"metavar": metavar, "help": help_text, **keywords})


def _count(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


_JSON = _switch("--json", "print a summary as one JSON object on stdout")
_LOG = Argument(
    "--log",
    {
        "choices": ("text", "json"),
        "default": "text",
        "help": "format of stderr: text for people, or one JSON object per line; default: "
        "%(default)s",
    },
)
_JOB = (
    _text(
        "--config",
        "FILE",
        "job file (YAML); options replace its values; default: the options alone",
    ),
    _text(
        "--set",
        "KEY=VALUE",
        "override a value of the job file, such as run.batch_size=16 or models.0.top_k=3; the "
        "value is YAML; can be repeated",
        dest="overrides",
        action="append",
        default=[],
    ),
    _JSON,
    _LOG,
)
_BUILD = _text(
    "--build",
    "KEY=VALUE",
    "set a build option of the network, such as width=16 or backbone=ResNet50; can be repeated",
    action="append",
    default=[],
)


def _job_arguments(command: str) -> tuple[Argument, ...]:
    """Return the options that set keys of the command's job file, and those of all job files."""
    options = (Argument(option.name, option.keywords) for option in JOB_OPTIONS[command])
    return (*options, *_JOB)


_KIND = Argument("kind", {"choices": tuple(JOB_OPTIONS), "help": "kind of job file"})

COMMANDS = {
    "predict": Command(
        "run batch inference: Keras models over an image archive, predictions into Parquet",
        (
            *_job_arguments("predict"),
            _switch("--dry-run", "estimate time and output size from a sample; write nothing"),
            _switch(
                "--overwrite",
                "replace predictions of another job in the sink; default: refuse such a sink",
            ),
            _switch("--retry-failed", "also process finished chunks again that have failed rows"),
        ),
    ),
    "train": Command(
        "train or fine-tune a model on labelled images",
        (
            *_job_arguments("train"),
            _switch(
                "--overwrite",
                "discard the training in the sink and start a new one; default: resume the same "
                "training, refuse another one",
            ),
            _switch("--resume", "resume only: fail if the sink contains no training to resume"),
        ),
    ),
    "evaluate": Command(
        "evaluate predictions against ground truth: accuracy, mAP, IoU, with confidence intervals",
        (
            *_job_arguments("evaluate"),
            _switch(
                "--overwrite",
                "replace another evaluation in the sink; default: refuse such a sink",
            ),
        ),
    ),
    "explain": Command(
        "visualise activations, filters, Grad-CAM and DeepDream of a model",
        (
            *_job_arguments("explain"),
            _switch(
                "--overwrite",
                "replace another explanation in the sink; default: refuse such a sink",
            ),
        ),
    ),
    "report": Command(
        "write an HTML report on predictions, an evaluation, a training or an explanation",
        (
            _text(
                "sources",
                "DIR",
                "folder or URI written by predict, evaluate, train or explain; two predictions are "
                "compared",
                nargs="+",
            ),
            _text(
                "--out",
                "FILE",
                "HTML file to write; default: DIR/_cvbatch/report.html, for two predictions "
                "comparison.html in the second one",
            ),
            _text(
                "--evaluation",
                "DIR",
                "evaluation of these predictions, whose metrics are added to the report; default: "
                "none",
            ),
            _text(
                "--truth",
                "DIR",
                "labelled Parquet to compare the predictions with, image by image; can be "
                "repeated; default: none",
                action="append",
                default=[],
            ),
            _JSON,
            _LOG,
        ),
    ),
    "demo": Command(
        "generate a small image archive, run batch inference on it and draw the predictions",
        (
            _text("--out", "DIR", "folder to write; default: %(default)s", default="demo-out"),
            _text(
                "--images",
                "N",
                "number of images to generate; default: %(default)s",
                type=int,
                default=48,
            ),
            _JSON,
            _LOG,
        ),
    ),
    "init": Command(
        "write a short job file with comments, to start from",
        (
            _KIND,
            _text(
                "file",
                "FILE",
                "job file to write, with its schema for editors next to it; default: print it",
                nargs="?",
            ),
        ),
    ),
    "schema": Command("print the JSON Schema of a kind of job file", (_KIND,)),
    "completion": Command(
        "print the completion script of a shell",
        (
            _text(
                "shell",
                "SHELL",
                f"one of {', '.join(shtab.SUPPORTED_SHELLS)}",
                choices=shtab.SUPPORTED_SHELLS,
            ),
        ),
    ),
    "models": Command(
        "list the built-in networks, or show the layers, parameters and memory of one",
        (
            _text("name", "NAME", "built-in network, or path or URI of a .keras file", nargs="?"),
            Argument(
                "--image-size",
                {
                    "metavar": ("H", "W"),
                    "nargs": 2,
                    "type": _count,
                    "help": "input height and width in pixels; default: those of the network",
                },
            ),
            _text("--classes", "N", "number of classes; default: that of the network", type=_count),
            _BUILD,
            _text(
                "--batch",
                "N",
                "also show the memory that a batch of N images needs; default: do not show it",
                type=_count,
            ),
            _switch("--json", "print the table as JSON on stdout"),
        ),
    ),
}


_MISSING = "the following arguments are required: "  # of argparse


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one sentence, with the closest name that it knows."""

    def error(self, message: str) -> NoReturn:
        """Write one sentence as the last line and exit with status 2."""
        sentence = message.removeprefix("argument ")
        if sentence.startswith(_MISSING):
            sentence = f"{sentence.removeprefix(_MISSING)} missing"
        help_ = "" if sentence.endswith("?") else f"; see {self.prog} --help"
        sys.exit(write_last_line(CommandResult(f"{self.prog}: {sentence}{help_}", 2)))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments; each command refuses those that it does not know."""
        values, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown[0]))
        return values, unknown

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return (
                f"{argument!r} is one argument too many; put quotes around a value with spaces, "
                "and the images or labels before the options"
            )
        name = argument.partition("=")[0]
        known = [option for option in self._option_string_actions if option.startswith("--")]
        short = [option for option in known if option[1:].startswith(name)]
        question = did_you_mean(short or closest_names(name, known, 3))
        return f"{name} is no option of {self.prog}{question and f'; {question}'}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(
                action, f"{value!r} is unknown; {hint(str(value), action.choices)}"
            )


def requested_log(argv: Sequence[str] | None) -> str:
    """Return the value of `--log`, also of a command line with errors: text or json."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--log")
    try:
        return "json" if parser.parse_known_args(argv)[0].log == "json" else "text"
    except argparse.ArgumentError:  # the value is missing
        return "text"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the `cvbatch` command; its result has the attribute `command`."""
    parser = _Parser(
        prog="cvbatch",
        description="Distributed batch inference, training and evaluation of Keras vision models "
        "with Ray: image archives in, Parquet out.",
        epilog="Use `cvbatch COMMAND --help` for the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"cvbatch {__version__}")
    shtab.add_argument_to(
        parser, "--print-completion", help="print the completion script of a shell"
    )
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", dest="command"
    )
    for name, command in COMMANDS.items():
        _add_parser(commands, name, command.purpose, command.arguments)
    _add_formats(
        commands,
        "import",
        "convert labelled images (class folders, CSV, Pascal VOC, COCO, YOLO, masks) or "
        "pseudo-labels to Parquet",
        {name: (meaning, _import_arguments(name)) for name, meaning in FORMAT_DESCRIPTIONS.items()},
    )
    _add_formats(
        commands,
        "export",
        "convert predictions or labels to COCO, Pascal VOC, YOLO or FiftyOne",
        {name: (meaning, _export_arguments(name)) for name, meaning in EXPORT_DESCRIPTIONS.items()},
    )
    return parser


def _add_parser(commands: Any, name: str, purpose: str, arguments: Iterable[Argument]) -> None:
    parser = commands.add_parser(name, help=purpose, description=purpose)
    for argument in arguments:
        parser.add_argument(argument.name, **argument.keywords)


def _add_formats(
    commands: Any,
    name: str,
    purpose: str,
    formats: Mapping[str, tuple[str, Iterable[Argument]]],
) -> None:
    """Add a command that has one subcommand per file format."""
    parser = commands.add_parser(name, help=purpose, description=purpose)
    subcommands = parser.add_subparsers(
        title="formats", required=True, metavar="FORMAT", dest="format"
    )
    for format_, (meaning, arguments) in formats.items():
        _add_parser(subcommands, format_, meaning, arguments)


def _import_arguments(format_: str) -> list[Argument]:
    return [
        _text("source", "SRC", "folder or URI of the data set"),
        _text("sink", "DST", "empty folder or URI for the Parquet files"),
        *(Argument(flag.name, flag.options) for flag in format_flags(format_)),
        _switch("--overwrite", "replace labelled data in DST; default: refuse such a DST"),
        _JSON,
        _LOG,
    ]


def _export_arguments(format_: str) -> list[Argument]:
    return [
        _text("source", "DIR", "sink of `cvbatch predict` or `cvbatch import`, a folder or URI"),
        _text("sink", "DST", "empty folder or URI for the exported files"),
        *(Argument(flag.name, flag.options) for flag in FLAGS if format_ in flag.formats),
        _switch("--overwrite", "replace an export in DST; default: refuse such a DST"),
        _JSON,
        _LOG,
    ]
