"""sparsify_: swap the linears of a model for planned, quantised ones, as torchao's users expect."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from slidesparse.errors import UsageError
from slidesparse.layers.linear import SparseLinear
from slidesparse.layers.planning import FASTEST
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method

Filter = Callable[[nn.Module, str], bool]


def all_but_head(module: nn.Module, name: str) -> bool:
    """Every nn.Linear but the output head, which W8A8 checkpoints keep as it is."""
    return name.rpartition(".")[2] != "lm_head"


def sparsify_(
    model: nn.Module,
    pattern: Pattern | str,
    dtype: DType | str = DType.FP8,
    filter_fn: Filter = all_but_head,
    *,
    prune: Method | str | None = None,
    memory_format: str = FASTEST,
) -> nn.Module:
    """Replace linears by `SparseLinear`, in place.

    Args:
        model: whose nn.Linear modules, subclasses not included, are replaced.
        pattern: that their weights satisfy.
        dtype: "fp8" or "int8".
        filter_fn: called with each linear and its full name; False keeps it.
        prune: "magnitude" to prune here, see `SparseLinear.from_linear`.
        memory_format: "fastest" or "smallest".

    Returns:
        The model.

    Raises:
        UsageError: no linear is left to replace, or the model is one.
        KernelError: a linear cannot be quantised; names it, and none was replaced.
        PatternError: a weight breaks the pattern; names the linear, and none was replaced.
    """
    if type(model) is nn.Linear:
        raise UsageError("the model is itself a linear; use SparseLinear.from_linear")
    # A linear that two modules share has two names, and both places are replaced.
    chosen = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) is nn.Linear and filter_fn(module, name)
    }
    if not chosen:
        raise UsageError("the model has no nn.Linear that filter_fn takes")
    made: dict[int, SparseLinear] = {}
    for name, linear in chosen.items():
        if id(linear) in made:
            continue
        try:
            made[id(linear)] = SparseLinear.from_linear(
                linear, pattern, dtype, prune=prune, memory_format=memory_format
            )
        except UsageError as error:
            raise type(error)(f"{name}: {error}") from error
    for name, linear in chosen.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[id(linear)])
    return model
