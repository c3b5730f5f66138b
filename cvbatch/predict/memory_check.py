"""Refuse a batch size of a prediction that does not fit in memory."""

from __future__ import annotations

from collections.abc import Sequence

from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ConfigError
from cvbatch.distributed.memory import MemoryNeed, largest_batch
from cvbatch.distributed.resources import Allocation
from cvbatch.inference.programs import BuiltProgram


def prediction_need(programs: Sequence[BuiltProgram]) -> MemoryNeed:
    """Return the minimum memory of an actor that has loaded all programs and runs them in turn.

    LiteRT and onnxruntime keep the memory of a program's feature maps; TensorFlow releases it
    before the next.
    """
    retained = [program.bytes_per_image for program in programs if program.engine != "tensorflow"]
    released = [program.bytes_per_image for program in programs if program.engine == "tensorflow"]
    weight_bytes = sum(program.weight_bytes for program in programs)
    return MemoryNeed(weight_bytes, sum(retained) + max(released, default=0))


def actor_need(programs: Sequence[BuiltProgram], allocation: Allocation) -> MemoryNeed:
    """Return the minimum of GPU memory if actors have a GPU, otherwise of main memory."""
    if allocation.gpus_per_actor > 0:
        programs = [program for program in programs if program.engine == "tensorflow"]
    return prediction_need(programs)


def check_programs(
    job: JobConfig, programs: Sequence[BuiltProgram], allocation: Allocation, memory: int | None
) -> None:
    """Refuse the batch size of a job whose programs cannot fit; arguments as in `check_batch`."""
    largest = max(programs, key=lambda program: program.bytes_per_image)
    path = largest.largest_layer
    layer = path and f"layer {path!r} of model {largest.spec.name!r}"
    need = actor_need(programs, allocation)
    check_batch(job.run.batch_size, need, memory, allocation.num_actors, layer)


def check_batch(
    batch_size: int,
    need: MemoryNeed,
    memory_bytes: int | None,
    num_actors: int,
    largest_layer: str = "",
) -> None:
    """Refuse a batch size that cannot fit.

    Args:
        batch_size: images in a batch.
        need: minimum memory of an actor.
        memory_bytes: of each actor; None: unknown, nothing is refused.
        num_actors: actors that share the machine, for the message.
        largest_layer: what needs most per image, for the message.

    Raises:
        ConfigError: the batch does not fit; the message has the largest batch that does.
    """
    if memory_bytes is None or need.of(batch_size) <= memory_bytes:
        return
    has = "the actor has" if num_actors == 1 else f"each of {num_actors} actors has"
    most = f", most of it in {largest_layer}," if largest_layer else ""
    fewer = "" if num_actors == 1 else "fewer run.actors, "
    largest = largest_batch(memory_bytes, need.fixed_bytes, max(1, need.bytes_per_image))
    if not largest:
        raise ConfigError(
            f"run.batch_size {batch_size}: not even one image at a time fits: the models need at "
            f"least {need.of(1):,} bytes{most} and {has} {memory_bytes:,}; choose a smaller "
            f"image_size, {fewer}a larger machine, or run each model as its own job"
        )
    raise ConfigError(
        f"run.batch_size {batch_size}: a batch needs at least {need.of(batch_size):,} bytes{most} "
        f"and {has} {memory_bytes:,}; the largest that would fit is {largest}: set run.batch_size: "
        f"{largest}, or choose {fewer}a smaller image_size or a larger machine"
    )
