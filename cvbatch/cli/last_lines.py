"""The last line of a prediction, and its exit status."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING

from cvbatch.core.json_log import CommandResult

if TYPE_CHECKING:
    from cvbatch.predict.summary import Summary

TOO_MANY_FAILED = 3


def next_command(*words: str) -> str:
    """Return the end of a last line: the command to run next."""
    return f"; next: cvbatch {shlex.join(words)}"


def prediction_result(summary: Summary) -> CommandResult:
    """Return the last line and the exit status of a prediction job that was not interrupted."""
    if not summary.num_chunks:
        return _nothing_to_do(summary)
    done = (
        f"cvbatch: done, {summary.num_images:,} images into {summary.sink}, "
        f"{summary.num_failed:,} failed{summary.changes}"
    )
    if not summary.is_over_failure_limit:
        return CommandResult(f"{done}{next_command('report', summary.sink)}", 0)
    kinds = ", ".join(f"{kind} {count}" for kind, count in summary.failures.most_common(5))
    if not summary.num_chunks_left:
        return CommandResult(
            f"{done}, more than run.max_failure_fraction allows ({kinds}); check the rows with "
            "status = 'failed', fix the images, and run with --retry-failed, or accept them with "
            f"--set run.max_failure_fraction={_accepted(summary):g}",
            TOO_MANY_FAILED,
        )
    return CommandResult(
        f"cvbatch: stopped early, {summary.num_failed:,} of {summary.num_images:,} images failed, "
        f"more than run.max_failure_fraction allows for all {summary.num_planned:,} ({kinds}); "
        "check the rows with status = 'failed', fix the images or raise run.max_failure_fraction, "
        "and run with --retry-failed; without it, only the remaining "
        f"{summary.num_chunks_left:,} chunks are processed",
        TOO_MANY_FAILED,
    )


def _accepted(summary: Summary) -> float:
    """Return the smallest limit, in whole percent, that allows the failed images of the run."""
    return math.ceil(100 * summary.num_failed / summary.num_images) / 100


def _nothing_to_do(summary: Summary) -> CommandResult:
    """Return the status of the previous run: a repeated job must not hide its failures."""
    line = (
        f"cvbatch: nothing to do, all {summary.num_chunks_before} chunks are in {summary.sink}"
        f"{summary.changes}"
    )
    if not summary.before or not summary.is_over_failure_limit:
        return CommandResult(line, 0)
    num_images, num_failed = summary.before
    return CommandResult(
        f"{line}; in the previous run {num_failed:,} of {num_images:,} images failed, more than "
        "run.max_failure_fraction allows; fix the images and run with --retry-failed, or raise "
        "run.max_failure_fraction",
        TOO_MANY_FAILED,
    )
