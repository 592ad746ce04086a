"""The linears of a model one after the other, with what is fused to them: one step of a sweep.

Attention is left out: what it would give `o` is a random tensor. So are routed experts.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from slidesparse.kernels.case import COLD_FACTOR, EPS
from slidesparse.layers import SparseLinear, SparseWeight
from slidesparse.layers.fused import rmsnorm_linear, silu_mul_linear
from slidesparse.models import LinearLayer, ModelSpec
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.slide import prune_magnitude

ATTENTION, MLP = "attention", "mlp"

_PARTS = (
    (("qkv", "o"), ATTENTION),
    (("in_proj_qkvz", "in_proj_ba", "out_proj"), ATTENTION),
    (("gate_up", "down"), MLP),
    (("shared_gate_up", "shared_down"), MLP),
)
"""What makes a part of a decoder layer: its linears, in order, and what stands between them."""


@dataclass(frozen=True)
class Part:
    """Linears that always follow each other.

    Args:
        linears: the first reads the normalised hidden state, the last gives the next one.
        kind: ATTENTION, where the last reads a stand-in, or MLP, where it reads SiLU * mul.
        count: of such parts in the model.
    """

    linears: tuple[LinearLayer, ...]
    kind: str
    count: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of its linears."""
        return tuple(layer.name for layer in self.linears)


def parts_of(layers: Sequence[LinearLayer]) -> tuple[tuple[Part, ...], tuple[LinearLayer, ...]]:
    """The parts of a model, and the linears that are in none of them: those of routed experts."""
    named = {layer.name: layer for layer in layers}
    parts = []
    for names, kind in _PARTS:
        found = tuple(named.pop(name) for name in names if name in named)
        if found:
            parts.append(Part(found, kind, found[0].count))
    return tuple(parts), tuple(named.values())


class Member(ABC):
    """One linear layer with its weights, ours or torch's; x is [M, K] bf16, y [M, N] bf16."""

    @abstractmethod
    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """Quantise, multiply."""

    @abstractmethod
    def norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add, RMSNorm, quantise, multiply: (y, new residual)."""

    @abstractmethod
    def silu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """SiLU(gate) * up of [M, 2 K], quantise, multiply."""

    @abstractmethod
    def describe(self, m: int) -> str:
        """What runs for `m` tokens."""

    def sparse(self, m: int) -> bool:
        """Whether a sparse GEMM runs for `m` tokens: its input is lifted."""
        return False

    def pieces(self, m: int) -> int:
        """In how many pieces the rows have to go through."""
        return 1


class OurMember(Member):
    """A SparseLinear and the fused operators.

    Args:
        w: [N, K] bf16, pruned to `pattern`.
        bias: [N] bf16, or None.
        pattern: of w.
        dtype: FP8 or INT8.
    """

    def __init__(
        self, w: torch.Tensor, bias: torch.Tensor | None, pattern: Pattern, dtype: DType
    ) -> None:
        """Quantise, plan and pack."""
        self._layer = SparseLinear(SparseWeight.quantise(w, pattern, dtype), bias)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """See `Member.plain`."""
        y: torch.Tensor = self._layer(x)
        return y

    def norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Member.norm`."""
        return rmsnorm_linear(self._layer, x, weight, EPS, residual)

    def silu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Member.silu`."""
        return silu_mul_linear(self._layer, gate_up)

    def describe(self, m: int) -> str:
        """See `Member.describe`."""
        return self._layer.describe(m)

    def sparse(self, m: int) -> bool:
        """See `Member.sparse`."""
        return self._layer.plan.at(m).candidate.sparse


MakeMember = Callable[[torch.Tensor, "torch.Tensor | None"], Member]
"""The member of a weight [N, K] bf16 and a bias [N] bf16."""


class Chain:
    """All linears of a model, or a part of them, ready to run.

    Args:
        spec: of the model.
        layers: its linears on one tensor-parallel rank.
        pattern: that weights are pruned to.
        make: the member of a weight.
        device: where it runs.
        seed: of weights and activations.
        l2_bytes: of the cache that weights have to miss; 0 holds one set of each part.
        whole: whether a step runs every layer. Otherwise it runs the fewest that keep the
            proportions, and `scale` is what that leaves out.

    Attributes:
        scale: that a step's time has to be multiplied with for the whole model.
        left_out: linears that are not run.
    """

    def __init__(
        self,
        spec: ModelSpec,
        layers: Sequence[LinearLayer],
        pattern: Pattern,
        make: MakeMember,
        device: torch.device,
        seed: int,
        l2_bytes: int,
        whole: bool,
    ) -> None:
        """Draw, prune and pack the weights."""
        self._hidden, self._device, self._seed = spec.hidden, device, seed
        self._pattern, self._make = pattern, make
        self.parts, self.left_out = parts_of(layers)
        self.scale = 1 if whole else math.gcd(*(part.count for part in self.parts))
        size = sum(layer.n * layer.k for part in self.parts for layer in part.linears)
        # Each layer of a model has weights of its own: what runs finds them in memory, not in a
        # cache. A few sets in turn do the same; packed, they are down to half as large.
        cold = max(2, -(-2 * COLD_FACTOR * l2_bytes // size)) if l2_bytes else 1
        self.held = [min(part.count // self.scale, cold) for part in self.parts]
        self._members = [
            [[self._member(layer, index) for layer in part.linears] for index in range(held)]
            for part, held in zip(self.parts, self.held, strict=True)
        ]
        generator = torch.Generator(device=device).manual_seed(seed)
        values = torch.randn(spec.hidden, generator=generator, device=device)
        self._norm = (1 + values / 10).to(torch.bfloat16)
        self._order = self._interleaved()

    def inputs(self, m: int) -> Callable[[], torch.Tensor]:
        """A step on random activations of `m` tokens, to be called as often as wanted."""
        generator = torch.Generator(device=self._device).manual_seed(self._seed + m)

        def draw(width: int) -> torch.Tensor:
            made = torch.empty((m, width), dtype=torch.bfloat16, device=self._device)
            return made.normal_(generator=generator)

        hidden, residual = draw(self._hidden), draw(self._hidden)
        widths = {part.linears[-1].k for part in self.parts if part.kind == ATTENTION}
        attended = {width: draw(width) for width in sorted(widths)}

        @torch.no_grad()
        def step() -> torch.Tensor:
            x, kept = hidden, residual
            for part, members in self._order:
                x, kept = self._run(part, members, x, kept, attended)
            return x

        return step

    def largest(self, m: int) -> int:
        """Elements of the largest tensor of a step: weight, input (lifted if it is) or output."""
        sizes = [m * self._hidden]
        for part, sets in zip(self.parts, self._members, strict=True):
            for layer, member in zip(part.linears, sets[0], strict=True):
                k = self._pattern.expanded_k(layer.k) if member.sparse(m) else layer.k
                sizes += [m * layer.n, m * k, layer.n * k]
        return max(sizes)

    def describe(self, ms: Sequence[int]) -> dict[str, str]:
        """What runs for each linear, by M where that differs."""
        found = {}
        for part, sets in zip(self.parts, self._members, strict=True):
            for layer, member in zip(part.linears, sets[0], strict=True):
                by_how: dict[str, list[str]] = {}
                for m in ms:
                    by_how.setdefault(member.describe(m), []).append(str(m))
                texts = [f"{how} (M={','.join(at)})" for how, at in by_how.items()]
                found[layer.name] = next(iter(by_how)) if len(by_how) == 1 else "; ".join(texts)
        return found

    def _run(
        self,
        part: Part,
        members: Sequence[Member],
        x: torch.Tensor,
        residual: torch.Tensor,
        attended: dict[int, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One part; rows in pieces where a member's 32-bit offsets would not reach over all."""
        m = x.shape[0]
        pieces = max(member.pieces(m) for member in members)
        stand_in = attended.get(part.linears[-1].k) if part.kind == ATTENTION else None
        if pieces == 1:
            return self._piece(members, x, residual, stand_in)
        size = -(-m // pieces)
        made = []
        for start in range(0, m, size):
            rows = slice(start, start + size)
            given = None if stand_in is None else stand_in[rows]
            made.append(self._piece(members, x[rows], residual[rows], given))
        outputs, kept = zip(*made, strict=True)
        return torch.cat(outputs), torch.cat(kept)

    def _piece(
        self,
        members: Sequence[Member],
        x: torch.Tensor,
        residual: torch.Tensor,
        stand_in: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        first, *between, last = members
        y, residual = first.norm(x, residual, self._norm)
        for member in between:
            # It reads the same normalised rows; the norm counts once.
            member.plain(x)
        return (last.silu(y) if stand_in is None else last.plain(stand_in)), residual

    def _member(self, layer: LinearLayer, index: int) -> Member:
        name = zlib.crc32(f"{layer.name} {index}".encode())
        generator = torch.Generator(device=self._device).manual_seed(self._seed * 2**32 + name)
        w = torch.empty((layer.n, layer.k), dtype=torch.bfloat16, device=self._device)
        # Outputs of about the size of the inputs, whatever K is.
        w.normal_(std=layer.k**-0.5, generator=generator)
        bias = None
        if layer.bias:
            bias = torch.empty(layer.n, dtype=torch.bfloat16, device=self._device)
            bias.normal_(std=0.1, generator=generator)
        return self._make(prune_magnitude(w, self._pattern), bias)

    def _interleaved(self) -> list[tuple[Part, list[Member]]]:
        """The parts in the order of a model's layers, each with the weights whose turn it is."""
        places = []
        for number, part in enumerate(self.parts):
            count, held = part.count // self.scale, self.held[number]
            for index in range(count):
                members = self._members[number][index % held]
                places.append(((index + 0.5) / count, number, part, members))
        places.sort(key=lambda place: place[:2])
        return [(part, members) for _, _, part, members in places]
