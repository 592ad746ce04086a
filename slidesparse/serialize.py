"""Values to plain JSON data and back, checked on the way in.

Cache files, journals, the worker's pipe and result files all speak this one form: a dataclass is an
object, an enum its value, a Pattern its spelling ("6:8"), a tuple a list. What comes back is data
from a file, so every field is checked: types exactly, times finite and positive, no unknown fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from slidesparse.candidate import Candidate, Failure, Measurement, ProblemResult
from slidesparse.devices import Fingerprint
from slidesparse.errors import SlideSparseError
from slidesparse.kernel_problem import KernelProblem, KernelResult, Op
from slidesparse.models import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales

T = TypeVar("T")


class DataError(SlideSparseError, ValueError):
    """Plain data that is not what it should be.

    Args:
        path: of the offending field, for example "ranked.0.median_us"; "" for the whole value.
        reason: what is wrong with it, with the value where it is short.
    """

    def __init__(self, path: str, reason: str) -> None:
        """Join path and reason into one line."""
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}" if path else reason)

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str]]:
        """Pickle by both arguments, so that the error crosses a process boundary whole."""
        return DataError, (self.path, self.reason)


def to_plain(value: object) -> Any:
    """The JSON-able form of a dataclass of this package, or of a container of them.

    Raises:
        DataError: a float is not finite, or a value has no plain form.
    """
    return _plain(value, "")


def from_plain(cls: type[T], data: object) -> T:
    """Check `data` and build a `cls` from it.

    Args:
        cls: Candidate, Measurement, Failure, GemmProblem, ProblemResult, KernelProblem,
            KernelResult, Fingerprint or LinearLayer.
        data: what `to_plain` gave, usually after a trip through JSON.

    Raises:
        DataError: names the first offending field and what is wrong with it.
    """
    try:
        model = _MODELS[cls].model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise DataError(path, _reason(first["type"], first["msg"], first["input"])) from error
    return cast(T, model.build())


def plain_form(cls: type[Any]) -> type[BaseModel]:
    """The pydantic model of what `to_plain` makes of a `cls`, for its JSON Schema.

    Raises:
        KeyError: `from_plain` reads no such class.
    """
    return _MODELS[cls]


def _plain(value: object, path: str) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Pattern):
        return str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(path, f"{value} is not a finite number")
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, _join(path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, _join(path, index)) for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), _join(path, field.name))
            for field in dataclasses.fields(value)
        }
    raise DataError(path, f"a {type(value).__name__} has no plain form")


def _join(path: str, part: object) -> str:
    return f"{path}.{part}" if path else str(part)


def _reason(kind: str, message: str, given: object) -> str:
    text = message.removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    if kind in {"missing", "value_error"} or isinstance(given, dict | list):
        return text
    shown = repr(given)
    return f"{text}, not {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _read_pattern(value: object) -> Pattern:
    if not isinstance(value, str):
        raise ValueError(f"a pattern is a string such as '6:8', not {value!r}")
    pattern = Pattern.parse(value)
    if str(pattern) != value:
        raise ValueError(f"pattern {value!r} is not in its canonical spelling {str(pattern)!r}")
    return pattern


PATTERN_SCHEMA = {"type": "string", "pattern": "^(dense|[0-9]{1,6}:[0-9]{1,6})$"}
"""Of a Pattern's spelling, as JSON Schema."""

Spelled = Annotated[Pattern, PlainValidator(_read_pattern), WithJsonSchema(PATTERN_SCHEMA)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Text = Annotated[str, StringConstraints(max_length=16384)]
Stamp = Annotated[str, StringConstraints(max_length=64)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Duration = Annotated[float, Field(gt=0)]
ParamValue = int | float | Text | bool


class _Model(BaseModel, Generic[T]):
    """The form of one dataclass in a file; a test keeps the fields of both equal."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    def build(self) -> T:
        raise NotImplementedError


class _ProblemModel(_Model[GemmProblem]):
    m: Positive
    n: Positive
    k: Positive
    dtype: Annotated[DType, Field(strict=False)]
    out: Annotated[DType, Field(strict=False)]
    scales: Annotated[Scales, Field(strict=False)]
    pattern: Spelled
    bias: bool

    @model_validator(mode="after")
    def _possible(self) -> _ProblemModel:
        self.build()
        return self

    def build(self) -> GemmProblem:
        return GemmProblem(
            m=self.m,
            n=self.n,
            k=self.k,
            dtype=self.dtype,
            out=self.out,
            scales=self.scales,
            pattern=self.pattern,
            bias=self.bias,
        )


class _CandidateModel(_Model[Candidate]):
    backend: Name
    params: dict[Name, ParamValue]
    sparse: bool
    fields_: dict[Name, ParamValue] = Field(alias="fields")

    def build(self) -> Candidate:
        return Candidate(self.backend, self.params, self.sparse, self.fields_)


class _MeasurementModel(_Model[Measurement]):
    candidate: _CandidateModel
    median_us: Duration
    spread_us: Amount
    samples: Positive
    launches: Positive
    error: Amount
    worst: Amount
    cold_l2: bool
    graph: bool
    workspace: Count
    clock_mhz: Count | None
    power_w: Amount | None

    def build(self) -> Measurement:
        return Measurement(
            candidate=self.candidate.build(),
            median_us=self.median_us,
            spread_us=self.spread_us,
            samples=self.samples,
            launches=self.launches,
            error=self.error,
            worst=self.worst,
            cold_l2=self.cold_l2,
            graph=self.graph,
            workspace=self.workspace,
            clock_mhz=self.clock_mhz,
            power_w=self.power_w,
        )


class _FailureModel(_Model[Failure]):
    candidate: _CandidateModel
    kind: Literal["crash", "timeout", "memory", "wrong", "refused"]
    reason: Text

    def build(self) -> Failure:
        return Failure(self.candidate.build(), self.kind, self.reason)


class _ResultModel(_Model[ProblemResult]):
    problem: _ProblemModel
    ranked: list[_MeasurementModel]
    defaults: list[_MeasurementModel]
    baseline: _MeasurementModel | None
    failures: list[_FailureModel]
    left_out: dict[Name, Text]
    backends: list[Name]
    complete: bool
    tried: Count
    tie: bool
    effort: Literal["quick", "normal", "full"]
    seed: int
    seconds: Amount
    searched_at: Stamp

    @model_validator(mode="after")
    def _consistent(self) -> _ResultModel:
        """Refuse sparse candidates where only a dense one can stand."""
        if self.baseline is not None and self.baseline.candidate.sparse:
            raise ValueError("the baseline is a sparse candidate; it must be a dense one")
        if self.problem.pattern.dense:
            for item in (*self.ranked, *self.defaults):
                if item.candidate.sparse:
                    raise ValueError(f"{item.candidate.backend} is sparse and the problem is dense")
        return self

    def build(self) -> ProblemResult:
        return ProblemResult(
            problem=self.problem.build(),
            ranked=tuple(item.build() for item in self.ranked),
            defaults=tuple(item.build() for item in self.defaults),
            baseline=self.baseline.build() if self.baseline else None,
            failures=tuple(item.build() for item in self.failures),
            left_out=self.left_out,
            backends=tuple(self.backends),
            complete=self.complete,
            tried=self.tried,
            tie=self.tie,
            effort=self.effort,
            seed=self.seed,
            seconds=self.seconds,
            searched_at=self.searched_at,
        )


class _KernelProblemModel(_Model[KernelProblem]):
    op: Annotated[Op, Field(strict=False)]
    m: Positive
    k: Positive
    source: Annotated[DType, Field(strict=False)]
    out: Annotated[DType, Field(strict=False)]
    pattern: Spelled
    residual: bool

    @model_validator(mode="after")
    def _possible(self) -> _KernelProblemModel:
        self.build()
        return self

    def build(self) -> KernelProblem:
        return KernelProblem(
            op=self.op,
            m=self.m,
            k=self.k,
            source=self.source,
            out=self.out,
            pattern=self.pattern,
            residual=self.residual,
        )


class _KernelResultModel(_Model[KernelResult]):
    problem: _KernelProblemModel
    ranked: list[_MeasurementModel]
    default: _MeasurementModel | None
    failures: list[_FailureModel]
    tried: Count
    seed: int
    seconds: Amount
    tuned_at: Stamp

    def build(self) -> KernelResult:
        return KernelResult(
            problem=self.problem.build(),
            ranked=tuple(item.build() for item in self.ranked),
            default=self.default.build() if self.default else None,
            failures=tuple(item.build() for item in self.failures),
            tried=self.tried,
            seed=self.seed,
            seconds=self.seconds,
            tuned_at=self.tuned_at,
        )


class _FingerprintModel(_Model[Fingerprint]):
    name: Name
    sm: Count
    sm_count: Positive
    memory_mib: Count
    driver: Name
    cublaslt: Name
    cusparselt: Name
    torch: Name
    triton: Name
    schema_: Positive = Field(alias="schema")

    def build(self) -> Fingerprint:
        return Fingerprint(
            name=self.name,
            sm=self.sm,
            sm_count=self.sm_count,
            memory_mib=self.memory_mib,
            driver=self.driver,
            cublaslt=self.cublaslt,
            cusparselt=self.cusparselt,
            torch=self.torch,
            triton=self.triton,
            schema=self.schema_,
        )


class _LayerModel(_Model[LinearLayer]):
    name: Name
    n: Positive
    k: Positive
    count: Positive
    kind: Literal["dense", "shared", "expert"]
    bias: bool
    experts: Count
    active: Count

    def build(self) -> LinearLayer:
        return LinearLayer(
            self.name,
            self.n,
            self.k,
            self.count,
            self.kind,
            self.bias,
            self.experts,
            self.active,
        )


_MODELS: dict[type[Any], type[_Model[Any]]] = {
    GemmProblem: _ProblemModel,
    Candidate: _CandidateModel,
    Measurement: _MeasurementModel,
    Failure: _FailureModel,
    ProblemResult: _ResultModel,
    KernelProblem: _KernelProblemModel,
    KernelResult: _KernelResultModel,
    Fingerprint: _FingerprintModel,
    LinearLayer: _LayerModel,
}
