"""Schema types that all job files share."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from cvbatch.core.types import RetryPolicy

Name = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$", to_lower=True)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=65_536)]
NAMED_WEIGHTS = ("imagenet", "random", "demo")  # that are no file
# `auto` in the file is None here: one branch, so that faults name the key and nothing else.
Auto = BeforeValidator(lambda value: None if value == "auto" else value)
Uris = Annotated[
    list[Name],
    Field(min_length=1),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
Size = Annotated[  # height, width; one number is both
    tuple[Side, Side],
    BeforeValidator(lambda value: (value, value) if isinstance(value, int) else value),
]


class Section(BaseModel):
    """A part of a job file: no key but its own, no value that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SinkConfig(Section):
    """Where results go."""

    uri: Name


def check_sha256(sha256: str | None, model: str, weights: str | None) -> None:
    """Raise ValueError where a model is pinned that comes from no file of the user's."""
    if sha256 is not None and not model.endswith(".keras") and weights in NAMED_WEIGHTS:
        raise ValueError(
            f"sha256 for model {model!r} with weights {weights}: it pins a file, the .keras file "
            "or else the one of the weights; leave sha256 out"
        )


class RetryConfig(Section):
    """Time limits of requests to a store; Google's client has limits of its own."""

    request_timeout_s: float = Field(60.0, ge=1, le=3600)  # without a byte: the request is lost
    retry_budget_s: float = Field(60.0, ge=0)  # lost over one request before the job stops

    @property
    def retry_policy(self) -> RetryPolicy:
        """Return the limits as plain data, which workers can be handed."""
        return RetryPolicy(self.request_timeout_s, self.retry_budget_s)
