"""The pass that joins norms and activations with the linears of ours that read them.

vLLM compiles its models, and its norms stand in the graph as operators of their own until it
lowers them, after this pass. `slidesparse::linear` quantises its rows itself; where they come from
an RMSNorm or from SiLU * mul that nothing else reads, the operator that does both takes its place.
A model that is not compiled has no such pass: its linears quantise what they are given.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from slidesparse.layers.op import (
    add_rmsnorm_linear_op,
    linear_op,
    rmsnorm_linear_op,
    silu_mul_linear_op,
)
from slidesparse.vllm import compat

log = logging.getLogger(__name__)

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_CASTS = (torch.ops.prims.convert_element_type.default, aten._to_copy.default)
_END = 2**63 - 1
"""How a graph writes that a slice goes to the end."""


def fuse(graph: fx.Graph) -> None:
    """Join what can be joined; leaves the rest as it is. Raises nothing."""
    plain, add = compat.norm_ops()
    for node in list(graph.find_nodes(op="call_function", target=linear_op)):
        try:
            change = _change(graph, node, plain, add)
        except Exception as error:  # A graph of another kind than was seen; it runs as it is.
            log.debug("%s stays apart: %s: %s", node, type(error).__name__, error)
            continue
        if change is not None:
            change()
    graph.eliminate_dead_code()


Change = Callable[[], None]
"""What joins a linear with what stands before it; nothing that could fail is left to it."""


def _change(graph: fx.Graph, node: fx.Node, plain: Any, add: Any) -> Change | None:
    source = _only_read(node)
    if source is None or node.kwargs:
        return None
    if plain is not None and source.target is plain:
        return _join_norm(graph, node, source)
    if source.target is operator.getitem and source.args[1] == 0:
        norm = source.args[0]
        if add is not None and isinstance(norm, fx.Node) and norm.target is add:
            return _join_add_norm(graph, node, norm)
    return _join_silu(graph, node, source)


def _join_norm(graph: fx.Graph, node: fx.Node, norm: fx.Node) -> Change | None:
    parts = _norm_parts(norm, 1)
    if parts is None:
        return None
    (x,), weight, eps = parts
    return _instead(graph, node, rmsnorm_linear_op, (x, weight, eps, *node.args[1:]))


def _join_add_norm(graph: fx.Graph, node: fx.Node, norm: fx.Node) -> Change | None:
    parts = _norm_parts(norm, 2)
    # The sum may be read before the linear; so may the joined operator's, if its weights are there.
    if parts is None or not all(_before(each, norm) for each in _nodes(node.args[1:])):
        return None
    (x, residual), weight, eps = parts
    value, summed = node.meta["val"], norm.meta["val"][1]
    readers = [user for user in norm.users if user.target is operator.getitem]

    def change() -> None:
        with graph.inserting_before(norm):
            joined = graph.call_function(
                add_rmsnorm_linear_op, (x, residual, weight, eps, *node.args[1:])
            )
            made = graph.call_function(operator.getitem, (joined, 0))
            sums = graph.call_function(operator.getitem, (joined, 1))
        # Nothing else of the old nodes holds: their "eager_input_vals" are those of other inputs.
        joined.meta["val"], made.meta["val"], sums.meta["val"] = (value, summed), value, summed
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        for user in readers:
            if user.args[1] == 1:
                user.replace_all_uses_with(sums)
                graph.erase_node(user)

    return change


def _join_silu(graph: fx.Graph, node: fx.Node, product: fx.Node) -> Change | None:
    gate_up = _gate_up(product)
    if gate_up is None or _value(gate_up).dtype is not _value(product).dtype:
        return None
    return _instead(graph, node, silu_mul_linear_op, (gate_up, *node.args[1:]))


def _instead(graph: fx.Graph, node: fx.Node, target: Any, arguments: tuple[Any, ...]) -> Change:
    """Put a call in the place of a node, with the value that it had."""
    value = node.meta["val"]

    def change() -> None:
        with graph.inserting_before(node):
            joined = graph.call_function(target, arguments)
        joined.meta["val"] = value
        node.replace_all_uses_with(joined)
        graph.erase_node(node)

    return change


def _only_read(node: fx.Node) -> fx.Node | None:
    """What makes the rows of a linear, views left out, if nothing else reads it."""
    source = node.args[0]
    while isinstance(source, fx.Node) and len(source.users) == 1:
        before = source.args[0] if source.args else None
        if source.target not in _VIEWS or not isinstance(before, fx.Node):
            return source
        if not _same_shape(source, before):
            return None
        source = before
    return None


def _norm_parts(norm: fx.Node, tensors: int) -> tuple[list[fx.Node], fx.Node, float] | None:
    """The rows, the weight and epsilon of a norm over whole rows [M, K]; None for other norms."""
    *rows, weight, eps = norm.args[: tensors + 2]
    if len(norm.args) > tensors + 2 and norm.args[tensors + 2] is not None:
        return None  # Its variance is that of a part of the row.
    if norm.kwargs or not isinstance(weight, fx.Node) or not isinstance(eps, float):
        return None
    found = [row for row in rows if isinstance(row, fx.Node)]
    if len(found) != tensors or any(_value(row).ndim != 2 for row in found):
        return None
    if len({_value(row).dtype for row in found}) > 1:
        return None
    return found, weight, eps


def _gate_up(product: Any) -> fx.Node | None:
    """The rows [M, 2 K] whose SiLU(first half) * second half a node is, or None."""
    product = _uncast(product)
    if not _is(product, aten.mul.Tensor):
        return None
    for one, other in (product.args, product.args[::-1]):
        halves = _halves(_silu_of(_uncast(one)), _uncast(other))
        if halves is not None:
            return halves
    return None


def _silu_of(node: Any) -> Any:
    """What x is where a node is x * sigmoid(x), in one of the forms that graphs have of it."""
    if _is(node, aten.silu.default):
        return _uncast(node.args[0])
    if _is(node, aten.mul.Tensor):
        for x, gate in (node.args, node.args[::-1]):
            if _is(gate, aten.sigmoid.default) and gate.args[0] is x:
                return _uncast(x)
    if _is(node, aten.div.Tensor):
        x, divisor = node.args
        if _is(divisor, aten.add.Tensor) and divisor.args[1] == 1:
            power = divisor.args[0]
            if _is(power, aten.exp.default) and _is(power.args[0], aten.neg.default):
                return _uncast(x) if power.args[0].args[0] is x else None
    return None


def _halves(gate: Any, up: Any) -> fx.Node | None:
    """The node [M, 2 K] of which gate and up are the first and the second half, or None."""
    if not _is(gate, aten.slice.Tensor) or not _is(up, aten.slice.Tensor):
        return None
    whole = gate.args[0]
    if up.args[0] is not whole or not isinstance(whole, fx.Node) or _value(whole).ndim != 2:
        return None
    width = _value(whole).shape[1]
    if _span(gate, width) != (1, 0, width // 2) or _span(up, width) != (1, width // 2, width):
        return None
    return whole


def _span(node: fx.Node, width: int) -> tuple[Any, Any, Any]:
    """Dimension, start and end of a slice, the default for each that is not given."""
    given: list[Any] = list(node.args[1:])
    dim, start, end, step = given + [0, 0, _END, 1][len(given) :]
    if step != 1 or not isinstance(dim, int):
        return (None, None, None)
    return dim % 2, start or 0, width if end is None or end == _END else end


def _uncast(node: Any) -> Any:
    """What a node converts to another dtype; the node itself if it does not."""
    while isinstance(node, fx.Node) and node.target in _CASTS:
        node = node.args[0]
    return node


def _nodes(arguments: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(arguments, lambda node: found.append(node))
    return found


def _before(node: fx.Node, other: fx.Node) -> bool:
    return node.op in ("placeholder", "get_attr") or node < other


def _is(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target


def _same_shape(node: fx.Node, other: fx.Node) -> bool:
    one, two = _value(node).shape, _value(other).shape
    return len(one) == len(two) and all(
        statically_known_true(a == b) for a, b in zip(one, two, strict=True)
    )


def _value(node: fx.Node) -> torch.Tensor:
    value: torch.Tensor = node.meta["val"]
    return value
