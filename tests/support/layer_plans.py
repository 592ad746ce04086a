"""Tuning results as a search would have left them, for tests of how layers are planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from slidesparse.candidate import Candidate, Measurement, Param, ProblemResult
from slidesparse.kernel_problem import KernelProblem, KernelResult, Op
from slidesparse.layers.layer_plan import CUSPARSELT_FORM, DENSE_FORM, NATIVE_FORM, LayerPlan, Step
from slidesparse.layers.planning import LayerShape
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales

SIX_EIGHT = Pattern.parse("6:8")
SMALL: dict[str, Param] = {
    **{"slabs": 1, "tokens": 32, "blocks": 2, "stages": 4},
    **{"cluster_w": 1, "cluster_x": 1, "cluster_k": 1, "resident": 1},
    **{"box": 32, "boxes": 2, "group": 1, "along_x": False},
}
"""Parameters of a native candidate that fits every K' of tests."""

SCALED_MM = Candidate("torch", {"function": "scaled_mm_rowwise", "fast_accum": True})
INT_MM = Candidate("torch", {"function": "int_mm"})
CUBLASLT = Candidate("cublaslt", {"algo": "00ff", "fast_accum": True}, False, {"id": 7})
NATIVE = Candidate("native", SMALL, sparse=True)
TORCHAO = Candidate("torchao", {"function": "rowwise_f8f8"}, sparse=True)
CUSPARSELT = Candidate("cusparselt", {"algorithm": 0}, sparse=True)
REFERENCE = Candidate("reference")


def shape_of(
    n: int = 256,
    k: int = 512,
    pattern: Pattern = SIX_EIGHT,
    dtype: DType = DType.FP8,
    out: DType = DType.BF16,
    bias: bool = False,
) -> LayerShape:
    """A layer to plan."""
    return LayerShape(n, k, pattern, dtype, out, bias)


def problem_of(shape: LayerShape, m: int, scales: Scales = Scales.ROWCOL) -> GemmProblem:
    """What is searched for a layer and `m` tokens."""
    return GemmProblem(
        *(m, shape.n, shape.k, shape.dtype, shape.out, scales, shape.pattern, shape.bias)
    )


def measured(candidate: Candidate, us: float, spread: float = 0.0) -> Measurement:
    """A time without any of the circumstances."""
    return Measurement(candidate, us, spread, samples=15, launches=1, error=0.0, worst=0.0)


def raced(problem: GemmProblem, *ways: Measurement) -> ProblemResult:
    """A result as a race leaves it: ranked by time, the fastest dense way its baseline."""
    ranked = sorted(ways, key=lambda way: way.median_us)
    dense = next((way for way in ranked if not way.candidate.sparse), None)
    return ProblemResult(problem, tuple(ranked), baseline=dense)


def race(
    shape: LayerShape, m: int, times: Mapping[Candidate, float], spread: float = 0.0
) -> ProblemResult:
    """A race of candidates by their microseconds."""
    ways = (measured(candidate, us, spread) for candidate, us in times.items())
    return raced(problem_of(shape, m), *ways)


def quantise_time(
    shape: LayerShape, m: int, us: float, pattern: Pattern | None = None, k: int | None = None
) -> KernelResult:
    """A tuned quantisation of a layer's inputs; the layer's pattern and K unless told."""
    problem = KernelProblem(
        *(Op.QUANTIZE, m, k or shape.k, shape.out, shape.dtype),
        shape.pattern if pattern is None else pattern,
    )
    return KernelResult(problem, (measured(Candidate("triton", {"block": 512}), us),))


def plan_of(shape: LayerShape, steps: Iterable[tuple[int, Candidate]]) -> LayerPlan:
    """A plan of buckets and candidates, each with the form that it reads."""
    made = (Step(bucket, candidate, form_of(candidate)) for bucket, candidate in steps)
    return LayerPlan(shape.n, shape.k, shape.pattern, shape.dtype, shape.out, tuple(made))


def form_of(candidate: Candidate) -> str:
    """Which form of the weight a candidate reads."""
    if candidate.backend == "cusparselt":
        return CUSPARSELT_FORM
    return NATIVE_FORM if candidate.sparse else DENSE_FORM


def steps_of(plan: LayerPlan) -> list[tuple[int, Candidate]]:
    """Buckets and candidates, for comparing."""
    return [(step.bucket, step.candidate) for step in plan.steps]
