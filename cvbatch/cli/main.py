"""Command line: parse the arguments, run the command, print its last line, return its status.

Ray, TensorFlow and pyarrow are imported inside the commands, so that an invalid job file is
reported at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shtab

from cvbatch.cli import job_files
from cvbatch.cli.arguments import build_parser, requested_log
from cvbatch.cli.job_files import JOB_KINDS
from cvbatch.cli.last_lines import TOO_MANY_FAILED, next_command, prediction_result
from cvbatch.config.loader import parse, parse_options
from cvbatch.core import signals
from cvbatch.core.errors import ConfigError, CvbatchError
from cvbatch.core.json_log import (
    CommandResult,
    JsonLog,
    log_format,
    new_run_id,
    write_last_line,
)
from cvbatch.core.progress import Listener, progress_listener
from cvbatch.core.redaction import redact
from cvbatch.exporters.options import ExportOptions
from cvbatch.importers.flags import chosen_actions

if TYPE_CHECKING:
    from cvbatch.cli.model_listing import Table
    from cvbatch.config.evaluate import EvaluateJob
    from cvbatch.config.explain import ExplainJob
    from cvbatch.config.predict import JobConfig
    from cvbatch.config.train import TrainJob
    from cvbatch.evaluate.job import EvaluationSummary
    from cvbatch.explain.job import ExplainSummary
    from cvbatch.predict.dry_run import Estimate
    from cvbatch.predict.summary import Summary
    from cvbatch.train.job import TrainSummary

_CLEAR_LINE, _SHOW_CURSOR = "\r\x1b[2K", "\x1b[?25h"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0 done, 1 interrupted, 2 refused, 3 more failed images than allowed.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as `>&-` of a shell does
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    with _may_stop_reading():
        return _run_command(argv)
    return 0


@contextmanager
def _may_stop_reading() -> Iterator[None]:
    """Write stdout to its end, or until what reads it has ended, such as `head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_command(argv: Sequence[str] | None) -> int:
    """Run a command and write its last line; return the exit status."""
    signals.install_signal_handlers(_print_hint, _print_interrupted)
    run = new_run_id()
    form = requested_log(argv)
    with log_format(form, run):
        arguments = build_parser().parse_args(argv)
        arguments.run = run
        if form == "json":
            arguments.json = True
        try:
            result = _COMMANDS[arguments.command](arguments)
            sys.stdout.flush()
            return write_last_line(result)
        except CvbatchError as error:
            remedy = "; run the same command to resume" if error.exit_status == 1 else ""
            return write_last_line(
                CommandResult(redact(f"cvbatch: {error}{remedy}"), error.exit_status)
            )
        except (KeyboardInterrupt, SystemExit):  # Ray's signal handlers exit while it starts
            signals.kill_children_and_exit(_print_interrupted)


def _print_hint() -> None:
    """Print on a terminal what a second Ctrl-C does."""
    if sys.stderr.isatty():
        print("stopping; press Ctrl-C again to end at once", file=sys.stderr)


def _print_interrupted() -> None:
    sys.stdout.flush()
    if not isinstance(sys.stderr, JsonLog) and sys.__stderr__ and sys.__stderr__.isatty():
        sys.stderr = sys.__stderr__  # a progress bar may have replaced it
        print(f"{_CLEAR_LINE}{_SHOW_CURSOR}", end="", file=sys.stderr)
    write_last_line(CommandResult("cvbatch: interrupted; run the same command to resume", 1))


def _run_job(arguments: argparse.Namespace, run: Callable[[Any, Listener], Any]) -> tuple[Any, Any]:
    """Run the job of a command; print its summary as JSON if that is asked for, and store the job.

    Args:
        arguments: of the command.
        run: function of (job, listener) that returns the summary. It imports what it needs, so that
            an invalid job is reported at once.

    Returns:
        The job and its summary.
    """
    command = arguments.command
    file = job_files.read_job(command, arguments)
    job = parse(JOB_KINDS[command], file.values, name=file.name)
    with progress_listener() as listener:
        for note in file.notes:
            listener.info(note)
        summary = run(job, listener)
    if arguments.json:
        print(json.dumps(summary.as_json()))
    if not getattr(arguments, "dry_run", False) and summary.is_new:
        job_files.write_job(command, job.sink.uri, file)
    return job, summary


def _predict(arguments: argparse.Namespace) -> CommandResult:
    if arguments.dry_run:
        return _dry_run(arguments)

    def run(job: JobConfig, listener: Listener) -> Summary:
        from cvbatch.predict.job import predict

        overwrite, retry_failed = arguments.overwrite, arguments.retry_failed
        return predict(
            job, listener, run=arguments.run, overwrite=overwrite, retry_failed=retry_failed
        )

    return prediction_result(_run_job(arguments, run)[1])


def _dry_run(arguments: argparse.Namespace) -> CommandResult:
    def run(job: JobConfig, listener: Listener) -> Estimate:
        from cvbatch.predict.dry_run import estimate

        return estimate(job, listener, overwrite=arguments.overwrite)

    _, dry = _run_job(arguments, run)
    if not arguments.json:
        print(dry.as_text())
    return CommandResult("cvbatch: dry run done, nothing was written", 0)


def _train(arguments: argparse.Namespace) -> CommandResult:
    def run(job: TrainJob, listener: Listener) -> TrainSummary:
        from cvbatch.train.job import train

        return train(job, listener, overwrite=arguments.overwrite, resume=arguments.resume)

    job, summary = _run_job(arguments, run)
    done = f"{summary.epochs} epochs into {summary.sink}, {summary.summary_line()}"
    return CommandResult(
        f"cvbatch: {_done(summary)}, {done}{next_command('report', job.sink.uri)}", 0
    )


def _evaluate(arguments: argparse.Namespace) -> CommandResult:
    def run(job: EvaluateJob, listener: Listener) -> EvaluationSummary:
        from cvbatch.evaluate.job import evaluate

        return evaluate(job, listener, overwrite=arguments.overwrite)

    job, summary = _run_job(arguments, run)
    if not arguments.json:
        from cvbatch.cli.model_listing import Table

        _show(Table(("task", "metric", "value", "95 % interval", "count"), summary.rows(), 2))
    done = f"{summary.images['images']:,} images compared into {summary.sink}"
    done += summary.left_out_text
    report = next_command("report", job.predictions.uri, "--evaluation", job.sink.uri)
    return CommandResult(f"cvbatch: {_done(summary)}, {done}{report}", 0)


def _explain(arguments: argparse.Namespace) -> CommandResult:
    def run(job: ExplainJob, listener: Listener) -> ExplainSummary:
        from cvbatch.explain.job import explain

        return explain(job, listener, overwrite=arguments.overwrite)

    _, summary = _run_job(arguments, run)
    if not summary.is_over_failure_limit:
        return CommandResult(f"cvbatch: {summary.summary_line()}", 0)
    return CommandResult(
        f"cvbatch: {summary.summary_line()}; more images failed than run.max_failure_fraction "
        "allows; check the rows with status = 'failed', fix the images, and run with --overwrite",
        TOO_MANY_FAILED,
    )


def _done(summary: TrainSummary | EvaluationSummary) -> str:
    return "done" if summary.is_new else "nothing to do"


def _report(arguments: argparse.Namespace) -> CommandResult:
    from cvbatch.report.job import write_comparison, write_report

    first, *others = arguments.sources
    if others and (len(others) > 1 or arguments.evaluation or arguments.truth):
        raise ConfigError(
            "cvbatch report takes one folder, or two predictions to compare without --evaluation "
            "and --truth; leave the others out"
        )
    with progress_listener() as listener:
        if others:
            done = write_comparison(first, others[0], arguments.out, listener)
        else:
            done = write_report(
                first, arguments.out, arguments.evaluation, arguments.truth, listener
            )
    if arguments.json:
        print(json.dumps(done.as_json()))
    for note in done.notes:
        print(redact(f"cvbatch: {note}"), file=sys.stderr)
    line = f"cvbatch: done, {done.num_bytes / 1e6:,.1f} MB into {done.report}"
    return CommandResult(f"{line}; open it in a browser", 0)


def _demo(arguments: argparse.Namespace) -> CommandResult:
    from cvbatch.demo.job import run_demo

    with progress_listener() as listener:
        result = run_demo(arguments.out, arguments.images, listener)
    print(json.dumps(result.as_json()) if arguments.json else result.as_text())
    return prediction_result(result.summary)


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
        raise ConfigError("--image-size, --classes, --build and --batch need the NAME of a network")
    networks = read_summaries()
    if arguments.json:
        print(json.dumps([asdict(network) for network in networks]))
    else:
        _show(model_listing.zoo_table(networks))
        if presets := model_listing.hub_text():
            print(presets, file=sys.stderr)
    return CommandResult(
        f"cvbatch: {len(networks)} networks; use cvbatch models NAME to show one", 0
    )


def _import(arguments: argparse.Namespace) -> CommandResult:
    from cvbatch.importers.job import import_labels
    from cvbatch.importers.options import parse_import_options

    options = vars(arguments)
    with progress_listener() as listener:
        report = import_labels(
            arguments.format,
            arguments.source,
            arguments.sink,
            parse_import_options(options),
            chosen_actions(options),
            listener,
        )
    print(json.dumps(report.as_json()) if arguments.json else report.as_text())
    line = f"cvbatch: done, {report.num_written:,} images into {arguments.sink}"
    return CommandResult(f"{line}{report.left_out_text}", 0)


def _export(arguments: argparse.Namespace) -> CommandResult:
    options = ExportOptions.of(vars(arguments))
    from cvbatch.exporters.job import export

    with progress_listener() as listener:
        report = export(arguments.format, arguments.source, arguments.sink, options, listener)
    print(json.dumps(report.as_json()) if arguments.json else report.as_text())
    line = f"cvbatch: done, {report.num_images:,} images into {arguments.sink}"
    return CommandResult(f"{line}{report.left_out_text}", 0)


def _show(table: Table) -> None:
    """Print a table: drawn on a terminal, else as aligned text."""
    if not sys.stdout.isatty():
        print(table.as_text())
        return
    from rich.console import Console

    Console().print(table.as_rich())


def _init(arguments: argparse.Namespace) -> CommandResult:
    if arguments.file is None:
        print(job_files.template(arguments.kind), end="")
        return CommandResult(f"cvbatch: printed; cvbatch init {arguments.kind} FILE writes it", 0)
    written = job_files.init_job(arguments.kind, arguments.file)
    command = f"cvbatch {arguments.kind} --config {shlex.quote(written[0])}"
    return CommandResult(f"cvbatch: wrote {' and '.join(written)}; edit it, then: {command}", 0)


def _completion(arguments: argparse.Namespace) -> CommandResult:
    print(shtab.complete(build_parser(), arguments.shell))
    return CommandResult(f"cvbatch: completion script of {arguments.shell}", 0)


def _schema(arguments: argparse.Namespace) -> CommandResult:
    print(job_files.json_schema(arguments.kind), end="")
    return CommandResult(f"cvbatch: JSON Schema of a {arguments.kind} job file", 0)


_COMMANDS: dict[str, Callable[[argparse.Namespace], CommandResult]] = {
    "predict": _predict,
    "train": _train,
    "evaluate": _evaluate,
    "explain": _explain,
    "report": _report,
    "demo": _demo,
    "init": _init,
    "schema": _schema,
    "completion": _completion,
    "models": _models,
    "import": _import,
    "export": _export,
}
