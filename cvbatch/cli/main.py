"""The console command: words in, a job run, an exit status and one last line that says which."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from cvbatch.config.evaluate import load_evaluation
from cvbatch.config.explain import load_explanation
from cvbatch.config.loader import load_job, parse_options
from cvbatch.config.train import load_training
from cvbatch.core import signals
from cvbatch.core.errors import ConfigError, CvbatchError
from cvbatch.core.json_log import CommandResult, log_format, new_run_id, write_last_line
from cvbatch.core.redaction import redact
from cvbatch.core.version import __version__
from cvbatch.exporters.options import EXPORT_DESCRIPTIONS, FLAGS, ExportOptions
from cvbatch.importers.flags import FORMAT_DESCRIPTIONS, chosen_actions, format_flags

if TYPE_CHECKING:
    from cvbatch.cli.model_listing import Table
    from cvbatch.predict.summary import Summary

TOO_MANY_FAILED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 stopped midway, 2 refused, 3 failures."""
    arguments = build_parser().parse_args(argv)
    arguments.run = new_run_id()
    signals.install_signal_handlers()
    with log_format(getattr(arguments, "log", "text"), arguments.run):
        try:
            command: Callable[[argparse.Namespace], CommandResult] = arguments.command
            return write_last_line(command(arguments))
        except CvbatchError as error:
            goes_on = "; run the same command again to go on" if error.exit_status == 1 else ""
            return write_last_line(
                CommandResult(redact(f"cvbatch: {error}{goes_on}"), error.exit_status)
            )
        except (KeyboardInterrupt, SystemExit):  # Ray, while it starts, has handlers that exit
            goes_on = "cvbatch: stopped; run the same command again to go on"
            signals.kill_children_and_exit(write_last_line(CommandResult(goes_on, 1)))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cvbatch", description="Keras vision models over image archives, into Parquet."
    )
    parser.add_argument("--version", action="version", version=f"cvbatch {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    predict = commands.add_parser("predict", help="run a job's models over its images")
    _add_job(predict)
    predict.add_argument("--dry-run", action="store_true", help="plan and estimate; write nothing")
    predict.add_argument(
        "--overwrite", action="store_true", help="replace another job's result in the sink"
    )
    predict.add_argument(
        "--retry-failed", action="store_true", help="do chunks with failed rows again"
    )
    predict.set_defaults(command=_predict)
    train = commands.add_parser("train", help="teach a network the user's own labelled images")
    _add_job(train)
    train.add_argument(
        "--overwrite", action="store_true", help="begin anew, whatever training the sink holds"
    )
    train.add_argument(
        "--resume", action="store_true", help="go on with a run, and refuse to begin one"
    )
    train.set_defaults(command=_train)
    evaluate = commands.add_parser("evaluate", help="hold predictions against ground truth")
    _add_job(evaluate)
    evaluate.add_argument(
        "--overwrite", action="store_true", help="replace another evaluation in the sink"
    )
    evaluate.set_defaults(command=_evaluate)
    explain = commands.add_parser(
        "explain", help="show what a network's layers see, and why it says what it says"
    )
    _add_job(explain)
    explain.add_argument(
        "--overwrite", action="store_true", help="replace another explanation in the sink"
    )
    explain.set_defaults(command=_explain)
    _add_report(commands.add_parser("report", help="write one HTML page over a result"))
    demo = commands.add_parser("demo", help="render an archive, run the job on it, draw the result")
    demo.add_argument("--out", default="demo-out", metavar="DIR", help="default: %(default)s")
    demo.add_argument("--images", type=int, default=48, metavar="N", help="default: %(default)s")
    demo.add_argument("--json", action="store_true", help="print a summary as JSON on stdout")
    demo.set_defaults(command=_demo)
    models = commands.add_parser("models", help="list the networks, or show one layer by layer")
    models.add_argument(
        "name", nargs="?", metavar="NAME", help="a network, or the path or URI of a .keras file"
    )
    models.add_argument(
        "--image-size", nargs=2, type=_count, metavar=("H", "W"), help="in pixels; default: its own"
    )
    models.add_argument("--classes", type=_count, metavar="N", help="default: its own")
    models.add_argument(
        "--build", action="append", default=[], metavar="KEY=VALUE",
        help="an option of the network, such as width=16 or backbone=ResNet50",
    )  # fmt: skip
    models.add_argument("--batch", type=_count, metavar="N", help="say what a batch of N takes")
    models.add_argument("--json", action="store_true", help="print it as JSON on stdout")
    models.set_defaults(command=_models)
    _add_import(commands.add_parser("import", help="turn labelled images into Parquet"))
    _add_export(commands.add_parser("export", help="turn a result into another tool's format"))
    return parser


def _count(text: str) -> int:
    """Return a number of at least 1, as argparse wants to be told."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _add_import(parser: argparse.ArgumentParser) -> None:
    formats = parser.add_subparsers(title="formats", required=True, metavar="FORMAT")
    for name, meaning in FORMAT_DESCRIPTIONS.items():
        one = formats.add_parser(name, help=meaning, description=meaning)
        one.add_argument("source", metavar="SRC", help="a folder, here or in a store")
        one.add_argument("sink", metavar="DST", help="where the Parquet goes: an empty folder")
        for flag in format_flags(name):
            one.add_argument(flag.name, **flag.options)
        one.add_argument("--overwrite", action="store_true", help="replace labelled data in DST")
        one.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
        one.set_defaults(command=_import, format=name)


def _add_export(parser: argparse.ArgumentParser) -> None:
    formats = parser.add_subparsers(title="formats", required=True, metavar="FORMAT")
    for name, meaning in EXPORT_DESCRIPTIONS.items():
        one = formats.add_parser(name, help=meaning, description=meaning)
        one.add_argument("source", metavar="DIR", help="the sink of `cvbatch predict`")
        one.add_argument("sink", metavar="DST", help="an empty folder, here or in a store")
        for flag in FLAGS:
            if name in flag.formats:
                one.add_argument(flag.name, **flag.options)
        one.add_argument("--overwrite", action="store_true", help="replace an export in DST")
        one.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
        one.set_defaults(command=_export, format=name)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="DIR", help="the sink of a predict, evaluate or train, here or in a store"
    )
    parser.add_argument("--out", metavar="FILE", help="default: DIR/_cvbatch/report.html")
    parser.add_argument(
        "--evaluation", metavar="DIR", help="of a prediction: its evaluation, shown beside it"
    )
    parser.add_argument(
        "--truth", action="append", default=[], metavar="DIR",
        help="of a prediction: labelled Parquet; images that differ most from it are shown",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(command=_report)


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="the job file (YAML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="replace a value of the job file, such as run.batch_size=16 or models.0.top_k=3",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a summary as JSON on stdout")
    parser.add_argument(
        "--log", choices=("text", "json"), default="text",
        help="what stderr is: lines for people, or one JSON object a line; default: %(default)s",
    )  # fmt: skip


def _predict(arguments: argparse.Namespace) -> CommandResult:
    job = load_job(arguments.config, arguments.overrides)
    # Ray and pyarrow come only now: a fault in the job file is told in a moment.
    from cvbatch.core.progress import progress_listener
    from cvbatch.predict.dry_run import estimate
    from cvbatch.predict.job import predict

    with progress_listener() as listener:
        if arguments.dry_run:
            dry = estimate(job, listener, overwrite=arguments.overwrite)
        else:
            summary = predict(
                job,
                listener,
                run=arguments.run,
                overwrite=arguments.overwrite,
                retry_failed=arguments.retry_failed,
            )
    if arguments.dry_run:
        print(json.dumps(dry.as_json()) if arguments.json else dry.as_text())
        return CommandResult("cvbatch: dry run done, nothing was written", 0)
    if arguments.json:
        print(json.dumps(summary.as_json()))
    return _closing(summary)


def _closing(summary: Summary) -> CommandResult:
    """Return how a job ends that was done to its end."""
    if not summary.num_chunks:
        told = (
            f"cvbatch: nothing to do, all {summary.num_chunks_before} chunks are in {summary.sink}"
            f"{summary.changes}"
        )
        if not summary.before or not summary.is_over_failure_limit:
            return CommandResult(told, 0)
        num_images, num_failed = summary.before
        return CommandResult(
            f"{told}; of the run before, {num_failed:,} of {num_images:,} images failed: more than "
            "run.max_failure_fraction allows; mend the images and run again with --retry-failed, "
            "or allow more",
            TOO_MANY_FAILED,
        )
    done = (
        f"cvbatch: done, {summary.num_images:,} images into {summary.sink}, "
        f"{summary.num_failed:,} failed{summary.changes}"
    )
    if not summary.is_over_failure_limit:
        return CommandResult(done, 0)
    kinds = ", ".join(f"{kind} {count}" for kind, count in summary.failures.most_common(5))
    if summary.num_chunks_left:
        return CommandResult(
            f"cvbatch: stopped early, {summary.num_failed:,} of {summary.num_images:,} images "
            f"failed: more than run.max_failure_fraction allows for all {summary.num_planned:,} "
            f"({kinds}); look at the rows with status = 'failed', then mend the images, or allow "
            "more, and run again with --retry-failed; without it only the "
            f"{summary.num_chunks_left:,} chunks left are done",
            TOO_MANY_FAILED,
        )
    return CommandResult(
        f"{done}: more than run.max_failure_fraction allows ({kinds}); look at the rows with "
        "status = 'failed', then mend the images and run again with --retry-failed",
        TOO_MANY_FAILED,
    )


def _train(arguments: argparse.Namespace) -> CommandResult:
    job = load_training(arguments.config, arguments.overrides)
    from cvbatch.core.progress import progress_listener
    from cvbatch.train.job import train

    with progress_listener() as listener:
        summary = train(job, listener, overwrite=arguments.overwrite, resume=arguments.resume)
    if arguments.json:
        print(json.dumps(summary.as_json()))
    done = f"{summary.epochs} epochs into {summary.sink}, {summary.summary_line()}"
    return CommandResult(f"cvbatch: {'done' if summary.is_new else 'nothing to do'}, {done}", 0)


def _evaluate(arguments: argparse.Namespace) -> CommandResult:
    job = load_evaluation(arguments.config, arguments.overrides)
    from cvbatch.cli.model_listing import Table
    from cvbatch.core.progress import progress_listener
    from cvbatch.evaluate.job import evaluate

    with progress_listener() as listener:
        summary = evaluate(job, listener, overwrite=arguments.overwrite)
    if arguments.json:
        print(json.dumps(summary.as_json()))
    else:
        _show(Table(("task", "metric", "value", "95 % interval", "count"), summary.rows(), 2))
    done = f"{summary.images['images']:,} images compared into {summary.sink}"
    return CommandResult(f"cvbatch: {'done' if summary.is_new else 'nothing to do'}, {done}", 0)


def _explain(arguments: argparse.Namespace) -> CommandResult:
    job = load_explanation(arguments.config, arguments.overrides)
    from cvbatch.core.progress import progress_listener
    from cvbatch.explain.job import explain

    with progress_listener() as listener:
        summary = explain(job, listener, overwrite=arguments.overwrite)
    if arguments.json:
        print(json.dumps(summary.as_json()))
    if not summary.is_over_failure_limit:
        return CommandResult(f"cvbatch: {summary.summary_line()}", 0)
    return CommandResult(
        f"cvbatch: {summary.summary_line()}; more images failed than run.max_failure_fraction allows; look "
        "at the rows with status = 'failed', fix the images, and run again with --overwrite",
        TOO_MANY_FAILED,
    )


def _report(arguments: argparse.Namespace) -> CommandResult:
    from cvbatch.report.job import write_report

    done = write_report(arguments.source, arguments.out, arguments.evaluation, arguments.truth)
    if arguments.json:
        print(json.dumps(done.as_json()))
    for note in done.notes:
        print(redact(f"cvbatch: {note}"), file=sys.stderr)
    return CommandResult(f"cvbatch: done, {done.num_bytes / 1e6:,.1f} MB into {done.report}", 0)


def _demo(arguments: argparse.Namespace) -> CommandResult:
    from cvbatch.core.progress import progress_listener
    from cvbatch.demo.job import run_demo

    with progress_listener() as listener:
        shown = run_demo(arguments.out, arguments.images, listener)
    if arguments.json:
        print(json.dumps(shown.as_json()))
    else:
        print(shown.as_text())
    return _closing(shown.summary)


def _models(arguments: argparse.Namespace) -> CommandResult:
    if arguments.name is None:
        return _list_models(arguments)
    from cvbatch.cli import model_listing

    size = tuple(arguments.image_size) if arguments.image_size else None
    options = parse_options(arguments.build)
    cost = model_listing.describe_network(arguments.name, arguments.classes, size, options)
    if arguments.json:
        batch = (
            {"batch": model_listing.batch_bytes(cost, arguments.batch)} if arguments.batch else {}
        )
        print(json.dumps({"name": arguments.name, **cost.as_json(), **batch}))
    else:
        _show(model_listing.layer_table(cost))
        print(model_listing.totals_text(cost, arguments.batch))
    return CommandResult(f"cvbatch: {arguments.name}, {len(cost.layers)} layers", 0)


def _list_models(arguments: argparse.Namespace) -> CommandResult:
    from cvbatch.cli import model_listing
    from cvbatch.models.zoo_table import read_summaries

    if arguments.image_size or arguments.classes or arguments.build or arguments.batch:
        raise ConfigError(
            "--image-size, --classes, --build and --batch are about one network: name it"
        )
    networks = read_summaries()
    if arguments.json:
        print(json.dumps([asdict(network) for network in networks]))
    else:
        _show(model_listing.zoo_table(networks))
    return CommandResult(f"cvbatch: {len(networks)} networks; cvbatch models NAME shows one", 0)


def _import(arguments: argparse.Namespace) -> CommandResult:
    from cvbatch.importers.job import import_labels
    from cvbatch.importers.options import parse_import_options

    said = vars(arguments)
    report = import_labels(
        arguments.format,
        arguments.source,
        arguments.sink,
        parse_import_options(said),
        chosen_actions(said),
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(report.as_json()) if arguments.json else report.as_text())
    return CommandResult(f"cvbatch: done, {report.num_written:,} images into {arguments.sink}", 0)


def _export(arguments: argparse.Namespace) -> CommandResult:
    options = ExportOptions.of(vars(arguments))
    from cvbatch.exporters.job import export

    report = export(
        arguments.format,
        arguments.source,
        arguments.sink,
        options,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(report.as_json()) if arguments.json else report.as_text())
    failed = f", {report.failures.total():,} failed" if report.failures else ""
    return CommandResult(
        f"cvbatch: done, {report.num_images:,} images into {arguments.sink}{failed}", 0
    )


def _show(table: Table) -> None:
    """Print a table in the form that suits stdout."""
    if not sys.stdout.isatty():
        print(table.as_text())
        return
    from rich.console import Console

    Console().print(table.as_rich())
