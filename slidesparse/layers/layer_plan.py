"""LayerPlan: what runs one linear layer for which number of tokens, as text that an operator takes.

A torch operator takes tensors and plain values only, and torch.compile bakes the values into its
graph: a plan is therefore one line of JSON that says all, and equal layers share what it becomes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from slidesparse.candidate import Candidate, Param
from slidesparse.errors import KernelError
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, bucket_m

DENSE_FORM = "dense"
"""[N, K] quantised, unexpanded: what dense GEMMs read, and the portable form."""

NATIVE_FORM = "native"
"""The native kernel's packed blocks of the slid weight (kernels/native/weight.py)."""

CUSPARSELT_FORM = "cusparselt"
"""The slid weight as cuSPARSELt compresses it; the layout is the library's own."""

PACKED_FORMS = (NATIVE_FORM, CUSPARSELT_FORM)
"""Of sparse ways."""


@dataclass(frozen=True)
class Step:
    """What runs up to a number of tokens.

    Args:
        bucket: the M bucket that this was measured in; it also serves what lies below, down to
            the bucket before, and for the last step all that lies above.
        candidate: that runs.
        form: of the weight that it reads, see slidesparse.layers.weight.
    """

    bucket: int
    candidate: Candidate
    form: str


@dataclass(frozen=True)
class LayerPlan:
    """One layer's steps.

    Args:
        n: output channels.
        k: input channels.
        pattern: of the weight.
        dtype: of weight and quantised activations.
        out: of the result.
        steps: buckets ascending; at least one.
    """

    n: int
    k: int
    pattern: Pattern
    dtype: DType
    out: DType
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        """Refuse a plan that would run nothing, or buckets out of order."""
        buckets = [step.bucket for step in self.steps]
        if not buckets or buckets != sorted(set(buckets)):
            raise KernelError(f"a plan has steps in ascending buckets, not {buckets}")

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of the weight that some step reads, sorted."""
        return tuple(sorted({step.form for step in self.steps}))

    def index_at(self, m: int) -> int:
        """Which step runs `m` tokens."""
        wanted = bucket_m(m)
        for index, step in enumerate(self.steps):
            if step.bucket >= wanted:
                return index
        return len(self.steps) - 1

    def at(self, m: int) -> Step:
        """The step that runs `m` tokens."""
        return self.steps[self.index_at(m)]

    def to_text(self) -> str:
        """One line that `from_text` reads."""
        return json.dumps(
            {
                "n": self.n,
                "k": self.k,
                "pattern": str(self.pattern),
                "dtype": str(self.dtype),
                "out": str(self.out),
                "steps": [
                    [s.bucket, s.form, s.candidate.backend, *map(dict, _parts(s.candidate))]
                    for s in self.steps
                ],
            },
            sort_keys=True,
            separators=(",", ":"),
        )


@lru_cache(maxsize=4096)
def from_text(text: str) -> LayerPlan:
    """The plan that `to_text` wrote.

    Raises:
        KernelError: it is no such text.
    """
    try:
        data = json.loads(text)
        steps = tuple(_steps(data["steps"]))
        return LayerPlan(
            n=data["n"],
            k=data["k"],
            pattern=Pattern.parse(data["pattern"]),
            dtype=DType(data["dtype"]),
            out=DType(data["out"]),
            steps=steps,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise KernelError(f"not the plan of a linear layer: {error}") from error


def _parts(candidate: Candidate) -> tuple[Mapping[str, Param], Mapping[str, Param]]:
    """What identifies a candidate, and what tables show of it."""
    return candidate.params, candidate.fields


def _steps(items: list[list[object]]) -> Iterator[Step]:
    for bucket, form, backend, params, shown in items:
        if not (isinstance(bucket, int) and isinstance(params, dict) and isinstance(shown, dict)):
            raise ValueError(f"step {bucket!r} {params!r} {shown!r}")
        sparse = form != DENSE_FORM
        yield Step(bucket, Candidate(str(backend), params, sparse, shown), str(form))
