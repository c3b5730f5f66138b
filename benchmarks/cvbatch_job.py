"""cvbatch's own command on one work, as a user runs it.

Run: python -m benchmarks.cvbatch_job --folder DIR --out DIR --work NAME --images N --chunk N
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.settings import CORES, job_of
from benchmarks.stamps import Event, tell
from cvbatch.cli.main import main as cvbatch_main


def part_events(sink: Path) -> list[Event]:
    """Return when each part file was there and what it holds.

    A file does not say whose it is: the first ones, as many as there are actors, are taken for
    the actors' firsts.
    """
    import pyarrow.parquet as pq  # only now: the command imports what it needs itself

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
    tell(events, sum(rows for _, rows, _ in events))


if __name__ == "__main__":
    main()
