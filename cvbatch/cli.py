"""The console command: words in, a job run, an exit status and one last line that says which."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from cvbatch import __version__
from cvbatch.errors import CvbatchError
from cvbatch.jobfile import load_job

if TYPE_CHECKING:
    from cvbatch.run.prediction import Summary

TOO_MANY_FAILED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 stopped midway, 2 refused, 3 failures."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except CvbatchError as error:
        goes_on = "; run the same command again to go on" if error.exit_status == 1 else ""
        return _end(f"cvbatch: {error}{goes_on}", error.exit_status)
    except KeyboardInterrupt:
        return _end("cvbatch: stopped; run the same command again to go on", 1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end(line: str, status: int) -> int:
    print(line, file=sys.stderr, flush=True)
    return status


def _parser() -> argparse.ArgumentParser:
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
    demo = commands.add_parser("demo", help="render an archive, run the job on it, draw the result")
    demo.add_argument("--out", default="demo-out", metavar="DIR", help="default: %(default)s")
    demo.add_argument("--images", type=int, default=48, metavar="N", help="default: %(default)s")
    demo.add_argument("--json", action="store_true", help="print a summary as JSON on stdout")
    demo.set_defaults(command=_demo)
    return parser


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="the job file (YAML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="replace a value of the job file, such as run.batch_size=16 or models.0.top_k=3",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a summary as JSON on stdout")


def _predict(arguments: argparse.Namespace) -> int:
    job = load_job(arguments.config, arguments.overrides)
    # Ray and pyarrow come only now: a fault in the job file is told in a moment.
    from cvbatch.run.estimate import estimate
    from cvbatch.run.prediction import predict
    from cvbatch.run.progress import listening

    with listening() as listener:
        if arguments.dry_run:
            dry = estimate(job, listener, overwrite=arguments.overwrite)
        else:
            summary = predict(
                job,
                listener,
                overwrite=arguments.overwrite,
                retry_failed=arguments.retry_failed,
            )
    if arguments.dry_run:
        print(json.dumps(dry.as_json()) if arguments.json else dry.as_text())
        return _end("cvbatch: dry run done, nothing was written", 0)
    if arguments.json:
        print(json.dumps(summary.as_json()))
    return _closing(summary)


def _closing(summary: Summary) -> int:
    """Print the last line for a job that came to its end; return its status."""
    if not summary.num_chunks:
        return _end(
            f"cvbatch: nothing to do, all {summary.num_chunks_before} chunks are in {summary.sink}",
            0,
        )
    done = (
        f"cvbatch: done, {summary.num_images:,} images into {summary.sink}, "
        f"{summary.num_failed:,} failed"
    )
    if not summary.is_over_failure_limit:
        return _end(done, 0)
    kinds = ", ".join(f"{kind} {count}" for kind, count in summary.failures.most_common(5))
    return _end(
        f"{done}: more than run.max_failure_fraction allows ({kinds}); look at the rows with "
        "status = 'failed', then mend the images and run again with --retry-failed",
        TOO_MANY_FAILED,
    )


def _demo(arguments: argparse.Namespace) -> int:
    from cvbatch.demo.run import run_demo
    from cvbatch.run.progress import listening

    with listening() as listener:
        shown = run_demo(arguments.out, arguments.images, listener)
    if arguments.json:
        print(json.dumps(shown.as_json()))
    else:
        print(shown.as_text())
    return _closing(shown.summary)


if __name__ == "__main__":
    sys.exit(main())
