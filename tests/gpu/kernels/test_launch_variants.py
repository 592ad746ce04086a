"""What holds for every operation on the GPU: real sizes, configurations, graphs, torch.compile."""

from __future__ import annotations

import kernel_checks as checks
import kernel_variants
import pytest
import torch
from kernel_variants import BY_NAME, VARIANTS

from slidesparse.kernel_problem import KernelProblem
from slidesparse.kernels import dequantize, quantize, rmsnorm_quantize, silu_mul_quantize
from slidesparse.kernels.config import Config, candidates
from slidesparse.kernels.dequant import launch_dequantize
from slidesparse.kernels.launch import Scaled
from slidesparse.kernels.quant import launch_quantize
from slidesparse.pattern import DENSE, Pattern
from slidesparse.tensors import DTYPES

FP8, INT8 = checks.QUANTISED
SIX_EIGHT = Pattern.parse("6:8")
ROWS = [1, 7, 129, 4096]
WIDTHS = [64, 576, 3584, 3588, 18944]
CUDA = "cuda:0"
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
RUNS = 50
EVERY_PATTERN = (
    "add_rmsnorm",
    "add_rmsnorm_static",
    "silu_mul",
    "silu_mul_static",
    "dequant_silu_mul",
)


def pattern_for(variant, pattern):
    return pattern if variant.op.quantizes else DENSE


@pytest.mark.parametrize("width", WIDTHS)
def test_real_sizes(width, seed):
    """Each variant at each K; rows, patterns, dtypes, sources and strides take turns."""
    turn = WIDTHS.index(width)
    kernel_variants.check_all(
        {
            "variant": variant,
            "m": ROWS[(number + turn) % len(ROWS)],
            "k": width,
            "source": variant.sources[(number + turn) % len(variant.sources)],
            "dtype": variant.targets[(number // 2 + turn) % len(variant.targets)],
            "pattern": variant.patterns[(3 * number + 2 * turn) % len(variant.patterns)],
            "seed": seed,
            "device": CUDA,
            "gap": 6 * ((number + turn) % 2),
        }
        for number, variant in enumerate(VARIANTS)
    )


def test_every_pattern(seed):
    """At K = 576 each pattern meets each quantising kernel; dtypes and sources take turns."""
    kernel_variants.check_all(
        {
            "variant": BY_NAME[name],
            "m": 129,
            "k": 576,
            "source": BY_NAME[name].sources[(i + j) % len(BY_NAME[name].sources)],
            "dtype": checks.QUANTISED[(i + j) % 2],
            "pattern": pattern,
            "seed": seed,
            "device": CUDA,
        }
        for i, name in enumerate(EVERY_PATTERN)
        for j, pattern in enumerate(checks.PATTERNS)
    )


def test_configurations_of_the_tuner_agree(seed):
    """Some of those it tries, and what it leaves to full effort: loops, rows and pipelines."""
    more = [
        Config(block=256, warps=4, rows=4),
        Config(block=512, warps=4, per_sm=2, stages=2),
        Config(block=1024, warps=8, overlap=True),
    ]
    cases = []
    for number, name in enumerate(
        ("quantize", "add_rmsnorm", "silu_mul", "dequantize_all", "dequant_add_rmsnorm")
    ):
        variant = BY_NAME[name]
        source, dtype = variant.sources[0], variant.targets[number % len(variant.targets)]
        pattern = pattern_for(variant, SIX_EIGHT)
        residual = "residual" in variant.operands
        problem = KernelProblem(
            variant.op, 1000, 700, DTYPES[source], DTYPES[dtype], pattern, residual
        )
        offered = candidates(problem)
        for config in [*offered[:: max(1, len(offered) // 4)], *more]:
            cases.append(
                {
                    "variant": variant,
                    "m": 1000,
                    "k": 700,
                    "source": source,
                    "dtype": dtype,
                    "pattern": pattern,
                    "seed": seed,
                    "device": CUDA,
                    "gap": 6 * (number % 2),
                    "config": config,
                    "wide": number % 2 == 0,
                }
            )
    kernel_variants.check_all(cases)


def operands(variant, seed, m=129):
    """The problem that the tests below share, so that its kernel is compiled once."""
    dtype, pattern = variant.targets[0], pattern_for(variant, SIX_EIGHT)
    return variant.draw(m, 576, variant.sources[0], seed, CUDA), dtype, pattern


@each_variant
def test_two_runs_agree(variant, seed):
    t, dtype, pattern = operands(variant, seed)
    first, second = (variant.call(t, dtype, pattern) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        checks.assert_same_bits(a, b)


@each_variant
def test_no_rows(variant):
    t, dtype, pattern = operands(variant, 0, m=0)
    made = variant.call(t, dtype, pattern)
    assert [(tuple(o.shape), o.dtype) for o in made] == variant.shapes(t, dtype, pattern)


@each_variant
def test_a_graph_replays_with_changed_inputs(variant, seed):
    """The functional and the out form in one graph."""
    t, dtype, pattern = operands(variant, seed)
    outs = tuple(each.view for each in variant.poisoned(t, dtype, pattern))
    variant.into(t, dtype, pattern, outs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = variant.call(t, dtype, pattern)
        variant.into(t, dtype, pattern, outs)
    for run in (1, 2):
        new = variant.draw(129, 576, variant.sources[0], seed + run, CUDA)
        for name, tensor in t.items():
            tensor.copy_(new[name])
        for out in (*made, *outs):
            out.view(torch.uint8).fill_(0xA5)
        graph.replay()
        want = variant.reference(t, dtype, pattern)
        variant.assert_right(made, want)
        variant.assert_right(outs, want)


@each_variant
def test_opcheck(variant, seed):
    t, dtype, pattern = operands(variant, seed, m=3)
    op, arguments = variant.functional_op(t, dtype, pattern)
    torch.library.opcheck(op, (), arguments)
    # FP8 operands cannot be checked: torch multiplies them.
    dtype = variant.targets[1]
    outs = tuple(
        torch.zeros(shape, dtype=kind, device=CUDA)
        for shape, kind in variant.shapes(t, dtype, pattern)
    )
    op, arguments = variant.out_op(t, pattern, outs)
    torch.library.opcheck(op, (), arguments)


def test_a_layer_compiles_for_every_m(seed):
    """Inductor around five of the ops, one graph without a break, M dynamic."""
    torch._dynamo.reset()
    compiles = []

    def layer(x, residual, weight, column):
        q, scale, hidden = rmsnorm_quantize(x, weight, 1e-6, INT8, SIX_EIGHT, residual=residual)
        y = dequantize(q[:, :512].to(torch.int32), scale, column[:512])
        q, scale = silu_mul_quantize(y * 2, FP8)
        z = dequantize(q.float(), scale, column[:256], residual=hidden[:, :256])
        return *quantize(z + 1, INT8, SIX_EIGHT), hidden

    def backend(graph, inputs):
        compiles.append(len(graph.graph.nodes))
        return torch._inductor.compile(graph, inputs)

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    t = {m: BY_NAME["add_rmsnorm"].draw(m, 576, torch.bfloat16, seed, CUDA) for m in (7, 129, 300)}
    column = checks.positive(576, seed, CUDA)
    for each in t.values():
        for name in ("x", "residual"):
            torch._dynamo.mark_dynamic(each[name], 0)
        arguments = (each["x"], each["residual"], each["weight"], column)
        got, want = compiled(*arguments), layer(*arguments)
        # Inductor may keep y * 2 and z + 1 in float32: the last place of some differs.
        assert torch.equal(got[2], want[2])
        assert (checks.codes(got[0]) - checks.codes(want[0])).abs().max() <= 2
        torch.testing.assert_close(got[1], want[1], rtol=1e-2, atol=0)
    assert len(compiles) == 1


@pytest.mark.parametrize("overlap", [True, False])
def test_kernels_that_overlap_wait_for_each_other(overlap, seed):
    """A chain in one stream, each kernel reading what the one before wrote."""
    config = Config(block=1024, warps=4, overlap=overlap)
    m, k, inputs = 512, 3584, 5
    a = [checks.draw(m, k, torch.int32, seed + i, CUDA) for i in range(inputs)]
    row, column = checks.positive(m, seed, CUDA), checks.positive(k, seed, CUDA)
    x = torch.empty(m, k, dtype=torch.bfloat16, device=CUDA)
    scale = torch.empty(m, device=CUDA)
    q = torch.empty(inputs, m, SIX_EIGHT.expanded_k(k), dtype=FP8, device=CUDA)
    y = torch.empty(RUNS, m, k, dtype=torch.bfloat16, device=CUDA)
    for i in range(RUNS):
        launch_dequantize(a[i % inputs], Scaled(row, column), None, x, config)
        launch_quantize(x, q[i % inputs], scale, None, SIX_EIGHT, config)
        launch_dequantize(a[i % inputs], Scaled(scale, column), x, y[i], config)
    for i in range(inputs):
        hidden = dequantize(a[i], row, column)
        want_q, want_scale = quantize(hidden, FP8, SIX_EIGHT)
        checks.assert_same_bits(q[i], want_q)
        want = dequantize(a[i], want_scale, column, residual=hidden)
        for run in range(i, RUNS, inputs):
            assert torch.equal(y[run], want), f"run {run}"
