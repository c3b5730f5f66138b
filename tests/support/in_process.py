"""Run a prediction job in this process: the steps of a worker without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cvbatch.config.loader import parse_job
from cvbatch.core.types import ChunkReport
from cvbatch.distributed.resources import local_resources
from cvbatch.inference import builder
from cvbatch.inference.programs import build_requests, program_uri
from cvbatch.predict.job import commit, prepare, samples_of
from cvbatch.predict.steps import FusedWorker, PredictSpec
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage
from tests.support.jobs import RecordingListener


def predict_in_process(
    source: Path, sink: Path, models: list[dict[str, Any]], **run: Any
) -> tuple[PredictSpec, list[ChunkReport]]:
    """Return what the workers received, and the reports of all chunks."""
    values = {"source": {"uri": str(source)}, "sink": {"uri": str(sink)}, "models": models}
    job = parse_job({**values, "run": {"batch_size": 4, "engine": "litert", **run}})
    with Sink(Storage(), job.sink.uri, "predict", print) as opened:
        ready = prepare(job, opened, RecordingListener(), local_resources())
        requests = build_requests(job, ready.identities, ready.engine)
        uris = [program_uri(opened.uri, request) for request in requests]
        programs = [builder.build(Storage(), request, samples_of(ready)) for request in requests]
        opened.acquire()
        spec = commit(ready, uris, programs)
        worker = FusedWorker()
        worker.load(spec)
        return spec, [worker.work(ref, is_isolated=False) for ref in ready.plan.chunks]
