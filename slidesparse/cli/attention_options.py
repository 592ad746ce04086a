"""The options of `slidesparse bench attention`, and what they default to."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from slidesparse.errors import UsageError
from slidesparse.problem import DType

if TYPE_CHECKING:
    from slidesparse.bench.attention.problem import AttentionProblem

    _ParamType = click.ParamType[Any]
else:
    # Older releases of click have no generic ParamType at run time.
    _ParamType = click.ParamType

Function = TypeVar("Function", bound=Callable[..., Any])

BACKENDS = ("flash", "cudnn", "efficient", "math", "fa3")
"""What --backends takes; "fa3" is every copy of FlashAttention 3 that is installed."""

UNITS = ("head", "batch-head")
SHORTEST_US, LONGEST_US = 1e-6, 1e12
"""Targets beyond these are slips of the keyboard."""


class Shape(NamedTuple):
    """Sizes that are not given."""

    batch: int
    heads: int
    seq: int
    head_dim: int


GPU_SHAPE, CPU_SHAPE = Shape(16, 96, 4096, 128), Shape(1, 4, 256, 64)


class BackendList(_ParamType):
    """Comma-separated backends: flash,cudnn; or all."""

    name = "backends"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Parse the list or fail with the nearest name and all of them."""
        if isinstance(value, tuple):
            return value
        words = [part.strip().lower() for part in str(value).split(",")]
        if words == ["all"]:
            return BACKENDS
        for word in words:
            if word not in BACKENDS:
                near = difflib.get_close_matches(word, BACKENDS, n=1)
                hint = f", did you mean {near[0]!r}?" if near else ";"
                known = ", ".join(BACKENDS)
                self.fail(f"unknown backend {word!r}{hint} known: all, {known}", param, ctx)
        return tuple(name for name in BACKENDS if name in words)


class Targets(_ParamType):
    """Comma-separated times in microseconds: 3.82,3.0,2.0."""

    name = "us,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Parse the list or fail naming the entry that is no time."""
        if isinstance(value, tuple):
            return value
        times: list[float] = []
        for part in str(value).split(","):
            try:
                time = float(part)
            except ValueError:
                self.fail(f"target {part.strip()!r} is not a number of microseconds", param, ctx)
            if not SHORTEST_US <= time <= LONGEST_US:
                self.fail(
                    f"target {part.strip()} is not between {SHORTEST_US:g} and {LONGEST_US:g} "
                    "microseconds",
                    param,
                    ctx,
                )
            times.append(time)
        return tuple(dict.fromkeys(times))


@dataclass(frozen=True)
class Options:
    """What the command line says; None where it says nothing.

    Args:
        batch: sequences.
        heads: of the queries.
        kv_heads: of keys and values; as many as `heads` unless told.
        seq: tokens of each sequence.
        head_dim: elements of a head.
        causal: with the mask, without it, or both if None.
        dtype: bf16 or fp16.
        backends: that take part.
        targets: times to compare with the bound, microseconds per `target_unit`.
        target_unit: head or batch-head.
        gpu: whose bound is computed; then nothing runs.
        device: auto, cpu, cuda or cuda:INDEX.
        json_path: result file to write.
        csv_path: table to write.
        seed: of the operands.
        quiet: whether to print errors only.
    """

    batch: int | None
    heads: int | None
    kv_heads: int | None
    seq: int | None
    head_dim: int | None
    causal: bool | None
    dtype: str
    backends: tuple[str, ...] | None
    targets: tuple[float, ...]
    target_unit: str
    gpu: str | None
    device: str | None
    json_path: Path | None
    csv_path: Path | None
    seed: int | None
    quiet: bool

    def problems(self, defaults: Shape) -> tuple[AttentionProblem, ...]:
        """The problems that are asked for: without and with the mask unless one is chosen.

        Args:
            defaults: of the sizes that are not given.

        Raises:
            UsageError: the heads cannot share the K/V heads.
        """
        from slidesparse.bench.attention.problem import AttentionProblem

        heads = self.heads or defaults.heads
        return tuple(
            AttentionProblem(
                batch=self.batch or defaults.batch,
                heads=heads,
                kv_heads=self.kv_heads or heads,
                seq=self.seq or defaults.seq,
                head_dim=self.head_dim or defaults.head_dim,
                causal=causal,
                dtype=DType(self.dtype),
            )
            for causal in ((False, True) if self.causal is None else (self.causal,))
        )

    def check_gpu(self) -> None:
        """Refuse --gpu beside options of a measurement.

        Raises:
            UsageError: there is one.
        """
        given = {"--device": self.device, "--backends": self.backends, "--seed": self.seed}
        for option, value in given.items():
            if self.gpu is not None and value is not None:
                raise UsageError(
                    f"--gpu {self.gpu} computes bounds and runs nothing; leave out {option}"
                )


def _size(option: str, name: str, what: str) -> Callable[[Function], Function]:
    gpu, cpu = getattr(GPU_SHAPE, name), getattr(CPU_SHAPE, name)
    return click.option(
        option,
        name,
        type=click.IntRange(min=1, max=2**31 - 1),
        help=f"{what}  [default: {gpu}; on the CPU {cpu}]",
    )


_SIZES = (
    _size("--batch", "batch", "Sequences."),
    _size("--heads", "heads", "Heads of the queries."),
    click.option(
        "--kv-heads",
        type=click.IntRange(min=1, max=2**31 - 1),
        help="Heads of keys and values, fewer with grouped queries.  [default: --heads]",
    ),
    _size("--seq", "seq", "Tokens of each sequence."),
    _size("--head-dim", "head_dim", "Elements of a head."),
)

_REST = (
    click.option(
        "--causal/--no-causal",
        default=None,
        help="With or without the causal mask.  [default: both, one after the other]",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["bf16", "fp16"], case_sensitive=False),
        default="bf16",
        show_default=True,
        help="Of queries, keys, values and the output.",
    ),
    click.option(
        "--backends",
        type=BackendList(),
        help=f"Comma-separated: {', '.join(BACKENDS)}.  [default: all]",
    ),
    click.option(
        "--targets",
        type=Targets(),
        default=(),
        help="Times in microseconds: what rate each needs, and whether the GPU can give it.",
    ),
    click.option(
        "--target-unit",
        type=click.Choice(UNITS),
        default=UNITS[0],
        show_default=True,
        help="What a target is the time of: head is total / H, batch-head total / (B H).",
    ),
    click.option(
        "--gpu", help="Compute the bounds of this GPU, h100-sxm for one, and run nothing."
    ),
    click.option("--device", help="auto, cpu, cuda or cuda:INDEX.  [default: auto]"),
    click.option(
        "--json", "json_path", type=click.Path(path_type=Path), help="Write a result file."
    ),
    click.option(
        "--csv", "csv_path", type=click.Path(path_type=Path), help="Write a table as CSV."
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**31 - 1),
        help="Of the random operands; drawn unless told.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no tables; errors only."),
)


def attention_options(function: Function) -> Function:
    """Add every option of the command, as the arguments of `Options`."""
    for option in reversed((*_SIZES, *_REST)):
        function = option(function)
    return function
