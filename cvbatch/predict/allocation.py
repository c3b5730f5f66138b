"""Choose the execution mode of a prediction and its number of actors."""

from __future__ import annotations

import math

from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ConfigError
from cvbatch.distributed.resources import Allocation, Resources
from cvbatch.sources.formats import INPUT_FORMATS


def choose_allocation(
    job: JobConfig, source_format: str, resources: Resources, num_chunks: int
) -> Allocation:
    """Return the wiring for a job: streaming where there are GPUs, fused where not.

    A file that is read sequentially (a tar) is one chunk of unknown length, which may not fit the
    memory decoded: a job over such files is always fused. One
    that cuts images is fused unless streaming is asked for: between tasks all tiles of a chunk
    would lie in memory, and with many tiles to an image decoding does not hold a GPU up.

    Raises:
        ConfigError: the cluster lacks what the job asks for.
    """
    run = job.run
    input_format = INPUT_FORMATS[source_format]
    gpus = run.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if resources.num_gpus >= 1 else resources.num_gpus
    arrangement = run.arrangement
    if arrangement == "auto":
        is_bounded = not input_format.is_sequential and not job.has_tiles
        is_streaming = resources.num_gpus > 0 and is_bounded
        arrangement = "streaming" if is_streaming else "fused"
    if arrangement == "streaming" and input_format.is_sequential:
        raise ConfigError(
            f"run.arrangement: streaming cannot take {input_format.noun}s; say fused or auto"
        )
    room = resources.room_for(run.cpus_per_actor, gpus)
    if arrangement == "streaming":  # a CPU reads and writes
        room = min(room, math.floor((resources.num_cpus - 1) / run.cpus_per_actor + 1e-9))
    wanted = run.actors or room
    if room < 1 or wanted > room:
        raise ConfigError(
            f"run.actors: {max(wanted, 1)} with {run.cpus_per_actor:g} CPU and {gpus:g} GPU each "
            f"({arrangement}) do not fit a cluster of {resources.num_cpus:g} CPU and "
            f"{resources.num_gpus:g} GPU; {max(room, 0)} would"
            + ("" if room or not gpus else _without_gpus(resources))
        )
    most = max(1, min(run.actors or num_chunks, num_chunks))
    return Allocation(arrangement, min(wanted, most), run.cpus_per_actor, gpus, max_actors=most)


def _without_gpus(resources: Resources) -> str:
    if not resources.num_gpus:
        return ": start nodes with GPUs, or say run.gpus_per_actor: 0"
    return ": each needs its CPUs and GPUs on one node"
