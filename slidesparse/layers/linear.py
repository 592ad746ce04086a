"""SparseLinear: a linear layer that runs the fastest planned GEMM for every number of tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from slidesparse.errors import CandidateError, KernelError, UsageError
from slidesparse.layers.layer_plan import DENSE_FORM, LayerPlan, from_text
from slidesparse.layers.op import linear_op
from slidesparse.layers.planning import (
    FASTEST,
    MEMORY_FORMATS,
    LayerShape,
    plan_layer,
    safe_plan,
)
from slidesparse.layers.prepared import prepared
from slidesparse.layers.weight import SparseWeight, from_format, to_format
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, parse_dtype
from slidesparse.recipe import Method
from slidesparse.slide import prune_magnitude
from slidesparse.tensors import DTYPES, TORCH_DTYPES

log = logging.getLogger(__name__)

_FORM = "form_"
"""Before the names of the buffers that hold the forms of the weight."""

OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)


class SparseLinear(nn.Module):
    """y = x W^T + bias with W pruned to a pattern and quantised, x quantised per token.

    The weight is kept in the forms that the layer's plan reads, which depends on the device: it is
    planned anew when the layer moves. `state_dict` always holds the portable form, under the names
    of compressed-tensors: `weight` [N, K] quantised, `weight_scale` [N, 1] and `bias`. Inference
    only: a backward pass through it is refused.

    Args:
        weight: pruned and quantised; on the device where the layer will run.
        bias: [N], or None.
        dtype: of the activations and the result: bfloat16, float16 or float32.
        memory_format: "fastest" keeps each form that some number of tokens runs best with,
            "smallest" one form.

    Raises:
        KernelError: the bias, the dtype or the memory format do not fit.
        PatternError: the weight breaks its pattern.
        DeviceError: the GPU cannot run the weight's dtype.
    """

    weight_scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        weight: SparseWeight,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
        memory_format: str = FASTEST,
    ) -> None:
        """Plan the layer and pack the weight."""
        super().__init__()
        if dtype not in OUTPUTS:
            raise KernelError(f"a layer of {dtype}; use bfloat16, float16 or float32")
        if memory_format not in MEMORY_FORMATS:
            raise KernelError(f"memory_format {memory_format!r}; use {' or '.join(MEMORY_FORMATS)}")
        self.out_features, self.in_features = weight.q.shape
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise KernelError(f"bias of shape {tuple(bias.shape)}; [{self.out_features}] is needed")
        self.pattern, self.quantised = weight.pattern, weight.dtype
        self.dtype, self.memory_format = dtype, memory_format
        self.register_buffer("weight_scale", weight.scale.detach()[:, None].contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self._names: tuple[str, ...] = ()
        self._use(weight.q)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        pattern: Pattern | str,
        dtype: DType | str = DType.FP8,
        *,
        prune: Method | str | None = None,
        memory_format: str = FASTEST,
    ) -> SparseLinear:
        """Quantise a linear layer whose weight satisfies a pattern.

        Args:
            linear: with a floating-point weight [N, K].
            pattern: of its zeros, such as "6:8"; "dense" only quantises.
            dtype: "fp8" or "int8".
            prune: "magnitude" to prune the weight here; None to refuse one that breaks the
                pattern. Wanda and SparseGPT need calibration: see slidesparse.prune.
            memory_format: as the class takes it.

        Raises:
            PatternError: the weight breaks the pattern and `prune` is None.
            KernelError: the linear is not one that can be quantised, or an option is unknown.
        """
        wanted = pattern if isinstance(pattern, Pattern) else Pattern.parse(pattern)
        quantised = dtype if isinstance(dtype, DType) else parse_dtype(dtype)
        w = linear.weight.detach()
        if w.ndim != 2 or not w.is_floating_point() or w.dtype not in OUTPUTS:
            raise KernelError(
                f"a weight of {w.dtype} {tuple(w.shape)}; bfloat16, float16 or float32 [N, K] is "
                "needed"
            )
        if prune is not None:
            _check_prune(prune)
            w = prune_magnitude(w, wanted)
        made = SparseWeight.quantise(w, wanted, quantised)
        # A copy: loading a state writes to the layer's bias, and the linear's is not ours.
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(made, bias, w.dtype, memory_format)

    @property
    def plan(self) -> LayerPlan:
        """What runs for which number of tokens on the layer's device."""
        return from_text(self._plan)

    @property
    def weight(self) -> torch.Tensor:
        """The quantised weight [N, K], made from a packed form if that is all there is."""
        name = DENSE_FORM if DENSE_FORM in self._names else self._names[0]
        shape = (self.out_features, self.in_features)
        return from_format(self._form(name), name, shape, self.pattern, self.quantised)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all forms of the weight that are kept."""
        forms = map(self._form, self._names)
        return sum(form.numel() * form.element_size() for form in forms)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., K] of the layer's dtype to [..., N].

        Raises:
            KernelError: x has another width or dtype, or a CUDA graph is being captured on a device
                where the layer never ran.
        """
        if not x.ndim or x.shape[-1] != self.in_features or x.dtype is not self.dtype:
            raise KernelError(
                f"x is {x.dtype} {tuple(x.shape)} and the layer takes {self.dtype} "
                f"[..., {self.in_features}]; convert x, or the layer with .to()"
            )
        rows = x.reshape(-1, self.in_features)
        if rows.stride(1) != 1:  # A transposed x stays a view; kernels read whole rows.
            rows = rows.contiguous()
        made: torch.Tensor = linear_op(rows, *self.operands())
        made = made.view(*x.shape[:-1], self.out_features)
        if made.requires_grad and not torch.compiler.is_compiling():
            made = _InferenceOnly.apply(made)  # type: ignore[no-untyped-call]
        return made

    def operands(self) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor | None, str]:
        """What its operators take behind the rows: weights, scales [N], bias and plan."""
        forms = [self._form(name) for name in self._names]
        return forms, self.weight_scale.view(-1), self.bias, self._plan

    def describe(self, m: int) -> str:
        """What runs for `m` tokens, as a table prints it: backend and its parameters."""
        candidate = self.plan.at(m).candidate
        return candidate.label

    def extra_repr(self) -> str:
        """Sizes, pattern and dtype, and what a weight takes."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, pattern={self.pattern}, dtype={self.quantised}, "
            f"forms={'+'.join(self._names)}"
        )

    def _form(self, name: str) -> torch.Tensor:
        form: torch.Tensor = getattr(self, _FORM + name)
        return form

    def _use(self, q: torch.Tensor) -> None:
        """Plan for the device of the quantised weight and keep the forms that the plan reads."""
        shape = LayerShape(
            *(self.out_features, self.in_features, self.pattern, self.quantised),
            *(DTYPES[self.dtype], self.bias is not None),
        )
        plan = _ready(plan_layer(shape, q.device, self.memory_format), shape, q.device)
        forms = {name: to_format(q, self.pattern, name) for name in plan.forms}
        for name in self._names:
            delattr(self, _FORM + name)
        # Buffers, so that graphs of torch.compile take them for the constants they are.
        for name, form in forms.items():
            self.register_buffer(_FORM + name, form, persistent=False)
        self._plan, self._names = plan.to_text(), plan.forms

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> SparseLinear:
        """Move the layer, or change the dtype of its activations; weights keep theirs."""
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.weight_scale.device))
        if probe.dtype not in OUTPUTS:
            raise KernelError(f"a layer of {probe.dtype}; use bfloat16, float16 or float32")
        moved = probe.device != self.weight_scale.device
        if not moved and probe.dtype is self.dtype:
            return self
        q = _moved(self.weight, probe.device)
        self.weight_scale = _moved(self.weight_scale, probe.device)
        if self.bias is not None:
            self.bias = _moved(self.bias, probe.device).to(probe.dtype)
        self.dtype = probe.dtype
        self._use(q)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        state = dict(state_dict)
        q = state.pop(prefix + "weight", None)
        super()._load_from_state_dict(
            state, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if q is None:
            missing_keys.append(prefix + "weight")
            return
        wanted = (self.out_features, self.in_features)
        if tuple(q.shape) != wanted or q.dtype is not TORCH_DTYPES[self.quantised]:
            error_msgs.append(
                f"{prefix}weight is {q.dtype} {tuple(q.shape)}; {TORCH_DTYPES[self.quantised]} "
                f"{list(wanted)} is needed"
            )
            return
        # As for any module, the state stays the caller's unless it was assigned.
        copied = not local_metadata.get("assign_to_params_buffers", False)
        scale = self.weight_scale.view(-1)
        try:
            q = q.detach().to(scale.device, copy=copied)
            self._use(SparseWeight(q, scale, self.pattern).q)
        except UsageError as error:
            error_msgs.append(f"{prefix}weight: {error}")

    def __getstate__(self) -> dict[str, Any]:
        """The portable form: what is packed depends on the machine."""
        state = self.__dict__.copy()
        held = {_FORM + name for name in self._names}
        state["_buffers"] = {k: v for k, v in self._buffers.items() if k not in held}
        state["_non_persistent_buffers_set"] = self._non_persistent_buffers_set - held
        state |= {"_names": (), "_plan": "", "portable": self.weight}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Plan for the machine that reads it."""
        q = state.pop("portable")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._use(q)


def _ready(plan: LayerPlan, shape: LayerShape, device: torch.device) -> LayerPlan:
    """The plan, compiled and loaded; the safe one if a candidate fails, which costs no layer."""
    if device.type not in ("cpu", "cuda"):
        return plan
    where = (device.type, device.index or 0)
    try:
        prepared(plan.to_text(), *where)
    except CandidateError as error:
        log.warning("N=%d K=%d runs unplanned: %s", shape.n, shape.k, error)
        plan = safe_plan(shape, device)
        prepared(plan.to_text(), *where)
    return plan


class _InferenceOnly(torch.autograd.Function):
    """The identity; a gradient that would silently be missing is an error instead."""

    @staticmethod
    def forward(ctx: Any, made: torch.Tensor) -> torch.Tensor:
        """Pass on what the layer made."""
        return made.view_as(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Refuse."""
        raise KernelError("a SparseLinear has no gradient; run it under torch.inference_mode()")


def _check_prune(method: Method | str) -> None:
    """Refuse what a layer cannot prune by itself."""
    if method not in list(Method):
        raise KernelError(f"unknown prune {method!r}; use magnitude, or None")
    if Method(method).calibrated:
        raise KernelError(
            f"{method} needs calibration: prune with slidesparse.prune.prune_model first"
        )


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On a device; what was on meta has no values and becomes zeros, which fit every pattern."""
    if tensor.is_meta and device.type != "meta":
        return torch.zeros_like(tensor, device=device)
    return tensor.to(device)
