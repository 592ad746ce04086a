"""`slidesparse inspect`: per linear what a checkpoint holds, and the speedup that was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.checkpoint.writer import size_text
from slidesparse.cli.console import make_console
from slidesparse.cli.target import open_cache, target_options

if TYPE_CHECKING:
    from slidesparse.checkpoint.inspect import CheckpointFacts, LinearFacts, Speedup

TOKENS = 16384
"""A prefill batch, where patterns gain most."""


@click.command("inspect")
@click.argument("path", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--m", type=click.IntRange(1), default=TOKENS, show_default=True, help="Tokens.")
@click.option("--all", "every", is_flag=True, help="A row for each linear, not for equal ones.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@target_options
def command(
    path: Path, m: int, every: bool, as_json: bool, device: str, cache_dir: Path | None
) -> None:
    """Show what the linears of the checkpoint DIR hold.

    Shape, dtype, zeros and the sparsest pattern that each weight satisfies come from the weights
    themselves; the expected speedup from what was measured on this GPU (slidesparse search).
    """
    from slidesparse.checkpoint.inspect import inspect
    from slidesparse.cli.progress import ProgressLine

    selected, cache = open_cache(device, cache_dir)
    line: ProgressLine | None = None

    def progress(done: int, total: int, name: str) -> None:
        nonlocal line
        if line is None:
            line = ProgressLine(total, make_console(stderr=True)).__enter__()
        line.advance()
        line.say(name)

    try:
        facts = inspect(path, m, cache, str(selected), progress)
    finally:
        if line is not None:
            line.__exit__(None, None, None)
    machine = str(cache.fingerprint)
    if as_json:
        click.echo(json.dumps(_plain(facts, m, machine), indent=2))
    else:
        _show(facts, m, machine, every)


def _plain(facts: CheckpointFacts, m: int, machine: str) -> dict[str, Any]:
    made = facts.provenance
    return {
        "path": str(facts.path),
        "machine": machine,
        "m": m,
        "converted": None
        if made is None
        else {
            "version": made.version,
            "pattern": str(made.pattern),
            "layers": {name: str(pattern) for name, pattern in made.layers.items()},
            "method": str(made.method),
            "dtype": str(made.dtype) if made.dtype else None,
            "keep": list(made.keep),
        },
        "linears": [_plain_linear(linear) for linear in facts.linears],
        "totals": {
            "linears": len(facts.linears),
            "weights": facts.weights,
            "zeros": facts.zeros,
            "bytes": facts.bytes,
        },
    }


def _plain_linear(linear: LinearFacts) -> dict[str, Any]:
    speedup = linear.speedup
    return {
        "name": linear.name,
        "shape": list(linear.shape),
        "dtype": linear.dtype,
        "form": linear.form,
        "zeros": linear.zeros,
        "pattern": str(linear.pattern),
        "speedup": None
        if speedup is None
        else {
            "gain": speedup.gain,
            "m": speedup.m,
            "n": speedup.n,
            "provenance": speedup.source,
        },
    }


def _show(facts: CheckpointFacts, m: int, machine: str, every: bool) -> None:
    from rich import box
    from rich.table import Table

    console = make_console()
    console.print(_heading(facts), markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    for column, right in (
        *(("linear", False), ("count", True), ("N", True), ("K", True), ("dtype", False)),
        *(("zeros", True), ("pattern", True), ("speedup", True), ("from", False)),
    ):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for name, count, linear in _rows(facts.linears, every):
        table.add_row(name, str(count), *_cells(linear))
    console.print(table)
    console.print(_total(facts), markup=False, soft_wrap=True)
    console.print(_about_speed(facts, m, machine), markup=False, soft_wrap=True)


def _heading(facts: CheckpointFacts) -> str:
    made = facts.provenance
    if made is None:
        return f"{facts.path}: not converted by slidesparse\n"
    spelled = str(made.pattern)
    if made.layers:
        spelled = f"a recipe of {len(made.layers)} patterns, otherwise {spelled}"
    return (
        f"{facts.path}: converted by slidesparse {made.version} to {spelled}, {made.method}, "
        f"{made.dtype or 'not quantised'}\n"
    )


def _rows(linears: tuple[LinearFacts, ...], every: bool) -> list[tuple[str, int, LinearFacts]]:
    """Name, how many, one of them; equal linears of many blocks share a row."""
    if every:
        return [(linear.name, 1, linear) for linear in linears]
    alike: dict[tuple[str, ...], list[LinearFacts]] = {}
    for linear in linears:
        alike.setdefault((_starred(linear.name), *_cells(linear)), []).append(linear)
    return [
        (key[0] if len(found) > 1 else found[0].name, len(found), found[0])
        for key, found in alike.items()
    ]


def _starred(name: str) -> str:
    """The name with its numbers left open: "model.layers.*.mlp.up_proj"."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _cells(linear: LinearFacts) -> tuple[str, ...]:
    packed = " packed" if "bitmask" in linear.form else ""
    return (
        *map(str, linear.shape),
        linear.dtype + packed,
        f"{linear.zeros:.1%}",
        str(linear.pattern),
        *_speed_cells(linear.speedup),
    )


def _speed_cells(speedup: Speedup | None) -> tuple[str, str]:
    return ("-", "-") if speedup is None else (f"{speedup.gain:.2f}x", speedup.source)


def _total(facts: CheckpointFacts) -> str:
    return (
        f"\n{len(facts.linears)} linears, {facts.weights / 1e6:,.1f} M weights, "
        f"{facts.zeros:.1%} zeros; {size_text(facts.bytes)} with everything else"
    )


def _about_speed(facts: CheckpointFacts, m: int, machine: str) -> str:
    known = [linear.speedup for linear in facts.linears if linear.speedup is not None]
    if not known:
        return f"speedup: nothing was measured on {machine}; run slidesparse search on this model"
    tuned = sorted({speedup.m for speedup in known})
    shown = ", ".join(map(str, tuned))
    return (
        f"speedup: of the GEMM over the best dense one at M={m} (measured at M={shown}) on "
        f"{machine}; q, k, v and gate, up count as the one GEMM that serving engines make of them"
    )
