"""Groups: linears that a serving engine runs as one GEMM and that therefore share a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slidesparse.errors import ModelError
from slidesparse.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

FUSED = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "o_proj": "o",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "down_proj": "down",
}
"""Which layer of ModelSpec.linears a linear of a decoder block is part of, as vLLM fuses them."""

ORDER = ("qkv", "o", "gate_up", "down")
"""Of the groups of a block, in tables and recipes: that of the data."""

_IN_BLOCK = re.compile(r"(?:.*\.)?layers\.([0-9]+)\.(?:[a-z_]+\.)?([a-z0-9_]+)")


@dataclass(frozen=True, order=True)
class Group:
    """Linears of one decoder block that have the same input and run as one GEMM.

    Args:
        block: index of the decoder block.
        name: "qkv", "o", "gate_up" or "down".
        linears: their full names, in the order in which their rows are stacked.
        n: output channels of all of them together.
        k: input channels.
    """

    block: int
    name: str
    linears: tuple[str, ...]
    n: int
    k: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k) of the GEMM."""
        return self.n, self.k

    def __str__(self) -> str:
        """As messages name it: "block 3 qkv"."""
        return f"block {self.block} {self.name}"


@dataclass(frozen=True)
class Grouping:
    """The groups of a model, and what is in none.

    Args:
        groups: by block, in the order of the data.
        left_out: linears that stay dense: kept ones and those fused with one, experts, and any
            whose name says nothing about what it is fused with.
    """

    groups: tuple[Group, ...]
    left_out: tuple[str, ...]


def group_linears(linears: Mapping[str, nn.Linear], recipe: Recipe) -> Grouping:
    """Group the linears of a model.

    Args:
        linears: by full name, "model.layers.0.self_attn.q_proj", as slidesparse.prune lists them.
        recipe: says which are kept; a group with a kept linear stays dense as a whole.

    Raises:
        ModelError: no linear is in a group, or two that are fused differ in their input channels.
    """
    members: dict[tuple[int, str], dict[str, nn.Linear]] = {}
    left_out = []
    for name, linear in linears.items():
        match = _IN_BLOCK.fullmatch(name)
        fused = FUSED.get(match[2]) if match else None
        if match is None or fused is None:
            left_out.append(name)
            continue
        members.setdefault((int(match[1]), fused), {})[name] = linear
    groups = []
    for (block, fused), found in sorted(members.items(), key=_place):
        if any(recipe.kept(name) for name in found):
            left_out.extend(found)
        else:
            groups.append(_group(block, fused, found))
    if not groups:
        raise ModelError(
            f"none of the {len(linears)} linears is one of {', '.join(FUSED)} in layers.0, "
            "layers.1, ... that is not kept; use a dense decoder model and keep fewer"
        )
    return Grouping(tuple(groups), tuple(left_out))


def _group(block: int, fused: str, found: Mapping[str, nn.Linear]) -> Group:
    # gate before up and q before k before v, whatever the order of the modules.
    names = sorted(found, key=lambda name: list(FUSED).index(name.rpartition(".")[2]))
    widths = {int(found[name].in_features) for name in names}
    if len(widths) > 1:
        raise ModelError(
            f"block {block}: {', '.join(names)} have {sorted(widths)} input channels and cannot be "
            "one GEMM; keep them"
        )
    n = sum(int(found[name].out_features) for name in names)
    return Group(block, fused, tuple(names), n, widths.pop())


def _place(item: tuple[tuple[int, str], object]) -> tuple[int, int]:
    (block, fused), _ = item
    return block, ORDER.index(fused)
