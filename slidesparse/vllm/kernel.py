"""The classes that vLLM asks first for its W8A8 linear layers, FP8 and INT8.

vLLM chooses a class before a layer's weights are there, and what is fastest depends on them. So
each of ours holds the kernel that vLLM would have chosen, and hands the layer to it if nothing of
ours is measured to be faster. Importing this module imports vLLM's linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from vllm.model_executor.kernels.linear import (
    FP8ScaledMMLinearKernel,
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearKernel,
    Int8ScaledMMLinearLayerConfig,
)
from vllm.platforms import current_platform

from slidesparse.layers.op import linear_op
from slidesparse.vllm import compat
from slidesparse.vllm.session import refusal, session_for
from slidesparse.vllm.taken import Taken

FORM = "slidesparse_form_"
"""Before the names of the layer's parameters that hold further forms of its weight."""


class _Ours:
    """What both kinds share; stands before vLLM's class in the order of resolution."""

    kind: ClassVar[str]

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """On NVIDIA GPUs."""
        if not current_platform.is_cuda():
            return False, "needs an NVIDIA GPU"
        return True, None

    def __init__(self, c: Any, layer_param_names: Sequence[str]) -> None:
        """Make the kernel that vLLM would have made, and note the layer."""
        self.config, self.layer_param_names = c, layer_param_names
        self.stock = compat.stock_kernel(type(self), self.kind, c)(c, layer_param_names)
        self.session = session_for(compat.current_config())
        self.session.open_layer()
        self.taken = False

    def __getattr__(self, name: str) -> Any:
        """Whatever else vLLM looks for is the stock kernel's."""
        if name == "stock":  # Not made yet: looking it up there would never end.
            raise AttributeError(name)
        return getattr(self.stock, name)

    def apply_weights(
        self, layer: nn.Module, x: Any, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Make [..., N] of x [..., K], by our plan or as vLLM does it."""
        if not self.taken:
            made: torch.Tensor = self.stock.apply_weights(layer, x, bias)
            return made
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        forms = [getattr(layer, name) for name in self.forms]
        out: torch.Tensor = linear_op(
            rows, forms, layer.weight_scale, bias, self.plan, self.x_scale_of(layer)
        )
        return out.view(*x.shape[:-1], out.shape[-1])

    def x_scale_of(self, layer: nn.Module) -> torch.Tensor | None:
        """The static scale of the layer's activations, None if each token has its own."""
        scale: Any = layer.input_scale if self.static else None
        return None if scale is None else torch.as_tensor(scale)

    def _offer(
        self,
        layer: nn.Module,
        q: torch.Tensor,
        scale: torch.Tensor,
        x_scale: torch.Tensor | None,
        out: torch.dtype,
    ) -> None:
        """Take the layer over, or have the stock kernel ready it."""
        bias = getattr(layer, "bias", None) is not None
        taken = self.session.take(q, scale, x_scale, out, bias)
        if taken is None:
            self.stock.process_weights_after_loading(layer)
        else:
            self._use(layer, taken)

    def _use(self, layer: nn.Module, taken: Taken) -> None:
        names = ["weight", *(f"{FORM}{i}" for i in range(1, len(taken.forms)))]
        for name, form in zip(names, taken.forms, strict=True):
            # Parameters, as vLLM's own: a compiled graph takes them as its inputs.
            _replace(layer, name, form)
        _replace(layer, "weight_scale", taken.scale)
        self.static = taken.x_scale is not None
        if taken.x_scale is not None:
            _replace(layer, "input_scale", taken.x_scale)
        self.forms, self.plan, self.taken = tuple(names), taken.plan.to_text(), True


class SlideSparseFP8LinearKernel(_Ours, FP8ScaledMMLinearKernel):  # type: ignore[misc]
    """FP8 weights per channel or tensor; activations per token, or one static scale."""

    kind = "fp8"

    @classmethod
    def can_implement(cls, c: FP8ScaledMMLinearLayerConfig) -> tuple[bool, str | None]:
        """Scales that are no blocks, 16-bit results, and a model that may be taken over."""
        for key in (c.weight_quant_key, c.activation_quant_key):
            if key.scale2 is not None or key.scale.group_shape.is_per_group() or not key.symmetric:
                return False, "scales per tensor, channel or token are needed"
        activation = c.activation_quant_key.scale
        if activation.static != activation.group_shape.is_per_tensor():
            return False, "activations need a scale per token or one static scale"
        reason = refusal(compat.current_config())
        return not reason, reason or None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Take over the layer's weight [K, N], a transposed view, or leave it to vLLM."""
        w, w_scale = (getattr(layer, name) for name in self.layer_param_names[:2])
        x_scale, upper = (getattr(layer, name, None) for name in self.layer_param_names[2:])
        if upper is not None:
            self.session.leave("its activation scales have an upper bound")
            self.stock.process_weights_after_loading(layer)
            return
        self._offer(layer, w.detach().t(), w_scale, x_scale, self.config.out_dtype)

    def apply_scaled_mm(self, **operands: Any) -> torch.Tensor:
        """As the stock kernel."""
        made: torch.Tensor = self.stock.apply_scaled_mm(**operands)
        return made


class SlideSparseInt8LinearKernel(_Ours, Int8ScaledMMLinearKernel):  # type: ignore[misc]
    """INT8 weights per channel or tensor, activations per token."""

    kind = "int8"

    @classmethod
    def can_implement(cls, c: Int8ScaledMMLinearLayerConfig) -> tuple[bool, str | None]:
        """Symmetric, dynamic activations, and a model that may be taken over."""
        if c.is_static_input_scheme or not c.input_symmetric:
            return False, "symmetric activations with a scale per token are needed"
        reason = refusal(compat.current_config())
        return not reason, reason or None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Take over the layer's weight [N, K], or leave it to vLLM."""
        w, w_scale = (getattr(layer, name) for name in self.layer_param_names[:2])
        scale = w_scale.detach()
        merged: list[int] = getattr(layer, "logical_widths", [])
        if scale.numel() != w.shape[0] and len(merged) == scale.numel():
            # One scale for each of the linears that vLLM merged: qkv, gate and up.
            widths = torch.tensor(merged, device=scale.device)
            scale = scale.reshape(-1).repeat_interleave(widths)
        out = self.session.config.model_config.dtype
        self._offer(layer, w.detach(), scale, None, out)


def install() -> None:
    """Have vLLM ask our classes first."""
    compat.put_first(SlideSparseFP8LinearKernel, "fp8")
    compat.put_first(SlideSparseInt8LinearKernel, "int8")


def _replace(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    if name in layer._parameters:
        del layer._parameters[name]
    elif hasattr(layer, name):
        delattr(layer, name)
    layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
