"""The pass as vLLM holds it, and what makes caches of compiled graphs depend on our plans.

A compiled graph holds plans as constants and takes the forms of weights that they read. vLLM finds
a cached graph by a hash of its configuration, in which each custom pass stands with its uuid: that
of ours says what was decided for every layer. Importing this module imports vLLM's passes.
"""

from __future__ import annotations

import hashlib
import inspect
from functools import cache
from typing import Any

from torch import fx
from vllm.compilation.passes.inductor_pass import InductorPass

from slidesparse import __version__
from slidesparse.layers import op, prepared
from slidesparse.vllm import fusion

NAME = "slidesparse-fusion"

UNDECIDED = "?"


class Ledger:
    """What was decided for the layers of all models that share one compilation, in their order."""

    def __init__(self) -> None:
        """Begin with no layer."""
        self.lines: list[str] = []

    def open(self) -> int:
        """Note a layer that was made; returns its place."""
        self.lines.append(UNDECIDED)
        return len(self.lines) - 1

    def decide(self, place: int, what: str) -> None:
        """Note what became of it."""
        self.lines[place] = what

    def digest(self) -> str:
        """Of all decisions so far."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()[:16]


class FusionPass(InductorPass):  # type: ignore[misc]
    """Joins norms and activations with the linears behind them.

    Args:
        before: a pass of the user, which runs first, or None.
    """

    def __init__(self, before: Any = None) -> None:
        """Begin with no layer."""
        self.before, self.ledger = before, Ledger()

    def __call__(self, graph: fx.Graph) -> None:
        """Change a graph."""
        if self.before is not None:
            self.before(graph)
        fusion.fuse(graph)

    def uuid(self) -> str:
        """Changes with the code of the pass and its operators, and with any layer's plan."""
        own = f"{NAME}:{_code()}:{self.ledger.digest()}"
        return own if self.before is None else f"{self.before.uuid()}+{own}"

    def __deepcopy__(self, memo: Any) -> FusionPass:
        """The same: a copy would miss the layers that are made after it."""
        return self


@cache
def _code() -> str:
    """Of the modules that decide what a graph holds, or the version where there are no sources."""
    try:
        sources = "".join(map(inspect.getsource, (fusion, op, prepared)))
    except OSError:
        sources = ""
    return hashlib.sha256(f"{__version__}\n{sources}".encode()).hexdigest()[:16]
