"""Benchmark job: cvbatch's own command on one workload.

Run: python -m benchmarks.cvbatch_job --folder DIR --out DIR --work NAME --images N --chunk N
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.settings import CORES, job_of
from benchmarks.stamps import Event, print_summary
from cvbatch.cli.main import main as cvbatch_main


def part_events(sink: Path) -> list[Event]:
    """Return the time of each part file and its number of rows.

    A file does not record its actor. The first files, one per actor, count as the actors' first
    units.
    """
    import pyarrow.parquet as pq  # after the command, whose own imports are measured

    parts = [
        (path.stat().st_mtime_ns / 1e9, pq.read_metadata(path).num_rows)
        for path in sink.glob("part-*.parquet")
    ]
    return [(when, rows, min(i, CORES - 1)) for i, (when, rows) in enumerate(sorted(parts))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--chunk", type=int, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sink = arguments.out / "result"
    job = job_of(arguments.folder, arguments.work, arguments.images, arguments.chunk, str(sink))
    config = arguments.out / "job.yaml"
    config.write_text(json.dumps(job))  # JSON is YAML
    status = cvbatch_main(["predict", "--config", str(config), "--json"])
    if status:
        raise SystemExit(status)
    events = part_events(sink)
    print_summary(events, sum(rows for _, rows, _ in events))


if __name__ == "__main__":
    main()
