"""Plain data: what goes out comes back equal, and nothing else comes in."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesparse import serialize
from slidesparse.candidate import Candidate, Failure, Measurement, ProblemResult
from slidesparse.devices import Fingerprint
from slidesparse.kernel_problem import KernelProblem, KernelResult, Op
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.serialize import DataError, from_plain, to_plain

SIZES = st.integers(1, 2**40)
AMOUNTS = st.floats(0, 1e300)
DURATIONS = st.floats(0, 1e300, exclude_min=True)
NAMES = st.text(min_size=1, max_size=20)
PARAMS = st.dictionaries(
    NAMES,
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    max_size=4,
)
PATTERNS = st.just(DENSE) | st.integers(2, 40).map(lambda n: Pattern(2 * n - 2, 2 * n))
FORMS = st.sampled_from(
    [(DType.FP8, DType.BF16), (DType.FP8, DType.FP32), (DType.INT8, DType.INT32)]
)


@st.composite
def problems(draw: st.DrawFn) -> GemmProblem:
    dtype, out = draw(FORMS)
    scaled = st.sampled_from([Scales.TENSOR, Scales.ROWCOL])
    scales = Scales.NONE if out is DType.INT32 else draw(scaled)
    pattern = draw(PATTERNS)
    sizes = [draw(SIZES) for _ in range(3)]
    return GemmProblem(*sizes, dtype, out, scales, pattern, draw(st.booleans()))


def candidates(sparse: bool) -> st.SearchStrategy[Candidate]:
    return st.builds(Candidate, NAMES, PARAMS, st.just(sparse), PARAMS)


def measurements(sparse: bool) -> st.SearchStrategy[Measurement]:
    return st.builds(
        Measurement,
        candidates(sparse),
        DURATIONS,
        AMOUNTS,
        SIZES,
        SIZES,
        AMOUNTS,
        AMOUNTS,
        st.booleans(),
        st.booleans(),
        st.integers(0, 2**40),
        st.none() | st.integers(0, 5000),
        st.none() | AMOUNTS,
    )


@st.composite
def results(draw: st.DrawFn) -> ProblemResult:
    problem = draw(problems())
    sparse = not problem.pattern.dense
    kinds = ["crash", "timeout", "memory", "wrong", "refused"]
    failures = st.builds(Failure, candidates(sparse), st.sampled_from(kinds), st.text())
    return ProblemResult(
        problem=problem,
        ranked=tuple(draw(st.lists(measurements(sparse), max_size=3))),
        defaults=tuple(draw(st.lists(measurements(False), max_size=2))),
        baseline=draw(st.none() | measurements(False)),
        failures=tuple(draw(st.lists(failures, max_size=2))),
        left_out=draw(st.dictionaries(NAMES, st.text(), max_size=2)),
        tried=draw(st.integers(0, 10**6)),
        tie=draw(st.booleans()),
        effort=draw(st.sampled_from(["quick", "normal", "full"])),
        seed=draw(st.integers()),
        seconds=draw(AMOUNTS),
        searched_at=draw(st.text(max_size=64)),
    )


@given(results())
def test_result_survives_json(result: ProblemResult) -> None:
    text = json.dumps(to_plain(result), allow_nan=False)
    back = from_plain(ProblemResult, json.loads(text))
    assert back == result
    # Candidates compare by identity only; the plain forms compare every field, types included.
    assert json.dumps(to_plain(back)) == text


@st.composite
def kernel_results(draw: st.DrawFn) -> KernelResult:
    op = draw(st.sampled_from(Op))
    source = draw(st.sampled_from([DType.BF16, DType.FP16, DType.FP32]))
    out = draw(st.sampled_from([DType.FP8, DType.INT8])) if op.quantizes else DType.FP16
    pattern = draw(PATTERNS) if op.quantizes else DENSE
    residual = "rmsnorm" in op.value and draw(st.booleans())
    problem = KernelProblem(op, draw(SIZES), draw(SIZES), source, out, pattern, residual)
    failures = st.builds(Failure, candidates(False), st.sampled_from(["crash", "wrong"]), st.text())
    return KernelResult(
        problem=problem,
        ranked=tuple(draw(st.lists(measurements(False), max_size=3))),
        default=draw(st.none() | measurements(False)),
        failures=tuple(draw(st.lists(failures, max_size=2))),
        tried=draw(st.integers(0, 10**6)),
        seed=draw(st.integers()),
        seconds=draw(AMOUNTS),
        tuned_at=draw(st.text(max_size=64)),
    )


@given(kernel_results())
def test_kernel_result_survives_json(result: KernelResult) -> None:
    text = json.dumps(to_plain(result), allow_nan=False)
    back = from_plain(KernelResult, json.loads(text))
    assert back == result
    assert json.dumps(to_plain(back)) == text


def test_every_noun_survives_json(
    make_result: Any, make_kernel: Any, fingerprint: Fingerprint
) -> None:
    result, kernel = make_result(), make_kernel()
    best = result.ranked[0]
    nouns = (result.problem, best.candidate, best, result.failures[0], fingerprint, result)
    for noun in (*nouns, kernel.problem, kernel):
        assert from_plain(type(noun), json.loads(json.dumps(to_plain(noun)))) == noun


def test_plain_spelling(make_result: Any) -> None:
    plain = to_plain(make_result().problem)
    assert plain == {
        "m": 16,
        "n": 256,
        "k": 512,
        "dtype": "fp8_e4m3",
        "out": "bf16",
        "scales": "tensor",
        "pattern": "6:8",
        "bias": False,
    }


def test_schema_has_exactly_the_fields_of_the_dataclasses() -> None:
    for cls, model in serialize._MODELS.items():
        fields = {field.name for field in dataclasses.fields(cls)}
        assert {info.alias or name for name, info in model.model_fields.items()} == fields, cls


def replaced(data: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    *parents, last = path.split(".")
    place: Any = changed
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        ("problem.m", "16", "problem.m", "input should be a valid integer, not '16'"),
        ("problem.m", 0, "problem.m", "input should be greater than 0, not 0"),
        ("problem.m", True, "problem.m", "input should be a valid integer, not True"),
        ("problem.dtype", "fp4", "problem.dtype", "not 'fp4'"),
        ("problem.out", "int32", "problem", "fp8_e4m3 operands cannot give int32"),
        ("problem.pattern", "3:8", "problem.pattern", "pattern 3:8 is not of the (2N-2):2N family"),
        ("problem.pattern", "2:8", "problem.pattern", "canonical spelling '6:8'"),
        ("problem.pattern", 68, "problem.pattern", "a pattern is a string such as '6:8', not 68"),
        ("problem.pattern", "dense", "", "cusparselt is sparse and the problem is dense"),
        ("problem.extra", 1, "problem.extra", "extra inputs are not permitted, not 1"),
        ("ranked.0.median_us", -1.0, "ranked.0.median_us", "greater than 0, not -1.0"),
        ("ranked.0.median_us", float("nan"), "ranked.0.median_us", "finite number, not nan"),
        ("ranked.0.spread_us", float("inf"), "ranked.0.spread_us", "finite number, not inf"),
        ("ranked.0.samples", 2.5, "ranked.0.samples", "a valid integer, not 2.5"),
        ("ranked.0.candidate.sparse", 1, "ranked.0.candidate.sparse", "boolean, not 1"),
        ("ranked.0.candidate.params.algo", [1], "ranked.0.candidate.params.algo", "valid integer"),
        ("ranked", {}, "ranked", "input should be a valid list"),
        ("baseline.candidate.sparse", True, "", "the baseline is a sparse candidate"),
        ("failures.0.kind", "bored", "failures.0.kind", "not 'bored'"),
        ("effort", "huge", "effort", "not 'huge'"),
        ("searched_at", "x" * 65, "searched_at", "at most 64 characters"),
    ],
)
def test_bad_field_is_named(
    make_result: Any, path: str, value: object, where: str, message: str
) -> None:
    plain = to_plain(make_result())
    with pytest.raises(DataError) as caught:
        from_plain(ProblemResult, replaced(plain, path, value))
    assert caught.value.path.startswith(where)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        ("problem.op", "quantise", "problem.op", "not 'quantise'"),
        ("problem.k", -1, "problem.k", "input should be greater than 0, not -1"),
        ("problem.source", "int32", "problem", "quantize cannot read int32; use one of bf16"),
        ("problem.pattern", "2:8", "problem.pattern", "canonical spelling '6:8'"),
        ("problem.residual", 1, "problem.residual", "boolean, not 1"),
        ("ranked.0.candidate.params.tile", None, "ranked.0.candidate.params.tile", "valid"),
        ("default", [], "default", "input should be a valid dictionary"),
        ("tuned_at", "x" * 65, "tuned_at", "at most 64 characters"),
    ],
)
def test_bad_field_of_a_kernel_is_named(
    make_kernel: Any, path: str, value: object, where: str, message: str
) -> None:
    plain = to_plain(make_kernel())
    with pytest.raises(DataError) as caught:
        from_plain(KernelResult, replaced(plain, path, value))
    assert caught.value.path.startswith(where)
    assert message in str(caught.value)


def test_missing_field_is_named(make_result: Any) -> None:
    plain = to_plain(make_result())
    del plain["ranked"][1]["candidate"]["backend"]
    with pytest.raises(DataError, match=r"^ranked\.1\.candidate\.backend: field required$"):
        from_plain(ProblemResult, plain)


@pytest.mark.parametrize("data", [None, [], "x", 3, {"entries": {}}])
def test_other_data_is_refused(data: object) -> None:
    with pytest.raises(DataError):
        from_plain(ProblemResult, data)


def test_nan_does_not_go_out(make_result: Any) -> None:
    result = make_result()
    bad = dataclasses.replace(result.ranked[0], error=float("nan"))
    with pytest.raises(DataError, match=r"^ranked\.0\.error: nan is not a finite number$"):
        to_plain(dataclasses.replace(result, ranked=(bad,)))


def test_objects_do_not_go_out() -> None:
    with pytest.raises(DataError, match=r"^tile: a object has no plain form$"):
        to_plain({"tile": object()})


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DataError("a.b", "wrong")))
    assert (error.path, error.reason, str(error)) == ("a.b", "wrong", "a.b: wrong")
