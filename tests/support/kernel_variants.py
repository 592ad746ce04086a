"""Every operation in its variants behind one interface: drawn, called, launched, compared.

What holds for all of them (custom ops, strides, poisoned outputs, graphs) is tested once over
VARIANTS; what each computes is tested in the file of its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import kernel_checks as checks
import torch

from slidesparse import kernels
from slidesparse.kernel_problem import Op
from slidesparse.kernels import reference
from slidesparse.kernels.config import Config
from slidesparse.kernels.dequant import launch_dequantize
from slidesparse.kernels.launch import Scaled
from slidesparse.kernels.quant import launch_quantize
from slidesparse.kernels.rmsnorm_quant import launch_rmsnorm_quantize
from slidesparse.kernels.silu_mul_quant import launch_silu_mul_quantize
from slidesparse.pattern import DENSE, Pattern

Tensors = dict[str, torch.Tensor]
Outputs = tuple[torch.Tensor, ...]
SCALINGS = ("row_scale", "column_scale")


@dataclass(frozen=True)
class Variant:
    """One operation with the operands that it takes.

    Args:
        name: of the test.
        op: what is done.
        operands: beside the rows: "weight", "residual", "bias", "static_scale".
    """

    name: str
    op: Op
    operands: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        """The name of the rows."""
        if self.op.dequantizes:
            return "a"
        return "gate_up" if self.halves else "x"

    @property
    def halves(self) -> bool:
        """Whether it reads [M, 2K]."""
        return "silu" in self.op.value

    @property
    def sources(self) -> list[torch.dtype]:
        """The dtypes that it reads."""
        return checks.ACCUMULATORS if self.op.dequantizes else checks.FLOATS

    @property
    def targets(self) -> list[torch.dtype]:
        """The dtypes that it writes."""
        return checks.QUANTISED if self.op.quantizes else checks.FLOATS

    @property
    def patterns(self) -> list[Pattern]:
        """The patterns that it lifts for."""
        return checks.PATTERNS if self.op.quantizes else [DENSE]

    def draw(
        self, m: int, k: int, source: torch.dtype, seed: int, device: str = "cpu", gap: int = 0
    ) -> Tensors:
        """Random operands; the residual has the dtype of floating rows, bf16 beside int32.

        With a `gap` between its rows, every operand has another than the rest: see `poisoned`.
        """
        width = 2 * k if self.halves else k
        kept = source if source.is_floating_point else torch.bfloat16
        made = {self.first: checks.draw(m, width, source, seed, device, gap)}
        if self.op.dequantizes:
            made["row_scale"] = checks.positive(m, seed, device)
            made["column_scale"] = checks.positive(width, seed + 1, device)
        makers: dict[str, Callable[[], torch.Tensor]] = {
            "weight": lambda: checks.draw(1, k, kept, seed + 2, device).reshape(k),
            "bias": lambda: checks.draw(1, width, kept, seed + 3, device).reshape(width),
            "residual": lambda: checks.draw(m, k, kept, seed + 4, device, 2 * gap),
            "static_scale": lambda: torch.full((1,), 0.005 * (1 + seed % 3), device=device),
        }
        return made | {name: makers[name]() for name in self.operands}

    def call(self, t: Tensors, dtype: torch.dtype, pattern: Pattern) -> Outputs:
        """Through the public function, into new outputs."""
        return self._tuple(self._function(kernels)(**self._arguments(t, dtype, pattern)), t)

    def into(self, t: Tensors, dtype: torch.dtype, pattern: Pattern, outs: Outputs) -> Outputs:
        """Through the public function, into `outs`; a norm's residual is updated in place."""
        t = dict(t)
        if "residual" in t and "weight" in t:
            outs[-1].copy_(t["residual"])
            t["residual"] = outs[-1]
        arguments = self._arguments(t, dtype, pattern)
        given = outs if self.op is not Op.RMSNORM_QUANTIZE else outs[:2]
        arguments["out"] = given if self.op.quantizes else given[0]
        return self._tuple(self._function(kernels)(**arguments), t)

    def functional_op(
        self, t: Tensors, dtype: torch.dtype, pattern: Pattern
    ) -> tuple[torch._ops.OpOverload, dict[str, object]]:
        """The custom op that makes its outputs, and its arguments."""
        arguments = self._op_arguments(t, pattern) | {"dtype": dtype}
        return _op(self._op_name(t)), arguments

    def out_op(
        self, t: Tensors, pattern: Pattern, outs: Outputs
    ) -> tuple[torch._ops.OpOverload, dict[str, object]]:
        """The custom op that writes to `outs`, and its arguments."""
        arguments = self._op_arguments(t, pattern)
        if self.op is Op.DEQUANTIZE:
            return _op(f"{self.op}_out"), arguments | {"out": outs[0]}
        arguments |= {"q": outs[0], "scale_out": outs[1]}
        if self.op is Op.DEQUANT_RMSNORM_QUANTIZE:
            arguments |= {"hidden": outs[2], "add": arguments.pop("residual", None) is not None}
        return _op(f"{self._op_name(t)}_out"), arguments

    def _op_name(self, t: Tensors) -> str:
        adds = self.op is Op.RMSNORM_QUANTIZE and "residual" in t
        return f"{'add_' if adds else ''}{self.op}"

    def launch(
        self,
        t: Tensors,
        dtype: torch.dtype,
        pattern: Pattern,
        outs: Outputs,
        config: Config,
        wide: bool | None = None,
    ) -> None:
        """Start the kernel in a configuration."""
        x = t[self.first]
        scaled = None
        if self.op.dequantizes:
            scaled = Scaled(t["row_scale"], t["column_scale"], t.get("bias"))
        residual, static = t.get("residual"), t.get("static_scale")
        if self.op is Op.DEQUANTIZE:
            assert scaled is not None
            launch_dequantize(x, scaled, residual, outs[0], config, wide)
        elif self.op is Op.QUANTIZE:
            launch_quantize(x, outs[0], outs[1], static, pattern, config, wide)
        elif self.halves:
            launch_silu_mul_quantize(x, outs[0], outs[1], pattern, config, scaled, wide, static)
        else:
            hidden = outs[2] if len(outs) > 2 else None
            launch_rmsnorm_quantize(
                x,
                t["weight"],
                checks.EPS,
                outs[0],
                outs[1],
                pattern,
                config,
                residual,
                hidden,
                scaled,
                wide,
                static,
            )

    def reference(self, t: Tensors, dtype: torch.dtype, pattern: Pattern) -> Outputs:
        """What slidesparse.kernels.reference makes of it."""
        arguments = self._arguments(t, dtype, pattern)
        if self.op is Op.DEQUANTIZE:
            arguments["out_dtype"] = arguments.pop("dtype")
        if self.op is Op.DEQUANT_RMSNORM_QUANTIZE:
            arguments["hidden_dtype"] = t.get("residual", t["weight"]).dtype
        return self._tuple(self._function(reference)(**arguments), t)

    def shapes(
        self, t: Tensors, dtype: torch.dtype, pattern: Pattern
    ) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each output."""
        m, width = t[self.first].shape
        k = width // 2 if self.halves else width
        if not self.op.quantizes:
            return [((m, k), dtype)]
        made = [((m, pattern.expanded_k(k)), dtype), ((m,), torch.float32)]
        if "residual" in t or self.op is Op.DEQUANT_RMSNORM_QUANTIZE:
            made.append(((m, k), t.get("residual", t["weight"]).dtype))
        return made

    def poisoned(
        self, t: Tensors, dtype: torch.dtype, pattern: Pattern, gap: int = 0
    ) -> list[checks.Poisoned]:
        """Outputs full of poison, on the device of the operands; their gaps are 3, 4... times."""
        device = str(t[self.first].device)
        return [
            checks.Poisoned(shape, kind, device, times * gap if len(shape) == 2 else 0)
            for times, (shape, kind) in enumerate(self.shapes(t, dtype, pattern), start=3)
        ]

    def assert_right(self, got: Outputs, want: Outputs) -> None:
        """`quantize` agrees in every bit; where a sum's order decides, codes may be neighbours."""
        assert len(got) == len(want)
        if self.op is Op.DEQUANTIZE:
            checks.assert_rounded_once(got[0], want[0])
        elif self.op is Op.QUANTIZE:
            checks.assert_same_bits(got[0], want[0])
            checks.assert_same_bits(got[1], want[1])
        else:
            checks.assert_close_codes(got[0], want[0])
            checks.assert_close_scales(got[1], want[1])
        if len(got) > 2 and self.op is Op.RMSNORM_QUANTIZE:
            checks.assert_same_bits(got[2], want[2])
        elif len(got) > 2:
            checks.assert_rounded_once(got[2], want[2])

    def _function(self, module: object) -> Callable[..., torch.Tensor | Outputs]:
        return getattr(module, self.op.value)

    def _arguments(self, t: Tensors, dtype: torch.dtype, pattern: Pattern) -> dict[str, object]:
        made: dict[str, object] = {**t, "dtype": dtype}
        if self.op.quantizes:
            made["pattern"] = pattern
        if "weight" in t:
            made["eps"] = checks.EPS
        return made

    def _op_arguments(self, t: Tensors, pattern: Pattern) -> dict[str, object]:
        made: dict[str, object] = dict(t)
        if self.op.quantizes:
            made["block"] = pattern.block
        if "weight" in t:
            made["eps"] = checks.EPS
        return made

    def _tuple(self, made: torch.Tensor | Outputs, t: Tensors) -> Outputs:
        """The outputs alone: rmsnorm_quantize without a residual hands x back."""
        if isinstance(made, torch.Tensor):
            return (made,)
        alone = self.op is Op.RMSNORM_QUANTIZE and "residual" not in t
        return made[:2] if alone else made


def _op(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.slidesparse, name).default


VARIANTS = [
    Variant("quantize", Op.QUANTIZE),
    Variant("quantize_static", Op.QUANTIZE, ("static_scale",)),
    Variant("rmsnorm", Op.RMSNORM_QUANTIZE, ("weight",)),
    Variant("rmsnorm_static", Op.RMSNORM_QUANTIZE, ("weight", "static_scale")),
    Variant("add_rmsnorm", Op.RMSNORM_QUANTIZE, ("weight", "residual")),
    Variant("add_rmsnorm_static", Op.RMSNORM_QUANTIZE, ("weight", "residual", "static_scale")),
    Variant("silu_mul", Op.SILU_MUL_QUANTIZE),
    Variant("silu_mul_static", Op.SILU_MUL_QUANTIZE, ("static_scale",)),
    Variant("dequantize", Op.DEQUANTIZE),
    Variant("dequantize_all", Op.DEQUANTIZE, ("bias", "residual")),
    Variant("dequant_rmsnorm", Op.DEQUANT_RMSNORM_QUANTIZE, ("weight",)),
    Variant("dequant_add_rmsnorm", Op.DEQUANT_RMSNORM_QUANTIZE, ("weight", "bias", "residual")),
    Variant("dequant_silu_mul", Op.DEQUANT_SILU_MUL_QUANTIZE),
    Variant("dequant_silu_mul_bias", Op.DEQUANT_SILU_MUL_QUANTIZE, ("bias",)),
]
BY_NAME = {variant.name: variant for variant in VARIANTS}


def check_all(cases: Iterable[dict[str, Any]]) -> None:
    """`check_against_reference` of each case on the GPU, in threads: they wait for the compiler."""
    listed = list(cases)
    # The first alone: it starts Triton's driver.
    check_against_reference(**listed[0])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(check_against_reference, **case) for case in listed[1:]]
    failed = []
    for case, future in zip(listed[1:], futures, strict=True):
        if (error := future.exception()) is not None:
            shown = ", ".join(f"{key}={value}" for key, value in case.items())
            failed.append(f"{shown}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


def check_against_reference(
    variant: Variant,
    m: int,
    k: int,
    source: torch.dtype,
    dtype: torch.dtype,
    pattern: Pattern,
    seed: int,
    device: str = "cpu",
    gap: int = 0,
    config: Config | None = None,
    wide: bool | None = None,
) -> None:
    """Run on poisoned outputs, `gap` elements or more between rows; compare with the reference."""
    t = variant.draw(m, k, source, seed, device, gap)
    poisoned = variant.poisoned(t, dtype, pattern, gap)
    outs = tuple(each.view for each in poisoned)
    if config is None:
        variant.into(t, dtype, pattern, outs)
    else:
        variant.launch(t, dtype, pattern, outs, config, wide)
    variant.assert_right(outs, variant.reference(t, dtype, pattern))
    assert all(each.surroundings_are_intact() for each in poisoned), "wrote beside the output"
