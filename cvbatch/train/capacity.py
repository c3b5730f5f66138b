"""Check that a training fits: workers on the cluster, steps in the data, batches in memory."""

from __future__ import annotations

from cvbatch.config.train import TrainJob
from cvbatch.core.errors import ConfigError
from cvbatch.distributed.memory import largest_batch, memory_per_actor, training_need
from cvbatch.distributed.resources import Allocation, Resources
from cvbatch.train.network import BuiltNetwork


def choose_workers(job: TrainJob, resources: Resources, previous_workers: int | None) -> Allocation:
    """Return the number of workers with the CPUs and GPUs of each.

    Args:
        resources: the cluster's CPUs and GPUs.
        previous_workers: number of workers of the run to resume; None for a new run.

    Raises:
        ConfigError: the cluster lacks the resources, or the number of workers has changed.
    """
    run = job.run
    gpus = run.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if resources.num_gpus >= 1 else 0.0
    max_workers = resources.actors_that_fit(run.cpus_per_worker, gpus)
    num_workers = run.workers or previous_workers or max_workers
    if previous_workers is not None and num_workers != previous_workers:
        raise ConfigError(
            f"run.workers: {num_workers}, but this run was started with {previous_workers}; "
            "another number would change the images of each step. Set run.workers: "
            f"{previous_workers}, or use --overwrite"
        )
    if max_workers < 1 or num_workers > max_workers:
        raise ConfigError(
            f"run.workers: {max(num_workers, 1)} with {run.cpus_per_worker:g} CPU and {gpus:g} GPU "
            f"each do not fit a cluster of {resources.num_cpus:g} CPU and {resources.num_gpus:g} "
            f"GPU; at most {max(max_workers, 0)} fit"
        )
    return Allocation("training", num_workers, run.cpus_per_worker, gpus)


def check_num_images(num_images: int, job: TrainJob, num_workers: int) -> None:
    """Check that there are training images for at least one full step.

    Raises:
        ConfigError: there are fewer; the message contains a batch size that fits.
    """
    batch_size = job.training.batch_size
    if num_images < num_workers * batch_size:
        raise ConfigError(
            f"training.batch_size {batch_size} on {num_workers} workers needs "
            f"{num_workers * batch_size:,} images per step, but there are {num_images:,} training "
            f"images; set training.batch_size: {max(1, num_images // num_workers)} or reduce "
            "run.workers"
        )


def check_memory(
    job: TrainJob, built: BuiltNetwork, allocation: Allocation, resources: Resources
) -> None:
    """Check that a batch fits the memory of a worker.

    Raises:
        ConfigError: it does not; the message contains the largest batch size that fits.
    """
    memory = memory_per_actor(job.run.worker_memory_bytes, allocation, resources)
    need = training_need(
        built.weight_bytes, built.trainable_bytes, built.map_bytes, built.optimizer_slots
    )
    batch_size = job.training.batch_size
    if memory is None or need.of(batch_size) <= memory:
        return
    largest = largest_batch(memory, need.fixed_bytes, max(1, need.bytes_per_image))
    remedy = f"set training.batch_size: {largest}, or" if largest else "not even one image fits;"
    raise ConfigError(
        f"training.batch_size {batch_size}: a step needs at least {need.of(batch_size):,} bytes "
        f"and each worker has {memory:,}; {remedy} use a smaller model.image_size, fewer "
        "run.workers or a larger machine"
    )
