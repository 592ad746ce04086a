"""A plan survives its text, finds the step of every M, and refuses what it cannot be."""

from __future__ import annotations

import json

import layer_plans as plans
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_plans import CUBLASLT, NATIVE, SCALED_MM, SIX_EIGHT

from slidesparse.candidate import Candidate
from slidesparse.errors import KernelError
from slidesparse.layers import LayerPlan, Step
from slidesparse.layers.layer_plan import DENSE_FORM, NATIVE_FORM, from_text
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, bucket_m

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
params = st.dictionaries(texts, numbers | texts | st.booleans(), max_size=4)
patterns = st.integers(2, 40).map(lambda n: Pattern(2 * n - 2, 2 * n)) | st.just(DENSE)
floats = st.sampled_from([DType.BF16, DType.FP16, DType.FP32])


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    return Candidate(draw(texts), draw(params), draw(st.booleans()), draw(params))


@st.composite
def layer_plans(draw: st.DrawFn) -> LayerPlan:
    shape = plans.LayerShape(
        *(draw(st.integers(1, 2**31)), draw(st.integers(1, 2**31)), draw(patterns)),
        *(draw(st.sampled_from([DType.FP8, DType.INT8])), draw(floats), False),
    )
    powers = draw(st.sets(st.integers(4, 20), min_size=1))
    return plans.plan_of(shape, [(2**power, draw(candidates())) for power in sorted(powers)])


def plan(*buckets: int) -> LayerPlan:
    return plans.plan_of(plans.shape_of(), [(bucket, SCALED_MM) for bucket in buckets])


def changed(**changes: object) -> str:
    """The text of a plan with fields replaced, or left out where None."""
    data = json.loads(plan(16, 64).to_text()) | changes
    return json.dumps({name: value for name, value in data.items() if value is not None})


@given(layer_plans())
def test_a_plan_survives_its_text(plan):
    text = plan.to_text()
    back = from_text(text)
    assert back == plan
    assert back.to_text() == text
    assert "\n" not in text
    for before, after in zip(plan.steps, back.steps, strict=True):
        for which in ("params", "fields"):
            was, now = (getattr(step.candidate, which) for step in (before, after))
            assert {name: (type(v), v) for name, v in was.items()} == {
                name: (type(v), v) for name, v in now.items()
            }
        assert after.candidate.sparse == before.candidate.sparse


def test_equal_plans_have_equal_texts_and_share_what_is_read():
    first = plans.plan_of(plans.shape_of(), [(16, Candidate("a", {"x": 1, "y": 2}))])
    second = plans.plan_of(plans.shape_of(), [(16, Candidate("a", {"y": 2, "x": 1}))])
    assert first.to_text() == second.to_text()
    assert from_text(first.to_text()) is from_text(second.to_text())


@given(st.sets(st.integers(4, 16), min_size=1), st.integers(1, 2**18))
def test_a_step_serves_its_bucket_and_below_and_the_last_all_above(powers, m):
    made = plan(*(2**power for power in sorted(powers)))
    step = made.at(m)
    assert made.steps[made.index_at(m)] is step
    if step.bucket < bucket_m(m):
        assert step is made.steps[-1]
    assert not [s for s in made.steps if bucket_m(m) <= s.bucket < step.bucket]


def test_forms_are_each_named_once_in_order():
    steps = [(16, NATIVE), (64, SCALED_MM), (256, NATIVE), (1024, CUBLASLT)]
    assert plans.plan_of(plans.shape_of(), steps).forms == (DENSE_FORM, NATIVE_FORM)
    assert plans.plan_of(plans.shape_of(), steps[:1]).forms == (NATIVE_FORM,)
    assert plan(16, 64).forms == (DENSE_FORM,)


@pytest.mark.parametrize("buckets", [(), (64, 16), (16, 16)])
def test_buckets_ascend_and_there_is_one(buckets):
    with pytest.raises(KernelError) as raised:
        plan(*buckets)
    assert str(raised.value) == f"a plan has steps in ascending buckets, not {list(buckets)}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ("3", "not subscriptable"),
        (changed(n=None), "'n'"),
        (changed(steps=None), "'steps'"),
        (changed(pattern="3:8"), "pattern 3:8 is not of the (2N-2):2N family"),
        (changed(dtype="fp4"), "'fp4' is not a valid DType"),
        (changed(out="bf17"), "'bf17' is not a valid DType"),
        (changed(steps=[]), "a plan has steps in ascending buckets, not []"),
        (changed(steps=[[16, "dense", "torch", {}]]), "not enough values to unpack"),
        (changed(steps=[["16", "dense", "torch", {}, {}]]), "step '16' {} {}"),
        (changed(steps=[[16, "dense", "torch", [], {}]]), "step 16 [] {}"),
        (changed(steps=[[16, "dense", "torch", {}, 7]]), "step 16 {} 7"),
        (changed(steps=7), "not iterable"),
    ],
)
def test_a_text_that_is_no_plan_is_refused_with_the_reason(text, reason):
    with pytest.raises(KernelError) as raised:
        from_text(text)
    assert str(raised.value).startswith("not the plan of a linear layer: ")
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_reads_the_packed_form_is_sparse():
    """The text names the form and not whether the candidate is sparse: one follows the other."""
    made = from_text(plans.plan_of(plans.shape_of(), [(16, NATIVE), (64, SCALED_MM)]).to_text())
    assert [step.candidate.sparse for step in made.steps] == [True, False]
    assert made.steps == (
        Step(16, NATIVE, NATIVE_FORM),
        Step(64, SCALED_MM, DENSE_FORM),
    )
    assert (made.pattern, made.dtype, made.out) == (SIX_EIGHT, DType.FP8, DType.BF16)
