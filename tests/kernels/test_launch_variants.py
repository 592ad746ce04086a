"""What holds for every operation: outputs, strides, configurations, and torch's side of it."""

from __future__ import annotations

import kernel_checks as checks
import kernel_variants
import pytest
import torch
from kernel_variants import VARIANTS, Variant
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from slidesparse.kernels.config import Config
from slidesparse.kernels.launch import INTERPRETED
from slidesparse.pattern import Pattern

SIX_EIGHT = Pattern.parse("6:8")
SHAPES = [(1, 64), (7, 576), (2, 3588), (129, 20), (3, 1)]
MANY_ROWS = ("quantize", "add_rmsnorm", "silu_mul", "dequantize")
"""The interpreter takes a second for 129 rows: one variant of each kernel."""

CONFIGS = [
    Config(block=64, warps=1),
    Config(block=256, warps=4, rows=4),
    Config(block=128, warps=2, rows=2, per_sm=2, stages=2),
    Config(block=1024, warps=8, overlap=True),
]
# Triton's own, in its interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
kernel_only = pytest.mark.skipif(
    not INTERPRETED, reason="launches on the CPU: needs TRITON_INTERPRET=1, as without a GPU"
)


def target(variant: Variant, index: int) -> torch.dtype:
    return variant.targets[index % len(variant.targets)]


def pattern_for(variant: Variant, pattern: Pattern) -> Pattern:
    return pattern if variant.op.quantizes else variant.patterns[0]


@pytest.mark.parametrize(
    ("variant", "pattern"),
    [(variant, pattern) for variant in VARIANTS for pattern in variant.patterns],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_every_pattern_and_dtype(variant, pattern, seed):
    """K = 77 is odd and no multiple of any 2N; the sources take turns."""
    for turn, dtype in enumerate(variant.targets):
        source = variant.sources[(pattern.block // 2 + turn) % len(variant.sources)]
        kernel_variants.check_against_reference(variant, 3, 77, source, dtype, pattern, seed)


@each_variant
def test_every_source_and_target(variant, seed):
    pattern = pattern_for(variant, Pattern.parse("4:6"))
    for source in variant.sources:
        for dtype in variant.targets:
            kernel_variants.check_against_reference(variant, 2, 100, source, dtype, pattern, seed)


@pytest.mark.parametrize(
    ("variant", "shape"),
    [(v, shape) for v in VARIANTS for shape in SHAPES if shape[0] < 100 or v.name in MANY_ROWS],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_odd_shapes(variant, shape, seed):
    index = SHAPES.index(shape)
    pattern = pattern_for(variant, Pattern.parse("8:10"))
    source = variant.sources[index % len(variant.sources)]
    kernel_variants.check_against_reference(
        variant, *shape, source, target(variant, index), pattern, seed
    )


@each_variant
@pytest.mark.parametrize("text", ["dense", "6:8"])
def test_rows_may_be_strided_and_what_lies_between_stays(variant, text, seed):
    pattern = pattern_for(variant, Pattern.parse(text))
    for index, source in enumerate(variant.sources):
        kernel_variants.check_against_reference(
            variant, 4, 146, source, target(variant, index), pattern, seed, gap=6
        )


@kernel_only
@each_variant
def test_every_operand_has_a_stride_of_its_own(variant, seed):
    """A residual that is not updated in place too, which only the launcher takes."""
    pattern = pattern_for(variant, SIX_EIGHT)
    kernel_variants.check_against_reference(
        variant,
        4,
        146,
        variant.sources[0],
        target(variant, 0),
        pattern,
        seed,
        gap=6,
        config=Config(block=256, warps=4),
    )


@kernel_only
@each_variant
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.block}x{c.rows}-{c.per_sm}")
def test_configurations_agree(variant, config, seed):
    """Many chunks and one, several rows a program, a grid that shares out the rows."""
    turn = CONFIGS.index(config) + VARIANTS.index(variant)
    pattern = pattern_for(variant, SIX_EIGHT) if turn % 2 else variant.patterns[0]
    dtype, source = target(variant, turn // 2), variant.sources[0]
    kernel_variants.check_against_reference(
        variant, 4, 300, source, dtype, pattern, seed, config=config, wide=bool(turn % 2)
    )


@kernel_only
@pytest.mark.parametrize("pattern", checks.PATTERNS, ids=str)
def test_a_row_of_many_chunks_of_every_pattern(pattern, seed):
    """Smallest blocks: every chunk but the first depends on where the one before ended."""
    config = Config(block=1, warps=1)
    kernel_variants.check_against_reference(
        kernel_variants.BY_NAME["quantize"],
        2,
        1500,
        torch.float32,
        torch.int8,
        pattern,
        seed,
        config=config,
    )


@each_variant
def test_no_rows_give_empty_outputs(variant, seed):
    pattern = pattern_for(variant, SIX_EIGHT)
    t = variant.draw(0, 100, variant.sources[0], seed)
    for dtype in variant.targets:
        made = variant.call(t, dtype, pattern)
        assert [(tuple(o.shape), o.dtype) for o in made] == variant.shapes(t, dtype, pattern)
        poisoned = variant.poisoned(t, dtype, pattern)
        variant.into(t, dtype, pattern, tuple(each.view for each in poisoned))
        assert all(each.surroundings_are_intact() for each in poisoned)


@each_variant
def test_two_runs_agree_and_operands_stay(variant, seed):
    pattern = pattern_for(variant, SIX_EIGHT)
    t = variant.draw(4, 200, variant.sources[0], seed)
    before = {name: tensor.clone() for name, tensor in t.items()}
    first = variant.call(t, variant.targets[0], pattern)
    second = variant.call(t, variant.targets[0], pattern)
    for a, b in zip(first, second, strict=True):
        checks.assert_same_bits(a, b)
    assert all(torch.equal(tensor, before[name]) for name, tensor in t.items())


@each_variant
def test_opcheck_of_the_functional_op(variant, seed):
    for dtype, pattern in zip(variant.targets, (SIX_EIGHT, variant.patterns[0]), strict=False):
        t = variant.draw(3, 40, variant.sources[0], seed)
        op, arguments = variant.functional_op(t, dtype, pattern_for(variant, pattern))
        torch.library.opcheck(op, (), arguments)


@each_variant
def test_opcheck_of_the_out_op(variant, seed):
    """INT8 or FP16: FP8 operands cannot be checked, torch multiplies them."""
    pattern = pattern_for(variant, SIX_EIGHT)
    dtype = target(variant, 1)
    t = variant.draw(3, 40, variant.sources[0], seed)
    outs = tuple(
        torch.zeros(shape, dtype=kind) for shape, kind in variant.shapes(t, dtype, pattern)
    )
    op, arguments = variant.out_op(t, pattern, outs)
    torch.library.opcheck(op, (), arguments)


@each_variant
def test_fake_tensors_have_the_right_shapes(variant, seed):
    for pattern in variant.patterns:
        for dtype in variant.targets:
            t = variant.draw(5, 90, variant.sources[0], seed)
            want = variant.shapes(t, dtype, pattern)
            with FakeTensorMode() as mode:
                fakes = {name: mode.from_tensor(tensor) for name, tensor in t.items()}
                made = variant.call(fakes, dtype, pattern)
            assert [(tuple(o.shape), o.dtype) for o in made] == want
            assert [o.is_contiguous() for o in made] == [True] * len(made)


@each_variant
def test_compiles_once_for_every_m(variant, seed):
    """One graph without a break serves M = 3 and M = 7."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    pattern = pattern_for(variant, SIX_EIGHT)
    dtype = variant.targets[0]

    @torch.compile(backend=counter, fullgraph=True)
    def compiled(t):
        t = {**t, variant.first: t[variant.first] + 1}
        return variant.call(t, dtype, pattern)

    for m in (3, 7):
        t = variant.draw(m, 40, variant.sources[0], seed)
        for name in (variant.first, "row_scale", "residual"):
            if name in t:
                torch._dynamo.mark_dynamic(t[name], 0)
        want = variant.call({**t, variant.first: t[variant.first] + 1}, dtype, pattern)
        for a, b in zip(compiled(t), want, strict=True):
            checks.assert_same_bits(a, b)
    assert counter.frame_count == 1
