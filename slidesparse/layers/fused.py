"""A SparseLinear with what stands before it: RMSNorm or SiLU * mul, in the pass that quantises."""

from __future__ import annotations

import torch

from slidesparse.errors import KernelError
from slidesparse.layers.linear import SparseLinear
from slidesparse.layers.op import add_rmsnorm_linear_op, rmsnorm_linear_op, silu_mul_linear_op


def rmsnorm_linear(
    layer: SparseLinear,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Add a residual,) RMSNorm, then a linear layer.

    Args:
        layer: N x K.
        x: [M, K] of the layer's dtype.
        weight: [K] of the norm, any floating dtype.
        eps: added to the mean square.
        residual: [M, K] in the dtype of x.

    Returns:
        [M, N], and [M, K] the sum of x and the residual (x itself without one).

    Raises:
        KernelError: an operand has the wrong shape, dtype, layout or device.
    """
    _check(layer, x, layer.in_features)
    if residual is None:
        return rmsnorm_linear_op(x, weight, eps, *layer.operands()), x
    made: tuple[torch.Tensor, torch.Tensor] = add_rmsnorm_linear_op(
        x, residual, weight, eps, *layer.operands()
    )
    return made


def silu_mul_linear(layer: SparseLinear, gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU(gate) * up, then a linear layer.

    Args:
        layer: N x K.
        gate_up: [M, 2 K] of the layer's dtype, gate first.

    Returns:
        [M, N].

    Raises:
        KernelError: an operand has the wrong shape, dtype, layout or device.
    """
    _check(layer, gate_up, 2 * layer.in_features)
    made: torch.Tensor = silu_mul_linear_op(gate_up, *layer.operands())
    return made


def _check(layer: SparseLinear, x: torch.Tensor, columns: int) -> None:
    if x.ndim != 2 or x.shape[1] != columns or x.dtype is not layer.dtype:
        raise KernelError(
            f"x is {x.dtype} {tuple(x.shape)} and the layer takes {layer.dtype} [M, {columns}] here"
        )
