"""Count failed images by stage and kind, with a few examples of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cvbatch.core.types import Examples, Failure

MAX_EXAMPLES = 3  # of each kind of failure
_MAX_MESSAGE_CHARACTERS = 300  # of an example


def add_failures(
    counts: Counter[str],  # "stage/kind" → images
    examples: Examples,
    image_id: Sequence[str],
    failures: Mapping[int, Failure],  # position in image_id → failure
) -> None:
    """Add the failures of a batch of images to `counts` and `examples`, in place."""
    for position, failure in sorted(failures.items()):
        kind = f"{failure.stage}/{failure.kind}"
        counts[kind] += 1
        if counts[kind] <= MAX_EXAMPLES:
            example = [image_id[position], failure.message[:_MAX_MESSAGE_CHARACTERS]]
            examples.setdefault(kind, []).append(example)


def merge_examples(examples: Examples, others: Examples) -> None:
    """Merge other examples into `examples`; the result does not depend on the order of merges."""
    for kind, items in others.items():
        examples[kind] = sorted(examples.get(kind, []) + items)[:MAX_EXAMPLES]


def as_json(counts: Counter[str], examples: Examples) -> dict[str, object]:
    """Return `counts` and `examples` as JSON-ready values."""
    named = {
        kind: [{"image_id": image_id, "message": message} for image_id, message in items]
        for kind, items in sorted(examples.items())
    }
    return {"failures": dict(sorted(counts.items())), "examples": named}


def is_over_limit(num_images: int, num_failed: int, max_failure_fraction: float) -> bool:
    """Return whether more images failed than `max_failure_fraction` (0 to 1) allows."""
    return num_failed > max_failure_fraction * num_images
