"""SparseLinear on the GPU: every way, any number of tokens, against float64 of its operands."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import gpu_layers as layers
import kernel_checks as checks
import layer_plans as plans
import native_layers
import pytest
import torch
from gpu_layers import CUDA, Tuned, candidate_of
from layer_plans import INT_MM, REFERENCE, SCALED_MM

from slidesparse.candidate import Candidate
from slidesparse.devices import Device, detect
from slidesparse.errors import KernelError, PatternError
from slidesparse.layers import SparseLinear, planning
from slidesparse.layers.ways import TorchInt, TorchScaled
from slidesparse.pattern import Pattern

FP8, INT8 = checks.QUANTISED
BF16, FP16, FP32 = checks.FLOATS
TOKENS = (1, 7, 16, 17, 129, 4097, 0)
FEW_TOKENS = (1, 7, 16, 17, 129, 0)
QWEN = (4608, 3584)
ODD = (288, 336)
"""A last block of 6:8 is whole, of 4:6 too, of 8:10 not; K' of every pattern is padded."""

LARGE = 65536, 37888, 512
LARGE_MIB = 60_000
CHECKED_ROWS = 2048

WAYS = [
    ("torch", FP8, BF16),
    *(("torch", FP8, out) for out in (FP16, FP32)),  # Scales are not fused here.
    *(("torch", INT8, out) for out in (BF16, FP16, FP32)),
    *(("cublaslt", FP8, out) for out in (BF16, FP16)),
    *(("cublaslt", INT8, out) for out in (BF16, FP16, FP32)),
    *(("native", dtype, out) for dtype in (FP8, INT8) for out in (BF16, FP16)),
    *(("cusparselt", dtype, BF16) for dtype in (FP8, INT8)),
    *(("reference", dtype, out) for dtype in (FP8, INT8) for out in (BF16, FP32)),
]
each_way = pytest.mark.parametrize(("way", "dtype", "out"), WAYS, ids=checks.short)
each_dtype = pytest.mark.parametrize("dtype", [FP8, INT8], ids=checks.short)


@pytest.fixture(scope="module", autouse=True)
def _compiled(gpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code is kept in a folder of this module."""
    yield from native_layers.on_hopper(gpu, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tuned(gpu, tmp_path) -> Iterator[Tuned]:
    with layers.tuned_at(gpu, tmp_path) as use:
        yield use
    torch.cuda.empty_cache()


@each_way
def test_every_way_at_qwens_sizes(way, dtype, out, tuned, seed):
    shape = layers.shape(*QWEN, quantised=dtype, out=out, bias=True)
    layer = layers.running(tuned, shape, seed, [(16, candidate_of(way, shape))])
    layers.check(layer, shape, seed, TOKENS if way != "reference" else FEW_TOKENS)


@each_way
@pytest.mark.parametrize("bias", [True, False])
def test_every_way_at_odd_sizes(way, dtype, out, bias, tuned, seed):
    shape = layers.shape(*ODD, quantised=dtype, out=out, bias=bias)
    layer = layers.running(tuned, shape, seed, [(16, candidate_of(way, shape))])
    layers.check(layer, shape, seed, TOKENS)


@pytest.mark.parametrize(("way", "dtype"), [(w, d) for w, d, out in WAYS if out is BF16])
def test_the_longest_sums(way, dtype, tuned, seed):
    """K of Qwen2.5-7B's down projection, and so few channels that cuBLAS would split K.

    It cannot with a scale per row and says so when it runs: the scales follow in a pass then.
    """
    shape = layers.shape(512, 18944, "2:4", quantised=dtype, bias=True)
    # Of the model's own width: for this one the heuristic may have nothing but what cannot run.
    asked = shape._replace(n=3584) if way == "cublaslt" else shape
    layer = layers.running(tuned, shape, seed, [(16, candidate_of(way, asked))])
    layers.check(layer, shape, seed, FEW_TOKENS)


@each_dtype
@pytest.mark.parametrize("way", ["native", "cusparselt"])
@pytest.mark.parametrize("pattern", ["2:4", "4:6", "8:10", "14:16"])
@pytest.mark.parametrize("sizes", [(288, 1202), (1504, 40)], ids=str)
def test_every_pattern(sizes, pattern, way, dtype, tuned, seed):
    """K is no multiple of the block, and shorter than one stage."""
    n, k = sizes
    shape = layers.shape(n, k, pattern, quantised=dtype, bias=True)
    if way == "cusparselt" and dtype is FP8 and sizes[1] == 40:
        # K' is 64 or 96, which cuSPARSELt is not asked for.
        tuned([plans.race(shape, 16, {plans.CUSPARSELT: 1.0})])
        layer = layers.layer_of(shape, seed)
        assert plans.steps_of(layer.plan) == [(16, REFERENCE)]
    else:
        layer = layers.running(tuned, shape, seed, [(16, candidate_of(way, shape))])
    layers.check(layer, shape, seed, (1, 16, 129))


@each_dtype
def test_a_native_layer_of_72_channels(dtype, tuned, seed):
    """A multiple of 8 and not of 16: no dense GEMM takes it."""
    shape = layers.shape(72, 100, quantised=dtype, bias=True)
    layer = layers.running(tuned, shape, seed, [(16, candidate_of("native", shape))])
    layers.check(layer, shape, seed, FEW_TOKENS)


@each_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("m", [16, 64, 1024])
def test_the_algorithm_that_was_searched_is_what_runs(m, bias, dtype, tuned, seed, monkeypatch):
    """cuBLASLt leaves to torch what its algorithm does not take: a bias fused, at most."""
    calls = []
    for way in (TorchScaled, TorchInt):
        run = way.run
        monkeypatch.setattr(way, "run", lambda *args, run=run: calls.append(1) or run(*args))
    shape = layers.shape(*QWEN, quantised=dtype, bias=bias)
    offered = layers.found("cublaslt", shape, m)[:6]
    for candidate in offered:
        layer = layers.running(tuned, shape, seed, [(m, candidate)])
        layers.check(layer, shape, seed, [m])
    if bias and dtype is FP8:
        assert len(calls) < len(offered)
    else:
        assert not calls


@each_dtype
def test_an_algorithm_that_does_not_fit_is_left_to_torch(dtype, tuned, seed):
    """One of another product: of this one cuBLASLt refuses it, or it is right."""
    other = layers.shape(4096, 4096, quantised=dtype)
    shape = layers.shape(48, 336, quantised=dtype, bias=True)
    strange = candidate_of("cublaslt", other, 4096)
    layer = layers.running(tuned, shape, seed, [(16, strange)])
    layers.check(layer, shape, seed, FEW_TOKENS)


@each_dtype
def test_each_bucket_runs_its_own_step(dtype, tuned, seed):
    shape = layers.shape(*QWEN, quantised=dtype, bias=True)
    steps = [
        (16, candidate_of("native", shape)),
        (64, candidate_of("torch", shape)),
        (256, candidate_of("native", shape, 256)),
        (1024, candidate_of("cublaslt", shape, 1024)),
        (4096, candidate_of("native", shape, 4096)),
    ]
    layer = layers.running(tuned, shape, seed, steps)
    assert layer.plan.forms == ("dense", "native")
    sizes = (1, 16, 17, 64, 65, 129, 256, 257, 1024, 1025, 4096, 4097)
    assert [layer.plan.at(m).bucket for m in sizes[:6]] == [16, 16, 64, 64, 256, 256]
    layers.check(layer, shape, seed, sizes)


@each_way
def test_a_token_that_is_not_finite_spoils_no_other(way, dtype, out, tuned, seed):
    shape = layers.shape(*ODD, quantised=dtype, out=out, bias=True)
    layer = layers.running(tuned, shape, seed, [(16, candidate_of(way, shape))])
    x = layers.tokens(129, shape, seed)
    clean = layer(x)
    x[17, 40], x[101, 7] = float("nan"), float("inf")
    got = layer(x)
    assert not got[[17, 101]].isfinite().any()
    kept = [row for row in range(129) if row not in (17, 101)]
    assert torch.equal(got[kept], clean[kept])


@each_dtype
@pytest.mark.parametrize("way", ["torch", "native"])
def test_inputs_need_not_be_contiguous(way, dtype, tuned, seed):
    shape = layers.shape(*ODD, quantised=dtype, bias=True)
    layer = layers.running(tuned, shape, seed, [(16, candidate_of(way, shape))])
    wide = layers.tokens(129, shape, seed).repeat(2, 2)
    turned = wide[:129, : shape.k].t().contiguous().t()
    for x in (wide[::2, 5 : 5 + shape.k], wide[:, ::2], turned, wide[:1, : shape.k].expand(7, -1)):
        assert torch.equal(layer(x), layer(x.contiguous()))
        layers.assert_right(layer(x), layer, x)
    x = layers.tokens(24, shape, seed)
    deep = layer(x.view(2, 3, 4, -1))
    assert deep.shape == (2, 3, 4, shape.n)
    assert torch.equal(deep.view(24, -1), layer(x))


class TestUnplanned:
    """What runs without results, or where what was measured does not run."""

    @each_dtype
    def test_without_results_torch_runs_and_one_warning_is_given(self, dtype, tuned, seed, caplog):
        shape = layers.shape(*ODD, quantised=dtype, bias=True)
        with caplog.at_level(logging.WARNING, "slidesparse"):
            made = [layers.layer_of(shape, seed + i) for i in range(3)]
        (said,) = (record.getMessage() for record in caplog.records)
        assert said.startswith("no tuning result for N=288 K=336 ")
        assert "slidesparse search --model MODEL --dtype " in said
        wanted = INT_MM if dtype is INT8 else SCALED_MM
        for layer in made:
            assert plans.steps_of(layer.plan) == [(16, wanted)]
            layers.check(layer, shape, seed, TOKENS)

    @each_dtype
    @pytest.mark.parametrize("sizes", [(37, 100), (288, 100), (40, 336)], ids=str)
    def test_sizes_without_a_gemm_run_plain_torch(self, sizes, dtype, tuned, seed):
        shape = layers.shape(*sizes, quantised=dtype, bias=True)
        layer = layers.layer_of(shape, seed)
        assert plans.steps_of(layer.plan) == [(16, REFERENCE)]
        layers.check(layer, shape, seed, FEW_TOKENS)

    @each_dtype
    def test_a_missing_compiler_leaves_the_dense_way(self, dtype, tuned, seed, monkeypatch):
        shape = layers.shape(*ODD, quantised=dtype, bias=True)
        dense = candidate_of("torch", shape)
        tuned([plans.race(shape, 16, {candidate_of("native", shape): 1.0, dense: 9.0})])
        monkeypatch.setattr("slidesparse.kernels.native.program.missing", lambda: "no NVRTC")
        layer = layers.layer_of(shape, seed)
        assert plans.steps_of(layer.plan) == [(16, dense)]
        layers.check(layer, shape, seed, FEW_TOKENS)

    @pytest.mark.parametrize("way", ["cublaslt", "cusparselt"])
    @each_dtype
    def test_a_missing_library_leaves_another_way(self, way, dtype, tuned, seed, monkeypatch):
        shape = layers.shape(*ODD, quantised=dtype)
        other = candidate_of("native", shape)
        tuned([plans.race(shape, 16, {candidate_of(way, shape): 1.0, other: 9.0})])
        absent = ("none", "not installed")
        monkeypatch.setattr(f"slidesparse.layers.{way}_way.binding_version", lambda name: absent)
        layer = layers.layer_of(shape, seed)
        assert plans.steps_of(layer.plan) == [(16, other)]
        layers.check(layer, shape, seed, FEW_TOKENS)

    def test_a_configuration_that_does_not_compile_costs_a_warning(self, tuned, seed, caplog):
        """INT8 has no instruction for 40 tokens."""
        shape = layers.shape(512, 1024, quantised=INT8, bias=True)
        broken = {**plans.SMALL, "tokens": 40, "box": 8}
        tuned([plans.race(shape, 16, {Candidate("native", broken, sparse=True): 1.0})])
        with caplog.at_level(logging.WARNING, "slidesparse"):
            layer = layers.layer_of(shape, seed)
        assert plans.steps_of(layer.plan) == [(16, INT_MM)]
        (said,) = (record.getMessage() for record in caplog.records)
        assert said.startswith("N=512 K=1024 runs unplanned: ")
        assert "does not compile" in said
        layers.check(layer, shape, seed, FEW_TOKENS)

    def test_a_damaged_algorithm_costs_a_warning(self, tuned, seed, caplog):
        shape = layers.shape(*ODD, quantised=FP8)
        tuned([plans.race(shape, 16, {Candidate("cublaslt", {"algo": "xyz"}): 1.0})])
        with caplog.at_level(logging.WARNING, "slidesparse"):
            layer = layers.layer_of(shape, seed)
        assert "runs unplanned: not a cuBLASLt candidate" in caplog.text
        layers.check(layer, shape, seed, FEW_TOKENS)

    def test_the_results_that_are_shipped_are_used(self, gpu, seed, monkeypatch):
        """With the GPU's own cache: whatever it holds, the layer is right."""
        planning.forget()
        shape = layers.shape(*QWEN, quantised=FP8, bias=True)
        layer = layers.layer_of(shape, seed)
        layers.check(layer, shape, seed, TOKENS)
        planning.forget()


@each_dtype
@pytest.mark.parametrize("memory_format", ["fastest", "smallest"])
def test_one_form_is_kept_where_memory_counts(memory_format, dtype, tuned, seed):
    shape = layers.shape(*QWEN, "2:4", quantised=dtype, bias=True)
    packed, dense = candidate_of("native", shape), candidate_of("torch", shape)
    races = [
        plans.race(shape, 16, {packed: 1.0, dense: 9.0}),
        plans.race(shape, 1024, {packed: 9.0, dense: 1.0}),
    ]
    tuned(races)
    linear = layers.linear_of(shape, seed)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    layer = SparseLinear.from_linear(
        linear, shape.pattern, shape.dtype, memory_format=memory_format
    )
    taken = torch.cuda.memory_allocated() - before
    whole = shape.n * shape.k
    if memory_format == "smallest":
        assert layer.plan.forms == ("native",)
        assert layer.weight_bytes == pytest.approx(whole * 5 / 8, rel=0.02)
        assert taken < 0.7 * whole
    else:
        assert layer.plan.forms == ("dense", "native")
        assert layer.weight_bytes == pytest.approx(whole * 13 / 8, rel=0.02)
    assert f"forms={'+'.join(layer.plan.forms)}" in repr(layer)
    layers.check(layer, shape, seed, TOKENS)


@pytest.mark.parametrize(("way", "pattern"), [("torch", "dense"), ("native", "2:4")])
def test_m_65536_of_qwen_gate_up_is_right_to_the_last_row(way, pattern, gpu, tuned, seed):
    """The output passes 2^31 elements."""
    if detect(gpu).memory_mib < LARGE_MIB:
        pytest.skip(f"needs {LARGE_MIB} MiB of GPU memory")
    m, n, k = LARGE
    assert m * n > 2**31
    shape = layers.shape(n, k, pattern)
    layer = layers.running(tuned, shape, seed, [(m, candidate_of(way, shape, m))])
    x = layers.tokens(m, shape, seed)
    made = layer(x)
    for start in (0, 2**31 // n - CHECKED_ROWS // 2, m - CHECKED_ROWS):
        rows = slice(start, start + CHECKED_ROWS)
        layers.assert_right(made[rows], layer, x[rows])
    assert bool(made.isfinite().all())


class TestRefusals:
    def test_an_unpruned_weight_is_refused_whatever_the_plan_reads(self, tuned, seed):
        shape = layers.shape(*ODD)
        linear = layers.linear_of(shape._replace(pattern=Pattern()), seed)
        for way in ("torch", "native"):
            tuned([plans.race(shape, 16, {candidate_of(way, shape): 1.0})])
            with pytest.raises(PatternError, match=r"row 0, block 0 \(columns 0 to 7\) holds 8"):
                SparseLinear.from_linear(linear, "6:8")

    def test_a_state_of_another_pattern_is_refused(self, tuned, seed):
        shape = layers.shape(*ODD)
        layer = layers.running(tuned, shape, seed, [(16, candidate_of("native", shape))])
        x = layers.tokens(7, shape, seed)
        before = layer(x)
        other = layers.layer_of(shape._replace(pattern=Pattern()), seed)
        with pytest.raises(RuntimeError, match=r"weight: row 0, block 0 .* pattern 6:8 allows 6"):
            layer.load_state_dict(other.state_dict() | {"weight_scale": layer.weight_scale})
        assert torch.equal(layer(x), before)

    def test_an_input_of_another_dtype_is_refused(self, tuned, seed):
        shape = layers.shape(*ODD)
        layer = layers.layer_of(shape, seed)
        with pytest.raises(KernelError, match=r"the layer takes torch.bfloat16 \[\.\.\., 336\]"):
            layer(layers.tokens(7, shape, seed).half())


def test_another_gpu_than_the_current_one(tuned, seed):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    shape = layers.shape(*ODD, bias=True)
    for way in ("torch", "native", "cublaslt"):
        layer = layers.running(tuned, shape, seed, [(16, candidate_of(way, shape))])
        x = layers.tokens(129, shape, seed)
        want = layer(x)
        layers.assert_right(want, layer, x)
        moved = layer.to("cuda:1")
        assert torch.cuda.current_device() == 0
        made = moved(x.to("cuda:1"))
        assert made.device == torch.device("cuda:1")
        assert torch.equal(made.to(CUDA), want)


def test_the_oracle_sees_a_wrong_scale(tuned, seed):
    """What the tests above compare with: it can fail."""
    shape = layers.shape(*ODD, bias=True)
    layer = layers.layer_of(shape, seed)
    x = layers.tokens(129, shape, seed)
    want, got = layers.truth_of(layer, x), layer(x)
    native_layers.assert_right(got, want)
    for wrong in (
        replace(want, w_scale=want.w_scale.roll(1)),
        replace(want, x_scale=want.x_scale.roll(1)),
        replace(want, bias=None),
    ):
        with pytest.raises(AssertionError):
            native_layers.assert_right(got, wrong)
