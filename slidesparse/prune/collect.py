"""Gather the input statistics of linears while the module around them runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from slidesparse.prune.methods import needs_gram
from slidesparse.prune.statistics import InputStatistics
from slidesparse.recipe import Method


class _NotSharedError(Exception):
    """Two linears that got the same input in one forward pass got different ones in another."""


class _Watch:
    """Hooks that sum up inputs, once for linears that are given the very same tensor."""

    def __init__(self, linears: Mapping[str, nn.Linear], gram: bool, share: bool) -> None:
        self._linears = linears
        self._gram = gram
        self._share = share
        self._leader: dict[str, str] = {}
        self._calls: dict[str, int] = dict.fromkeys(linears, 0)
        # The tensors of this pass, held so that none of them gives its identity to a later one.
        self._seen: list[tuple[torch.Tensor, str]] = []
        self.statistics: dict[str, InputStatistics] = {}

    def saw(self, name: str, x: torch.Tensor) -> None:
        """Count the input of one call of a linear."""
        self._calls[name] += 1
        twin = next((first for seen, first in self._seen if seen is x), None)
        if name not in self._leader:
            joins = twin is not None and self._share and self._calls[twin] == self._calls[name]
            self._leader[name] = twin if joins and twin is not None else name
        leader = self._leader[name]
        if leader != name:
            if twin != leader:
                raise _NotSharedError
            return
        if twin is None:
            self._seen.append((x, name))
        self._of(name).update(x)

    def end_pass(self) -> None:
        """Forget this pass's tensors once linears that share were called as often."""
        self._seen.clear()
        if any(self._calls[name] != self._calls[leader] for name, leader in self._leader.items()):
            raise _NotSharedError

    def result(self) -> dict[str, InputStatistics]:
        """Statistics by name; linears that share an input share the object."""
        return {name: self._of(self._leader.get(name, name)) for name in self._linears}

    def _of(self, name: str) -> InputStatistics:
        if name not in self.statistics:
            linear = self._linears[name]
            self.statistics[name] = InputStatistics(
                linear.in_features, self._gram, linear.weight.device, name
            )
        return self.statistics[name]


def collect_statistics(
    linears: Mapping[str, nn.Linear],
    method: Method,
    passes: Callable[[], Iterator[object]],
    *,
    gram: bool | None = None,
) -> dict[str, InputStatistics]:
    """Sum up what each linear is given.

    Args:
        linears: by full name.
        method: decides whether Gram matrices are kept.
        passes: makes an iterator that runs the module around the linears once per step; it may be
            called twice.
        gram: overrides what the method asks for.

    Returns:
        Statistics by name. Linears that are always given the same tensor (q, k and v; gate and up)
        share one object.
    """
    wanted = needs_gram(method) if gram is None else gram
    try:
        return _collect(linears, _Watch(linears, wanted, share=True), passes())
    except _NotSharedError:
        # Rare (experts that one sequence happened to send the same tokens): count each by itself.
        return _collect(linears, _Watch(linears, wanted, share=False), passes())


def _collect(
    linears: Mapping[str, nn.Linear], watch: _Watch, passes: Iterator[object]
) -> dict[str, InputStatistics]:
    with _hooked(linears, watch):
        for _ in passes:
            watch.end_pass()
    return watch.result()


@contextmanager
def _hooked(linears: Mapping[str, nn.Linear], watch: _Watch) -> Iterator[None]:
    handles = []
    try:
        for name, linear in linears.items():

            def hook(_module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                watch.saw(name, args[0])

            handles.append(linear.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
