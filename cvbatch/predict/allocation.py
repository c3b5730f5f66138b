"""Choose the execution mode of a prediction (fused or streaming) and its number of actors."""

from __future__ import annotations

import math

from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ConfigError
from cvbatch.distributed.resources import Allocation, Resources
from cvbatch.sources.formats import INPUT_FORMATS


def choose_allocation(
    job: JobConfig, source_format: str, resources: Resources, num_chunks: int
) -> Allocation:
    """Return the allocation of a job: streaming if there are GPUs, otherwise fused.

    A job whose files are read sequentially (tar) is always fused: such a file is one chunk of
    unknown length, and streaming decodes a chunk as a whole into memory. A job with tiles is fused
    unless streaming is set: all tiles of a chunk would be in memory between tasks, and with many
    tiles per image decoding does not keep a GPU waiting.

    Args:
        source_format: a key of INPUT_FORMATS.
        resources: of the cluster.
        num_chunks: pending chunks; there are no more actors than that.

    Raises:
        ConfigError: the cluster does not have the resources that the job sets.
    """
    run = job.run
    gpus = run.gpus_per_actor
    if gpus is None and job.computes_on_cpus:
        gpus = 0.0
    elif gpus is None:
        gpus = 1.0 if resources.num_gpus >= 1 else resources.num_gpus
    arrangement = _choose_arrangement(job, source_format, resources)
    capacity = resources.actors_that_fit(run.cpus_per_actor, gpus)
    if arrangement == "streaming":  # one CPU reads and writes
        num_cpus = resources.num_cpus - 1
        capacity = min(capacity, math.floor(num_cpus / run.cpus_per_actor + 1e-9))
    num_actors = run.actors or capacity
    if capacity < 1 or num_actors > capacity:
        raise ConfigError(
            f"run.actors: {max(num_actors, 1)} with {run.cpus_per_actor:g} CPU and {gpus:g} GPU "
            f"each ({arrangement}) do not fit a cluster of {resources.num_cpus:g} CPU and "
            f"{resources.num_gpus:g} GPU; {max(capacity, 0)} would"
            + ("" if capacity or not gpus else _gpu_remedy(resources))
        )
    max_actors = max(1, min(run.actors or num_chunks, num_chunks))
    return Allocation(
        arrangement,
        min(num_actors, max_actors),
        run.cpus_per_actor,
        gpus,
        max_actors=max_actors,
    )


def _choose_arrangement(job: JobConfig, source_format: str, resources: Resources) -> str:
    input_format = INPUT_FORMATS[source_format]
    arrangement = job.run.arrangement
    if arrangement == "auto":
        is_bounded = not input_format.is_sequential and not job.has_tiles
        uses_gpus = resources.num_gpus > 0 and not job.computes_on_cpus
        return "streaming" if uses_gpus and is_bounded else "fused"
    if arrangement == "streaming" and input_format.is_sequential:
        raise ConfigError(
            f"run.arrangement: streaming cannot take {input_format.noun}s; use fused or auto"
        )
    return arrangement


def _gpu_remedy(resources: Resources) -> str:
    if not resources.num_gpus:
        return ": start nodes with GPUs, or set run.gpus_per_actor: 0"
    return ": each needs its CPUs and GPUs on one node"
