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
from slidesparse.vllm.taken import Packed, Taken, pack

FORM = "slidesparse_form_"
"""Before the names of the layer's parameters that hold further forms of its weight."""

LATENT = "kv_b_proj"
"""The linear whose weight multi-head latent attention reads itself."""

UNLIKE = ("Marlin",)
"""In the names of stock kernels that do not quantise activations: layers are readied for them in
another way."""


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
        config = compat.current_config()
        self.session = session_for(config)
        self.layer = self.session.open_layer(config)
        self.decided: Taken | None = None
        self.loaded = self.taken = False

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
        scales: tuple[torch.Tensor, torch.Tensor | None],
        out: torch.dtype,
    ) -> None:
        """Take the layer over, or have the stock kernel ready it; weights may come again later.

        What was decided once stays: graphs that were captured hold it.

        Raises:
            PatternError: weights that came again break the pattern of the first ones.
        """
        packed: Packed | None = None
        if self.loaded:
            self.taken = False
            if self.decided is not None:
                packed = pack(self.decided, q, *scales)
        else:
            packed = self._first(layer, q, scales, out)
            self.loaded = True
        if packed is None:
            self.stock.process_weights_after_loading(layer)
        else:
            self._use(layer, packed)

    def _first(
        self,
        layer: Any,
        q: torch.Tensor,
        scales: tuple[torch.Tensor, torch.Tensor | None],
        out: torch.dtype,
    ) -> Packed | None:
        if str(getattr(layer, "prefix", "")).endswith(LATENT):
            self.session.leave(self.layer, "latent attention reads its weight")
            return None
        bias = getattr(layer, "bias", None) is not None
        whole_k = int(getattr(layer, "input_size", q.shape[1]))
        made = self.session.decide(self.layer, q, scales, out, bias, whole_k)
        if made is None:
            return None
        self.decided, packed = made
        return packed

    def _use(self, layer: nn.Module, packed: Packed) -> None:
        assert self.decided is not None
        names = ["weight", *(f"{FORM}{i}" for i in range(1, len(packed.forms)))]
        for name, form in zip(names, packed.forms, strict=True):
            # Parameters, as vLLM's own: a compiled graph takes them as its inputs.
            _replace(layer, name, form)
        _replace(layer, "weight_scale", packed.scale)
        self.static = packed.x_scale is not None
        if packed.x_scale is not None:
            _replace(layer, "input_scale", packed.x_scale)
        self.forms, self.plan = tuple(names), self.decided.plan.to_text()
        self.taken = True


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
        return _may(cls, c)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Take over the layer's weight [K, N], a transposed view, or leave it to vLLM."""
        w, w_scale = (getattr(layer, name) for name in self.layer_param_names[:2])
        x_scale, upper = (getattr(layer, name, None) for name in self.layer_param_names[2:])
        if upper is not None and not self.loaded:
            self.session.leave(self.layer, "its activation scales have an upper bound")
            self.loaded = True
        self._offer(layer, w.detach().t(), (w_scale, x_scale), self.config.out_dtype)

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
        return _may(cls, c)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Take over the layer's weight [N, K], or leave it to vLLM."""
        w, w_scale = (getattr(layer, name) for name in self.layer_param_names[:2])
        scale = w_scale.detach()
        merged: list[int] = getattr(layer, "logical_widths", [])
        if scale.numel() != w.shape[0] and len(merged) == scale.numel():
            # One scale for each of the linears that vLLM merged: qkv, gate and up.
            widths = torch.tensor(merged, device=scale.device)
            scale = scale.reshape(-1).repeat_interleave(widths)
        self._offer(layer, w.detach(), (scale, None), self.layer.dtype)


def _may(ours: type[_Ours], c: Any) -> tuple[bool, str | None]:
    """Whether a layer of this description may be one of ours, and why not. Raises nothing."""
    try:
        reason = refusal(compat.current_config())
        if reason:
            return False, reason
        stock = compat.stock_kernel(ours, ours.kind, c).__name__
    except Exception as error:  # vLLM then goes on with its own classes, and says what it lacks.
        return False, f"{type(error).__name__}: {error}"
    if any(name in stock for name in UNLIKE):
        return False, f"vLLM would run {stock}, which callers ask about by its class"
    return True, None


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
