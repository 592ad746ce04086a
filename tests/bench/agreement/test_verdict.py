"""What the limits make of a record: ours is judged, stock's noise is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from agreement_records import (
    EAGER,
    GRAPHS,
    OURS,
    STOCK,
    make_checkpoint,
    make_record,
    make_requests,
    make_served,
)

from slidesparse.bench.agreement.record import CheckpointAgreement, Limits
from slidesparse.bench.agreement.verdict import load_ratio, problems
from slidesparse.bench.sweep.runner import Kind


def with_pair(index: int, **changes: Any) -> CheckpointAgreement:
    checkpoint = make_checkpoint()
    pairs = list(checkpoint.pairs)
    pairs[index] = replace(pairs[index], **changes)
    return replace(checkpoint, pairs=tuple(pairs))


def found(checkpoint: CheckpointAgreement, **limits: Any) -> list[str]:
    return problems(make_record(checkpoint, limits=Limits(**limits)))


ACROSS_GRAPHS, ACROSS_EAGER, STOCK_ITSELF, OURS_ITSELF = range(4)


def test_what_is_within_the_limits_is_no_problem() -> None:
    assert found(make_checkpoint()) == []
    assert found(with_pair(ACROSS_GRAPHS, agreement=0.99, perplexity=-0.005)) == []


def test_tokens_that_differ_too_often_are_a_problem() -> None:
    assert found(with_pair(ACROSS_EAGER, agreement=0.9895)) == [
        "tiny-6of8: ours against stock, eager: the same token is likeliest for 98.95 % of 2,000, "
        "less than 99.00 %"
    ]
    assert found(with_pair(ACROSS_EAGER, agreement=0.9895), agreement=0.98) == []


@pytest.mark.parametrize("off", [0.0051, -0.0051])
def test_perplexity_that_is_off_is_a_problem(off: float) -> None:
    (text,) = found(with_pair(ACROSS_GRAPHS, perplexity=off))
    assert text.startswith("tiny-6of8: ours against stock, graphs: perplexity is off by ")
    assert text.endswith(f"{100 * off:+.2f} %, more than 0.50 %")
    assert found(with_pair(ACROSS_GRAPHS, perplexity=off), perplexity=0.01) == []


def test_the_noise_of_stock_is_none() -> None:
    assert found(with_pair(STOCK_ITSELF, agreement=0.5, perplexity=0.3)) == []


def test_ours_may_differ_from_itself_as_much_as_stock_does() -> None:
    noisy = with_pair(OURS_ITSELF, agreement=0.985, perplexity=0.01)
    assert len(found(noisy)) == 2
    pairs = list(noisy.pairs)
    pairs[STOCK_ITSELF] = replace(pairs[STOCK_ITSELF], agreement=0.98, perplexity=-0.02)
    assert found(replace(noisy, pairs=tuple(pairs))) == []
    # Across the systems the limits hold whatever stock does with itself.
    pairs[ACROSS_GRAPHS] = replace(pairs[ACROSS_GRAPHS], agreement=0.985)
    assert len(found(replace(noisy, pairs=tuple(pairs)))) == 1


@pytest.mark.parametrize("system", [STOCK, OURS])
def test_a_failure_is_a_problem_of_either(system: Any) -> None:
    checkpoint = make_checkpoint()
    failed = make_served(system, EAGER, failure=Kind.HANG, reason="no answer within 5 s")
    served = [it for it in checkpoint.served if (it.system, it.mode) != (system, EAGER)]
    checkpoint = replace(checkpoint, served=(*served, failed))
    assert found(checkpoint) == [f"tiny-6of8: {system}, eager failed (hang): no answer within 5 s"]


def test_requests_that_went_wrong_are_a_problem_of_ours() -> None:
    broken = make_requests(broken=2, reason="request 7 ended (abort) with 1 of 9 tokens")
    assert found(make_checkpoint(requests=broken)) == [
        "tiny-6of8: ours, graphs: 2 of 500 mixed requests went wrong; the first: request 7 ended "
        "(abort) with 1 of 9 tokens"
    ]
    checkpoint = make_checkpoint()
    stock = make_served(STOCK, GRAPHS, requests=broken)
    assert found(replace(checkpoint, served=(stock, *checkpoint.served[1:]))) == []


def test_sequences_that_differ_more_than_stocks_are_a_problem() -> None:
    """Stock has 48 of 50 the same: 45 may be noise, 38 is not."""
    assert found(make_checkpoint(requests=make_requests(differing=(3,) * 5))) == []
    (text,) = found(make_checkpoint(requests=make_requests(differing=(3,) * 12)))
    assert "38 of 50 requests gave the same tokens together as alone, with stock 48 of 50" in text
    assert "p = 0.00" in text


def test_requests_without_stock_are_judged_by_what_went_wrong_only() -> None:
    noisy = make_checkpoint(requests=make_requests(differing=(3,) * 50))
    assert len(found(noisy)) == 1
    assert found(replace(noisy, served=noisy.served[1:])) == []


def test_loading_is_judged_where_a_limit_is_given() -> None:
    slow = make_checkpoint(load_s=3.0)
    assert load_ratio(slow, slow.served[1]) == pytest.approx(1.5)
    assert found(slow) == []
    assert found(slow, load=0.5) == []
    assert found(slow, load=0.2) == [
        "tiny-6of8: ours, graphs: loading takes 50 % longer than with stock, more than 20 %"
    ]
    unknown = make_checkpoint(load_s=None)
    assert load_ratio(unknown, unknown.served[1]) is None
    assert found(unknown, load=0.2) == []
