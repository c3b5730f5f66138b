"""Schema types that all job files share: names, sizes, fractions, sink and retry sections."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    StringConstraints,
    Tag,
    model_serializer,
)
from pydantic_core import core_schema

from cvbatch.core.errors import ConfigError
from cvbatch.core.model_formats import format_of, own_weights_error, refusal
from cvbatch.core.suggestions import hint
from cvbatch.core.types import MAX_MASK_CLASSES, RetryPolicy

Name = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$", to_lower=True)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=65_536)]
NAMED_WEIGHTS = ("imagenet", "random", "demo")  # every other value is a path or URI
NAMED_CLASSES = ("imagenet",)  # every other text is a path or URI


@dataclass(frozen=True)
class NullAs:
    """Annotation of an optional value: this word becomes None.

    Without a union in the type, pydantic's errors name only the key; the schema has the union.
    """

    word: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        value = handler(source)
        written = core_schema.union_schema([core_schema.literal_schema([self.word]), value])
        return core_schema.no_info_before_validator_function(
            lambda given: None if given == self.word else given,
            value,
            json_schema_input_schema=written,
        )


Auto = NullAs("auto")
_OneOrMore = Name | list[Name]  # the second argument of BeforeValidator: its input, for editors
_AsList = BeforeValidator(lambda value: [value] if isinstance(value, str) else value, _OneOrMore)
Uris = Annotated[list[Name], Field(min_length=1), _AsList]
Names = Annotated[list[Name], _AsList]
ModuleNames = Annotated[  # importable names, never paths
    list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
# A class: its name, or its index in the classes of the data. Tags keep errors to the form used.
ClassRef = Annotated[
    Annotated[int, Field(ge=0, lt=MAX_MASK_CLASSES), Tag("index")] | Annotated[Name, Tag("text")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "index"),
]
Size = Annotated[  # (height, width) in pixels; one number means both
    tuple[Side, Side],
    BeforeValidator(
        lambda value: (value, value) if isinstance(value, int) else value, Side | tuple[Side, Side]
    ),
]


def _add_meanings(schema: dict[str, Any], section: type[BaseModel]) -> None:
    """Add the docstring below each key to the JSON Schema of a section, as its description.

    `use_attribute_docstrings` of pydantic reads the sources at every start of the program instead.
    """
    for base in reversed(section.__mro__[: section.__mro__.index(Section)]):
        (definition,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(definition, ast.ClassDef)
        for pair in pairwise(definition.body):
            match pair:
                case (
                    ast.AnnAssign(target=ast.Name(id=key)),
                    ast.Expr(value=ast.Constant(value=str(meaning))),
                ):
                    schema["properties"][key]["description"] = " ".join(meaning.split())


class Section(BaseModel):
    """A section of a job file: unknown keys are errors, and values are immutable.

    Attributes:
        added_keys: Keys that were added after results were written. Where they have their defaults
            they are left out of dumps, so that old sinks keep their files and fingerprints.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_add_meanings)
    added_keys: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_added_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if not isinstance(self, Section):  # a value that was set without validation
            return values
        for key in self.added_keys:
            field = type(self).model_fields[key]
            if getattr(self, key) == field.get_default(call_default_factory=True):
                values.pop(key, None)
        return values


def index_of_class(reference: int | str, classes: Sequence[str], key: str) -> int:
    """Return the index of a class that a job names, or refers to by its index.

    Raises:
        ConfigError: there is no such class.
    """
    index = classes.index(reference) if reference in classes else reference
    if isinstance(index, int) and index < len(classes):
        return index
    remedy = hint(str(reference), classes) if classes else "the data has no such classes; remove it"
    raise ConfigError(f"{key}: the data has no class {reference!r}; {remedy}")


class SinkConfig(Section):
    """Folder or URI where results are written."""

    uri: Name
    """Folder or URI where the job writes; s3://, gs://, file:// or a path."""


def check_model(model: str, weights: str | None, build: dict[str, Any] | None) -> None:
    """Raise ValueError if a model has a format that is refused, or weights where it has its own."""
    if message := refusal(model):
        raise ValueError(message)
    if format_of(model).key != "zoo":
        for key, value in (("weights", weights), ("build", build)):
            if value is not None:
                raise ValueError(own_weights_error(key, model))
    elif weights is None:
        raise ValueError(
            f"weights are missing for model {model!r}: set imagenet, demo, a path or URI, "
            "or random for untrained weights"
        )


def check_sha256(sha256: str | None, model: str, weights: str | None) -> None:
    """Raise ValueError if sha256 is set for a model that is not read from a user's file."""
    is_zoo = format_of(model).key == "zoo"
    if sha256 is not None and is_zoo and weights in NAMED_WEIGHTS:
        raise ValueError(
            f"sha256 is set for model {model!r} with weights {weights}: it pins a file, "
            "either a model file or a weights file; remove sha256"
        )


class RetryConfig(Section):
    """Time limits of storage requests; Google's client adds its own limits."""

    request_timeout_s: float = Field(60.0, ge=1, le=3600)
    """Seconds without a received byte until a request to the store fails and is tried again."""
    retry_budget_s: float = Field(60.0, ge=0)
    """Maximum total retry time of one request, in seconds; then the job stops."""

    @property
    def retry_policy(self) -> RetryPolicy:
        """Return the limits as plain data that can be sent to workers."""
        return RetryPolicy(self.request_timeout_s, self.retry_budget_s)
