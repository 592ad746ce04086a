"""Reorder a linear's input channels so that no block of 2N holds only strong ones.

A pattern drops two weights of every block, so a block of strong channels loses more than one that
mixes strong and weak. Where the layer before makes each channel by a row of its own, that row can
move along and the model computes what it did: down_proj after gate_proj and up_proj, and o_proj
after v_proj within a head.

It helps Wanda, the more so the more is pruned; SparseGPT, which makes up for its losses by itself,
gains on one pattern and loses on another (SmolLM2-135M, a thousand tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from slidesparse.pattern import Pattern
from slidesparse.prune import wanda
from slidesparse.prune.statistics import InputStatistics
from slidesparse.recipe import Recipe

_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "rotary_emb"}
"""What an attention consists of whose output channels are sums of value channels, one each."""

_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
"""What an MLP consists of that treats each channel by itself between up and down."""


@torch.no_grad()
def permute_block(
    block: nn.Module,
    prefix: str,
    recipe: Recipe,
    statistics: Mapping[str, InputStatistics],
) -> dict[str, InputStatistics]:
    """Reorder the inputs of down_proj and o_proj in place, where that is exact and they are pruned.

    Args:
        block: a decoder block; what it computes stays the same up to the order of sums.
        prefix: its name, "model.layers.3".
        recipe: the patterns.
        statistics: of the linears' inputs by full name; without one, weights alone count.

    Returns:
        The statistics of the linears' inputs as they are now.
    """
    made = dict(statistics)
    mlp = _plain_mlp(getattr(block, "mlp", None))
    name = f"{prefix}.mlp.down_proj"
    if mlp is not None and not recipe.pattern_of(name).dense:
        gate, up, down = mlp
        order = deal(channel_importance(down.weight, made.get(name)), recipe.pattern_of(name))
        _apply(order, order, [gate, up], down, name, made)
    attention = _plain_attention(getattr(block, "self_attn", None))
    name = f"{prefix}.self_attn.o_proj"
    if attention is not None and not recipe.pattern_of(name).dense:
        rows, columns = attention.orders(recipe.pattern_of(name), made.get(name))
        _apply(rows, columns, [attention.values], attention.output, name, made)
    return made


def channel_importance(w: torch.Tensor, statistics: InputStatistics | None) -> torch.Tensor:
    """How much each input channel counts: the sum over rows of |w_ij| * ||X_j||, [K] float32.

    Args:
        w: [N, K].
        statistics: of the inputs; None takes all norms as one.
    """
    if statistics is None:
        return w.detach().float().abs().sum(dim=0)
    return wanda.scores(w, statistics.norms.to(w.device)).sum(dim=0)


def deal(importance: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Deal channels out to the blocks of 2N like cards, the most important first.

    Args:
        importance: [K]. Of equal ones the leftmost counts as more important.
        pattern: not dense.

    Returns:
        [K] int64: new channel i is the old channel order[i]. If K is not a multiple of 2N, the
        short block at the end, which loses least, gets the most important ones.
    """
    ranked = importance.argsort(descending=True, stable=True)
    short = len(ranked) % pattern.block
    piles = len(ranked) // pattern.block
    return torch.cat([ranked[short:][pile::piles] for pile in range(piles)] + [ranked[:short]])


@dataclass(frozen=True)
class _Attention:
    """v_proj, o_proj and the size of a head."""

    values: nn.Linear
    output: nn.Linear
    size: int

    def orders(
        self, pattern: Pattern, statistics: InputStatistics | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Orders of v_proj's rows and o_proj's columns: one per key-value head and its queries.

        Where the blocks of 2N do not line up with heads, piles are nearly as large as blocks and
        any 2N consecutive channels still mix strong and weak.
        """
        kv_heads = self.values.out_features // self.size
        queries = self.output.in_features // self.size // kv_heads
        shape = (kv_heads, queries, self.size)
        importance = channel_importance(self.output.weight, statistics).reshape(shape).sum(dim=1)
        ranked = importance.argsort(dim=1, descending=True, stable=True)
        piles = pattern.blocks(self.size)
        within = torch.cat([ranked[:, pile::piles] for pile in range(piles)], dim=1)
        starts = torch.arange(0, self.output.in_features, self.size, device=within.device)
        columns = starts.reshape(kv_heads, queries, 1) + within[:, None, :]
        return (starts[:kv_heads, None] + within).flatten(), columns.flatten()


def _apply(
    rows: torch.Tensor,
    columns: torch.Tensor,
    before: Sequence[nn.Linear],
    after: nn.Linear,
    name: str,
    statistics: dict[str, InputStatistics],
) -> None:
    for linear in before:
        linear.weight.copy_(linear.weight[rows])
        if linear.bias is not None:
            linear.bias.copy_(linear.bias[rows])
    after.weight.copy_(after.weight[:, columns])
    if name in statistics:
        statistics[name] = statistics[name].permuted(columns)


def _plain_mlp(mlp: nn.Module | None) -> tuple[nn.Linear, nn.Linear, nn.Linear] | None:
    """gate_proj, up_proj and down_proj if down_proj's inputs are act(gate) * up, each by itself."""
    if mlp is None or mlp._parameters or {name for name, _ in mlp.named_children()} != _MLP:
        return None
    gate, up, down = (_linear(mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
    act = mlp.get_submodule("act_fn")
    if gate is None or up is None or down is None or list(act.parameters()):
        return None
    fits = gate.out_features == up.out_features == down.in_features
    return (gate, up, down) if fits else None


def _plain_attention(attention: nn.Module | None) -> _Attention | None:
    """The parts of an attention if o_proj's inputs are sums of v_proj's outputs, each by itself.

    A gate on the output would show as another child, a parameter, or a wider q_proj.
    """
    if attention is None or attention._parameters:
        return None
    if not {name for name, _ in attention.named_children()} <= _ATTENTION:
        return None
    query, values, output = (_linear(attention, name) for name in ("q_proj", "v_proj", "o_proj"))
    size = getattr(attention, "head_dim", None)
    if query is None or values is None or output is None or not isinstance(size, int):
        return None
    fits = (
        query.out_features == output.in_features
        and values.out_features % size == 0
        and output.in_features % values.out_features == 0
    )
    return _Attention(values, output, size) if fits else None


def _linear(module: nn.Module, name: str) -> nn.Linear | None:
    found = getattr(module, name, None)
    return found if isinstance(found, nn.Linear) else None
