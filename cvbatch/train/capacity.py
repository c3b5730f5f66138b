"""Whether a training fits: its workers the cluster, its steps the data, its batches the memory."""

from __future__ import annotations

from cvbatch.config.train import TrainJob
from cvbatch.core.errors import ConfigError
from cvbatch.distributed.memory import largest_batch, memory_of_each, training_need
from cvbatch.distributed.resources import Allocation, Resources
from cvbatch.train.network import BuiltNetwork


def choose_workers(job: TrainJob, resources: Resources, begun_with: int | None) -> Allocation:
    """Return how many workers there are, with what.

    begun_with: the number of a run that goes on, which keeps it; None for a new one.

    Raises:
        ConfigError: the cluster lacks what the job asks for, or the number is another.
    """
    run = job.run
    gpus = run.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if resources.num_gpus >= 1 else 0.0
    room = resources.room_for(run.cpus_per_worker, gpus)
    wanted = run.workers or begun_with or room
    if begun_with is not None and wanted != begun_with:
        raise ConfigError(
            f"run.workers: {wanted}, but the run was begun with {begun_with}, and with others "
            f"its steps would hold other images; say run.workers: {begun_with}, or --overwrite"
        )
    if room < 1 or wanted > room:
        raise ConfigError(
            f"run.workers: {max(wanted, 1)} with {run.cpus_per_worker:g} CPU and {gpus:g} GPU each "
            f"do not fit a cluster of {resources.num_cpus:g} CPU and {resources.num_gpus:g} GPU; "
            f"{max(room, 0)} would"
        )
    return Allocation("training", wanted, run.cpus_per_worker, gpus)


def check_num_images(count: int, job: TrainJob, num_workers: int) -> None:
    """Refuse to train on `count` images where not even one step has all it takes.

    Raises:
        ConfigError: with the batch that would do.
    """
    batch = job.training.batch_size
    if count < num_workers * batch:
        raise ConfigError(
            f"training.batch_size {batch} on {num_workers} workers takes {num_workers * batch:,} "
            f"images a step, and there are {count:,} to train on; say training.batch_size: "
            f"{max(1, count // num_workers)} or fewer run.workers"
        )


def check_memory(job: TrainJob, ready: BuiltNetwork, wiring: Allocation, resources: Resources) -> None:
    """Refuse a batch that cannot fit a worker's memory.

    Raises:
        ConfigError: with the largest that would.
    """
    memory = memory_of_each(job.run.worker_memory_bytes, wiring, resources)
    need = training_need(
        ready.weight_bytes, ready.trainable_bytes, ready.map_bytes, ready.optimizer_slots
    )
    batch = job.training.batch_size
    if memory is None or need.of(batch) <= memory:
        return
    fits = largest_batch(memory, need.held_bytes, max(1, need.bytes_per_image))
    remedy = f"say training.batch_size: {fits}" if fits else "not even one image would fit"
    raise ConfigError(
        f"training.batch_size {batch}: a step takes at least {need.of(batch):,} bytes and each "
        f"worker has {memory:,}; {remedy}, or choose a smaller model.image_size, fewer "
        "run.workers or a larger machine"
    )
