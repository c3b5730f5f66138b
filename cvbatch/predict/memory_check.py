"""Refuse a batch of predictions that does not fit in memory."""

from __future__ import annotations

from collections.abc import Sequence

from cvbatch.core.errors import ConfigError
from cvbatch.distributed.memory import Need, largest_batch
from cvbatch.distributed.resources import Allocation
from cvbatch.inference.programs import BuiltProgram


def prediction_need(programs: Sequence[BuiltProgram]) -> Need:
    """Return what an actor holds that has loaded all programs and runs one after the other.

    LiteRT keeps the memory of a program's maps; TensorFlow gives it back before the next one.
    """
    kept = [one.bytes_per_image for one in programs if one.engine == "litert"]
    passing = [one.bytes_per_image for one in programs if one.engine != "litert"]
    held = sum(one.weight_bytes for one in programs)
    return Need(held, sum(kept) + max(passing, default=0))


def actor_need(programs: Sequence[BuiltProgram], wiring: Allocation) -> Need:
    """Return what an actor holds in the memory that `memory_of_each` is about."""
    if wiring.gpus_per_actor > 0:
        programs = [one for one in programs if one.engine == "tensorflow"]
    return prediction_need(programs)


def check_batch(batch_size: int, need: Need, memory_bytes: int | None, num_actors: int) -> None:
    """Refuse a batch that cannot fit.

    memory_bytes: of each of the actors; None is not known, and nothing is refused.

    Raises:
        ConfigError: with the largest batch that would fit.
    """
    if memory_bytes is None or need.of(batch_size) <= memory_bytes:
        return
    has = "the actor has" if num_actors == 1 else f"each of {num_actors} actors has"
    fewer = "" if num_actors == 1 else "fewer run.actors, "
    fits = largest_batch(memory_bytes, need.held_bytes, max(1, need.bytes_per_image))
    if not fits:
        raise ConfigError(
            f"run.batch_size {batch_size}: not even one image at a time fits: the models take at "
            f"least {need.of(1):,} bytes and {has} {memory_bytes:,}; choose a smaller image_size, "
            f"{fewer}a larger machine, or run the models as jobs of their own"
        )
    raise ConfigError(
        f"run.batch_size {batch_size}: a batch takes at least {need.of(batch_size):,} bytes and "
        f"{has} {memory_bytes:,}; the largest that would fit is {fits}: say run.batch_size: "
        f"{fits}, or choose {fewer}a smaller image_size or a larger machine"
    )
