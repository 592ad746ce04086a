"""`slidesparse plan --gpus`: the GPU table, and of one GPU where each figure is from."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING

from slidesparse.cli.plan_table import plain_table
from slidesparse.gpus import GpuSpec, find_gpu, gpu_keys

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 138
"""Columns of a terminal from which the table is in one piece."""

Column = tuple[str, str, Callable[[GpuSpec], str]]


def _rate(name: str) -> Column:
    def cell(it: GpuSpec) -> str:
        return f"{it.tflops[name]:,g}" if name in it.tflops else "-"

    return (name, "right", cell)


GROUPS: tuple[tuple[Column, ...], ...] = (
    (("also", "left", lambda it: ", ".join(it.aliases)),),
    (
        ("SM", "right", lambda it: f"{it.sm // 10}.{it.sm % 10}"),
        ("SMs", "right", lambda it: str(it.sm_count)),
        ("MHz", "right", lambda it: f"{it.boost_mhz:,}"),
        ("GiB", "right", lambda it: f"{it.memory_gib:,.2f}"),
        ("GB/s", "right", lambda it: f"{it.bandwidth_gbs:,.0f}"),
        ("W", "right", lambda it: f"{it.power_w:,}"),
        ("2:4", "left", lambda it: "yes" if it.sparse else "no"),
    ),
    tuple(_rate(name) for name in ("bf16", "fp16", "fp8", "int8", "fp32")),
)
"""Columns beside the name: heading, side, and the cell of a GPU."""


def print_gpus(key: str | None, console: Console) -> None:
    """Print all GPUs, or the sources of one.

    Args:
        key: of one; None for all.
        console: to print to.

    Raises:
        UsageError: there is no such GPU.
    """
    if key is None:
        _print_all(console)
    else:
        _print_one(find_gpu(key), console)


def _print_all(console: Console) -> None:
    """Print one table, or on a narrow terminal one for each group of its columns."""
    groups = (tuple(chain(*GROUPS)),) if console.width >= WIDE else GROUPS
    for columns in groups:
        table = plain_table(("GPU", "left"), *((name, side) for name, side, _ in columns))
        for key in gpu_keys():
            it = find_gpu(key)
            table.add_row(key, *(cell(it) for _, _, cell in columns))
        console.print(table)
        console.print()
    console.print(
        "Dense TFLOP/s (int8: TOP/s) with FP32 accumulation; GiB as the driver reports them. "
        "--gpus --gpu NAME tells the source of every figure.",
        markup=False,
    )


def _print_one(it: GpuSpec, console: Console) -> None:
    console.print(f"{it.name}, {it.architecture}", markup=False)
    table = plain_table(("figure", "left"), ("value", "right"), ("source", "left"))
    for field, source in it.sources.items():
        rate = field.removeprefix("tflops.")
        value = it.tflops[rate] if rate != field else getattr(it, field)
        word = f"{value:g}" if isinstance(value, float) else str(value)
        table.add_row(field, word, source)
    console.print(table)
