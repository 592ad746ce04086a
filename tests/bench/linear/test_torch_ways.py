"""torch's linear is right in every form, and its ways are those that its sizes allow."""

from __future__ import annotations

import pytest
import torch

from slidesparse.bench.linear import torch_ways as module
from slidesparse.bench.linear.torch_ways import (
    TorchWays,
    TorchWeight,
    fp8_linear,
    in_parts,
    int8_linear,
    int8_linear_of_few,
    plain,
)
from slidesparse.kernels import reference
from slidesparse.problem import DType
from slidesparse.tensors import TORCH_DTYPES

N, K = 48, 80


def make(dtype: DType, m: int, seed: int, bias: bool = True) -> tuple[TorchWeight, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, scale = reference.quantize(torch.randn(N, K, generator=generator), TORCH_DTYPES[dtype])
    added = torch.randn(N, generator=generator).bfloat16() if bias else None
    x = torch.randn(m, K, generator=generator).bfloat16()
    return TorchWeight(q, scale, added), x


def oracle(weight: TorchWeight, x: torch.Tensor) -> torch.Tensor:
    q, scale = reference.quantize(x, weight.q.dtype)
    made = (q.double() * scale.double()[:, None]) @ (
        weight.q.double() * weight.scale.double()[:, None]
    ).t()
    return made if weight.bias is None else made + weight.bias.double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("m", [1, 7, 16, 17, 129])
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_the_linear_is_right(dtype: DType, m: int, bias: bool, seed: int) -> None:
    weight, x = make(dtype, m, seed, bias)
    y = weight.run(plain(dtype, m), x)
    assert y.dtype is torch.bfloat16
    want = oracle(weight, x)
    # Rounding to BF16, and no more: half a unit in the last place.
    assert ((y.double() - want).abs() <= 2.0**-8 * want.abs() + 1e-6).all()


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_rows_of_zeros_give_the_bias(dtype: DType, seed: int) -> None:
    weight, x = make(dtype, 20, seed)
    x[3] = 0
    assert torch.equal(weight.run(plain(dtype, 20), x)[3], weight.bias)


def test_few_rows_are_padded_only_where_torch_refuses_them() -> None:
    assert plain(DType.FP8, 1) is fp8_linear
    assert plain(DType.INT8, 16) is int8_linear_of_few
    assert plain(DType.INT8, 17) is int8_linear


@pytest.mark.parametrize("m", [5, 8, 9, 129])
def test_parts_are_the_whole(m: int, seed: int) -> None:
    weight, x = make(DType.FP8, m, seed)
    calls = []

    def counted(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape[0])
        return fp8_linear(x, *rest)

    got = weight.run(in_parts(counted, 3), x)
    assert torch.equal(got, weight.run(fp8_linear, x))
    assert sum(calls) == m
    assert len(calls) == 3
    assert max(calls) == -(-m // 3)


def test_a_copy_shares_no_memory(seed: int) -> None:
    weight, _ = make(DType.INT8, 1, seed)
    other = weight.copy()
    assert torch.equal(other.q, weight.q)
    pairs = zip((other.q, other.scale, other.bias), (weight.q, weight.scale, weight.bias))  # noqa: B905
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)


def hows(m: int, compiles: bool = True, autotune: tuple[int, ...] = (4096,)) -> list[str]:
    weight, _ = make(DType.INT8, 1, 0)
    return [way.how for way in TorchWays(DType.INT8, weight, compiles, autotune).of(m)]


def test_the_ways_by_rows() -> None:
    default, tuned = "torch.compile", "torch.compile max-autotune at M=4096"
    assert hows(1) == hows(16) == [default]
    assert hows(17) == [default, tuned]
    assert hows(17, autotune=(64, 4096)) == [
        *(default, "torch.compile max-autotune at M=64", tuned)
    ]
    assert hows(17, autotune=()) == [default]
    assert hows(17, compiles=False) == ["eager"]


def test_where_32_bit_offsets_end_there_are_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """K is the larger size here: 80 columns, and 20 rows of them fit."""
    monkeypatch.setattr(module, "INT32_MAX", 1601)
    default, tuned = "torch.compile", "torch.compile max-autotune at M=4096"
    assert hows(20) == [default, tuned]
    assert hows(21) == [default, f"{default}, in 2 parts", f"{tuned}, in 2 parts"]
    assert hows(61) == [default, f"{default}, in 4 parts", f"{tuned}, in 4 parts"]


def test_compilation_is_asked_for_once_per_way_and_once_more_for_one_row(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []
    seen: list[int] = []

    def compile_(function, fullgraph: bool, mode: str | None):
        assert fullgraph
        asked.append((function.__name__, mode))

        def run(x, *rest):
            seen.append(x.shape[0])
            return function(x, *rest)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(module, "FIRST_M", 24)
    weight, _ = make(DType.INT8, 1, seed)
    ways = TorchWays(DType.INT8, weight, True, (33,))
    for m in (1, 5, 1, 17, 40, 17):
        for way in ways.of(m):
            _, x = make(DType.INT8, m, seed)
            assert torch.equal(weight.run(way.make(), x), weight.run(plain(DType.INT8, m), x))
            seen.pop()
    assert asked == [
        ("int8_linear_of_few", None),
        ("int8_linear", None),
        ("int8_linear", "max-autotune-no-cudagraphs"),
    ]
    # The first calls: one row, the most that are padded, then what a server warms up with.
    assert seen == [1, 16, 24, 33]
    assert ways.seconds > 0


def test_a_way_that_does_not_compile_says_so_when_it_is_made(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(function, fullgraph: bool, mode: str | None):
        def run(x, *rest):
            raise RuntimeError("Inductor: 32-bit indices")

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    weight, _ = make(DType.FP8, 1, seed)
    (way,) = TorchWays(DType.FP8, weight, True, ()).of(64)
    with pytest.raises(RuntimeError, match="32-bit indices"):
        way.make()
