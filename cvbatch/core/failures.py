"""Images that failed are counted by what they failed of, with a few of each kind by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cvbatch.core.types import Examples, Failure

EXAMPLES = 3  # of each kind of failure, in a report
_EXAMPLE_CHARACTERS = 300  # of a message there


def add_failures(
    failures: Counter[str],  # "stage/kind" → images
    examples: Examples,
    image_id: Sequence[str],
    found: Mapping[int, Failure],  # position → why
) -> None:
    """Count the failures of a batch of images in."""
    for position, failure in sorted(found.items()):
        kind = f"{failure.stage}/{failure.kind}"
        failures[kind] += 1
        if failures[kind] <= EXAMPLES:
            example = [image_id[position], failure.message[:_EXAMPLE_CHARACTERS]]
            examples.setdefault(kind, []).append(example)


def merge_examples(examples: Examples, others: Examples) -> None:
    """Take other examples in; the same ones stay, whichever come first."""
    for kind, some in others.items():
        examples[kind] = sorted(examples.get(kind, []) + some)[:EXAMPLES]


def as_json(failures: Counter[str], examples: Examples) -> dict[str, object]:
    """Return `failures` and `examples` as JSON-ready values."""
    named = {
        kind: [{"image_id": image_id, "message": message} for image_id, message in some]
        for kind, some in sorted(examples.items())
    }
    return {"failures": dict(sorted(failures.items())), "examples": named}


def is_over_limit(num_images: int, num_failed: int, max_failure_fraction: float) -> bool:
    """Say whether more images failed than may."""
    return num_failed > max_failure_fraction * num_images
