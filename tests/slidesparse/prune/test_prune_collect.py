"""Each linear's statistics are those of its own inputs, also where linears share a tensor."""

import pytest
import torch
from torch import nn

from slidesparse.errors import CalibrationError
from slidesparse.prune.collect import collect_statistics
from slidesparse.recipe import Method


def two():
    return {"a": nn.Linear(6, 3), "b": nn.Linear(6, 4)}


def assert_inputs(statistics, x):
    rows = x.reshape(-1, 6)
    assert statistics.tokens == len(rows)
    torch.testing.assert_close(statistics.norms, rows.norm(dim=0))
    torch.testing.assert_close(statistics.hessian, rows.t() @ rows)


def collect(linears, steps, method=Method.SPARSEGPT):
    """Steps are lists of calls (linear, input); one step is one forward pass."""

    def passes():
        for step in steps:
            for name, x in step:
                linears[name](x)
            yield None

    return collect_statistics(linears, method, passes)


def test_a_shared_tensor_is_summed_once(seed):
    linears, first, second = two(), torch.randn(1, 5, 6), torch.randn(1, 7, 6)
    made = collect(linears, [[("a", first), ("b", first)], [("a", second), ("b", second)]])
    assert made["a"] is made["b"]
    assert_inputs(made["a"], torch.cat([first, second], dim=1))
    assert not any(linear._forward_pre_hooks for linear in linears.values())


def test_equal_values_in_two_tensors_are_not_shared(seed):
    x = torch.randn(5, 6)
    made = collect(two(), [[("a", x), ("b", x.clone())]])
    assert made["a"] is not made["b"]
    assert_inputs(made["b"], x)


@pytest.mark.parametrize("extra", ["a", "b"])
def test_linears_that_only_shared_at_first(seed, extra):
    """The second pass gives them different tensors, or gives one of them more than the other."""
    first, second, third = (torch.randn(5, 6) for _ in range(3))
    made = collect(two(), [[("a", first), ("b", first)], [("a", second), ("b", third)]])
    assert_inputs(made["a"], torch.cat([first, second]))
    assert_inputs(made["b"], torch.cat([first, third]))
    made = collect(two(), [[("a", first), ("b", first), (extra, third)]])
    assert_inputs(made[extra], torch.cat([first, third]))
    assert_inputs(made["b" if extra == "a" else "a"], first)


def test_linears_that_meet_later_are_not_shared(seed):
    first, second = torch.randn(5, 6), torch.randn(5, 6)
    made = collect(two(), [[("a", first)], [("a", second), ("b", second)]])
    assert_inputs(made["a"], torch.cat([first, second]))
    assert_inputs(made["b"], second)


def test_a_linear_that_is_called_twice_in_a_pass(seed):
    first, second = torch.randn(5, 6), torch.randn(5, 6)
    step = [("a", first), ("b", first), ("a", second), ("b", second)]
    made = collect(two(), [step])
    assert_inputs(made["a"], torch.cat([first, second]))
    assert_inputs(made["b"], torch.cat([first, second]))


def test_only_sparsegpt_keeps_gram_matrices(seed):
    x = torch.randn(5, 6)
    assert not collect(two(), [[("a", x)]], Method.WANDA)["a"].has_gram
    made = collect_statistics(two(), Method.WANDA, lambda: iter([None]), gram=True)
    assert made["a"].has_gram


def test_a_linear_that_was_never_called_is_named(seed):
    made = collect(two(), [[("a", torch.randn(5, 6))]])
    with pytest.raises(CalibrationError, match="no calibration token reached b; use more"):
        _ = made["b"].norms


def test_hooks_go_when_a_pass_fails(seed):
    linears = two()
    with pytest.raises(CalibrationError, match=r"a takes K=6 channels, .* shape \(5, 7\)"):
        collect(linears, [[("a", torch.randn(5, 7))]])
    assert not linears["a"]._forward_pre_hooks
