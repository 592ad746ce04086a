"""Types of the fields of result files that several kinds share; pydantic checks what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema

from slidesparse.bench.schema import PlainSchema
from slidesparse.devices import Fingerprint
from slidesparse.models import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import GemmProblem
from slidesparse.serialize import (
    PATTERN_SCHEMA,
    Amount,
    Count,
    Duration,
    Name,
    Positive,
    Text,
    from_plain,
    to_plain,
)

__all__ = [
    "STRICT",
    "Amount",
    "Count",
    "Duration",
    "Index",
    "Layer",
    "Machine",
    "Name",
    "Positive",
    "Problem",
    "Share",
    "Text",
    "Zeros",
    "plain_reader",
]

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""Of every class of a record: types exactly, no unknown fields, finite numbers."""

Index = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def plain_reader(of: type[T]) -> Callable[[object], T]:
    """What makes an `of` from its plain form, and leaves one that is there already.

    Args:
        of: a class that `slidesparse.serialize.from_plain` reads.
    """

    def read(value: object) -> T:
        return value if isinstance(value, of) else from_plain(of, value)

    return read


def _pattern(value: object) -> Pattern:
    return value if isinstance(value, Pattern) else Pattern.parse(str(value))


Zeros = Annotated[
    Pattern, PlainValidator(_pattern), PlainSerializer(str), WithJsonSchema(PATTERN_SCHEMA)
]
"""A pattern as it is spelled, "6:8"."""
Machine = Annotated[
    Fingerprint,
    PlainValidator(plain_reader(Fingerprint)),
    PlainSerializer(to_plain),
    PlainSchema(Fingerprint),
]
Problem = Annotated[
    GemmProblem,
    PlainValidator(plain_reader(GemmProblem)),
    PlainSerializer(to_plain),
    PlainSchema(GemmProblem),
]
Layer = Annotated[
    LinearLayer,
    PlainValidator(plain_reader(LinearLayer)),
    PlainSerializer(to_plain),
    PlainSchema(LinearLayer),
]
