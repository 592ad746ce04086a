"""Each method drops what its definition says, for every pattern and any width of the weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slidesparse.errors import CalibrationError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.prune import magnitude, sparsegpt, wanda
from slidesparse.prune.methods import prune_weight
from slidesparse.prune.statistics import InputStatistics
from slidesparse.recipe import Method
from slidesparse.slide import dropped

FAMILY = [Pattern(2 * n - 2, 2 * n) for n in range(2, 10)]
COMMON = FAMILY[:4]


def statistics_of(x, gram=True):
    made = InputStatistics(x.shape[1], gram=gram, name="up_proj")
    made.update(x)
    return made


def correlated(tokens, k, seed):
    """Inputs with few strong directions and channels of uneven strength, as in a real model."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(tokens, k // 3, generator=generator)
    mixed = low @ torch.randn(k // 3, k, generator=generator) / (k // 3) ** 0.5
    own = torch.randn(tokens, k, generator=generator) * 0.3
    return (mixed + own) * (0.1 + torch.rand(k, generator=generator) * 2)


def weight(rows, k, seed, dtype=torch.float32):
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed)).to(dtype)


def drop_one_by_one(scores, pattern):
    """The definition, in plain Python: per block the two lowest, padding first, then leftmost."""
    rows, k = scores.shape
    mask = torch.zeros(rows, k, dtype=torch.bool)
    for row in range(rows):
        for start in range(0, k, pattern.block):
            columns = range(start, min(start + pattern.block, k))
            allowed = max(0, 2 - (pattern.block - len(columns)))
            for column in sorted(columns, key=lambda c: (float(scores[row, c]), c))[:allowed]:
                mask[row, column] = True
    return mask


def assert_satisfies(w, pattern):
    pad = pattern.padded_k(w.shape[1]) - w.shape[1]
    nonzero = torch.nn.functional.pad(w != 0, (0, pad)).reshape(-1, pattern.block).sum(dim=1)
    assert nonzero.max() <= pattern.nonzeros


@given(
    pattern=st.sampled_from(FAMILY),
    rows=st.integers(1, 4),
    k=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_the_mask_is_the_definition(pattern, rows, k, seed):
    """Few different scores, so that ties are common."""
    scores = torch.randint(0, 4, (rows, k), generator=torch.Generator().manual_seed(seed)).float()
    before = scores.clone()
    assert torch.equal(dropped(scores, pattern), drop_one_by_one(scores, pattern))
    assert torch.equal(scores, before)


def test_dense_drops_nothing():
    assert not dropped(torch.zeros(2, 5), DENSE).any()


@given(
    pattern=st.sampled_from(FAMILY),
    method=st.sampled_from(Method),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    rows=st.integers(1, 5),
    k=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_every_method_satisfies_the_pattern(pattern, method, dtype, rows, k, seed):
    w = weight(rows, k, seed, dtype)
    before = w.clone()
    x = torch.randn(20, k, generator=torch.Generator().manual_seed(seed + 1))
    made = prune_weight(w, pattern, method, statistics_of(x))
    assert made.shape == w.shape
    assert made.dtype == w.dtype
    assert made.isfinite().all()
    assert_satisfies(made, pattern)
    assert torch.equal(w, before)
    assert made.data_ptr() != w.data_ptr()
    assert torch.equal(made, prune_weight(w, pattern, method, statistics_of(x)))


@pytest.mark.parametrize("pattern", COMMON, ids=str)
@pytest.mark.parametrize("k", [48, 50, 3])
def test_magnitude_and_wanda_keep_the_rest_as_it_is(pattern, k, seed):
    w, x = weight(7, k, seed), correlated(129, max(k, 3), seed)[:, :k]
    by_size = torch.where(drop_one_by_one(w.abs(), pattern), 0.0, w)
    assert torch.equal(magnitude.prune(w, pattern), by_size)
    scores = w.double().abs() * x.double().norm(dim=0)
    by_score = torch.where(drop_one_by_one(scores, pattern), 0.0, w)
    assert torch.equal(wanda.prune(w, pattern, statistics_of(x, gram=False)), by_score)


def slow_sparsegpt(w, x, pattern):
    """The method from its formulas, one column at a time, each step with an inverse of its own.

    Zeroing w_q given that columns left of q are fixed: the columns F = q.. of the row move by
    -w_q / [H_FF^-1]_qq * [H_FF^-1]_q, at a cost of w_q^2 / [H_FF^-1]_qq.
    """
    w, k = w.double().clone(), w.shape[1]
    hessian = x.double().t() @ x.double()
    hessian += torch.eye(k) * hessian.diagonal().mean() * 0.01
    inverses = [torch.linalg.inv(hessian[q:, q:]) for q in range(k)]
    for start in range(0, k, pattern.block):
        columns = range(start, min(start + pattern.block, k))
        cost = torch.stack([w[:, q] ** 2 / inverses[q][0, 0] for q in columns], dim=1)
        mask = drop_one_by_one(cost, pattern)
        for offset, q in enumerate(columns):
            step = torch.where(mask[:, offset], w[:, q] / inverses[q][0, 0], 0.0)
            w[:, q:] -= step[:, None] * inverses[q][0]
            w[mask[:, offset], q] = 0
    return w


@pytest.mark.parametrize("pattern", COMMON, ids=str)
@pytest.mark.parametrize("k", [24, 130, 271])
def test_sparsegpt_is_the_formula(pattern, k, seed):
    """130 and 271: over the edge of a chunk of columns, and not in whole blocks."""
    w, x = weight(5, k, seed), correlated(600, k, seed)
    expected = slow_sparsegpt(w, x, pattern)
    made = sparsegpt.prune(w, pattern, statistics_of(x))
    same = (made != 0) == (expected != 0)
    # Computed in float32: a near tie may fall the other way, and changes what follows it.
    assert same.all(dim=1).sum() >= 4
    rows = same.all(dim=1)
    torch.testing.assert_close(made.double()[rows], expected[rows], rtol=2e-3, atol=2e-4)


def output_error(w, made, x):
    return float(((made - w) @ x.t()).double().norm() / (w @ x.t()).double().norm())


@pytest.mark.parametrize("pattern", COMMON, ids=str)
@pytest.mark.parametrize("k", [240, 250])
def test_sparsegpt_beats_wanda_beats_magnitude(pattern, k, seed):
    w, x = weight(64, k, seed), correlated(2000, k, seed)
    statistics = statistics_of(x)
    by_size, by_score, second_order = (
        output_error(w, prune_weight(w, pattern, method, statistics), x) for method in Method
    )
    assert by_score < 0.97 * by_size
    assert second_order < 0.7 * by_score


def test_sparsegpt_lies_between_wanda_and_the_best_weights_for_its_mask(seed):
    """Least squares over the weights that are left cannot be beaten; dropping alone can."""
    pattern = Pattern(6, 8)
    w, x = weight(16, 64, seed), correlated(2000, 64, seed)
    made = sparsegpt.prune(w, pattern, statistics_of(x))
    best = torch.zeros_like(w)
    for row in range(w.shape[0]):
        left = made[row] != 0
        best[row, left] = torch.linalg.lstsq(x[:, left], x @ w[row]).solution
    floor, reached = output_error(w, best, x), output_error(w, made, x)
    by_score = output_error(w, wanda.prune(w, pattern, statistics_of(x)), x)
    assert floor * 0.999 <= reached < by_score


def test_channels_without_input_become_zero(seed):
    x = correlated(200, 24, seed)
    x[:, [3, 4, 17]] = 0
    made = sparsegpt.prune(weight(5, 24, seed), Pattern(6, 8), statistics_of(x))
    assert (made[:, [3, 4, 17]] == 0).all()
    # They are the two that go, so that nothing else of their block is lost.
    assert (made[:, [0, 1, 2, 5, 6, 7]] != 0).all()


@pytest.mark.parametrize("tokens", [1, 5])
def test_fewer_tokens_than_channels_still_work(tokens, seed):
    made = sparsegpt.prune(
        weight(5, 64, seed), Pattern(6, 8), statistics_of(correlated(tokens, 64, seed))
    )
    assert made.isfinite().all()
    assert_satisfies(made, Pattern(6, 8))


def test_inputs_that_are_all_zero_give_a_zero_weight(seed):
    made = sparsegpt.prune(weight(5, 16, seed), Pattern(6, 8), statistics_of(torch.zeros(9, 16)))
    assert not made.any()


def test_dampening_is_raised_until_the_hessian_can_be_inverted(seed):
    """A matrix that no sum of outer products is: one eigenvalue is clearly negative."""
    statistics = statistics_of(torch.randn(200, 16))
    statistics._gram += -1.05 * torch.linalg.eigvalsh(statistics._gram)[0] * torch.eye(16)
    made = sparsegpt.prune(weight(5, 16, seed), Pattern(6, 8), statistics)
    statistics._gram -= 0.3 * statistics._gram.diagonal().mean() * torch.eye(16)
    assert made.isfinite().all()
    assert sparsegpt.prune(weight(5, 16, seed), Pattern(6, 8), statistics).isfinite().all()


def test_a_hessian_that_stays_singular_is_refused(seed):
    statistics = statistics_of(torch.randn(200, 16))
    statistics._gram -= 1000 * statistics._gram.diagonal().mean() * torch.ones(16, 16).tril(-1)
    statistics._gram = statistics._gram.tril() + statistics._gram.tril(-1).t()
    with pytest.raises(
        CalibrationError, match=r"Hessian of up_proj is singular even with 10 of its mean diagonal"
    ):
        sparsegpt.prune(weight(5, 16, seed), Pattern(6, 8), statistics)


@pytest.mark.parametrize("method", [Method.WANDA, Method.SPARSEGPT])
def test_calibrated_methods_ask_for_statistics(method):
    with pytest.raises(
        CalibrationError, match=f"{method} needs the statistics .* calibration text or use magni"
    ):
        prune_weight(torch.ones(2, 8), Pattern(6, 8), method)


@pytest.mark.parametrize("method", [Method.WANDA, Method.SPARSEGPT])
def test_statistics_of_another_layer_are_refused(method):
    with pytest.raises(
        CalibrationError, match=r"up_proj: statistics of 16 channels do not fit .* K=8"
    ):
        prune_weight(torch.ones(2, 8), Pattern(6, 8), method, statistics_of(torch.ones(3, 16)))


def test_sparsegpt_asks_for_the_gram_matrix():
    statistics = statistics_of(torch.ones(3, 8), gram=False)
    with pytest.raises(CalibrationError, match="hold no Gram matrix"):
        prune_weight(torch.ones(2, 8), Pattern(6, 8), Method.SPARSEGPT, statistics)


@pytest.mark.parametrize("method", list(Method))
def test_dense_is_a_copy(method):
    w = torch.randn(2, 8)
    made = prune_weight(w, DENSE, method)
    assert torch.equal(made, w)
    assert made.data_ptr() != w.data_ptr()


@pytest.mark.parametrize("pattern", FAMILY, ids=str)
def test_infinite_scores_are_dropped_like_others(pattern):
    scores = torch.full((3, pattern.block + 1), float("inf"))
    mask = dropped(scores, pattern)
    assert torch.equal(mask[:, : pattern.block].sum(dim=1), torch.full((3,), 2))
    # Padding goes first, so that the weight which is alone in its block stays.
    assert mask[:, pattern.block].tolist() == [False] * 3


def test_an_update_that_overflows_the_dtype_is_refused(seed):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(300, 1, generator=generator).expand(300, 16)
    x = common + 1e-3 * torch.randn(300, 16, generator=generator)
    w = torch.full((4, 16), 60000.0, dtype=torch.float16)
    with pytest.raises(CalibrationError, match=r"weights of up_proj do not fit torch.float16; use"):
        sparsegpt.prune(w, Pattern(6, 8), statistics_of(x))
    assert sparsegpt.prune(w.bfloat16(), Pattern(6, 8), statistics_of(x)).isfinite().all()
