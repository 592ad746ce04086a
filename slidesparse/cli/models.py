"""`slidesparse models`: the presets, or the linear layers of one model with their widths K'."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from slidesparse.cli.console import make_console
from slidesparse.cli.options import PatternList, TokenCounts
from slidesparse.models import (
    LinearLayer,
    ModelSpec,
    Overflow,
    int32_overflows,
    load_model,
    preset_names,
)
from slidesparse.problem import INT32_MAX, SWEEP_M

if TYPE_CHECKING:
    from rich.table import Table

    from slidesparse.pattern import Pattern

_NO_NUMBERS = frozenset({"name", "linear", "kind", "archi-\ntecture", "source", "tensor"})


@click.command("models")
@click.argument("model", required=False)
@click.option("--tp", type=int, default=1, show_default=True, help="Tensor-parallel size.")
@click.option(
    "--patterns",
    type=PatternList(),
    default="2:4,4:6,6:8,8:10",
    show_default=True,
    help="Patterns whose expanded width K' to show.",
)
@click.option(
    "--m",
    "tokens",
    type=TokenCounts(),
    default=",".join(map(str, SWEEP_M)),
    show_default=True,
    help="Batch sizes (tokens) to check for 32-bit offsets.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(
    model: str | None,
    tp: int,
    patterns: tuple[Pattern, ...],
    tokens: tuple[int, ...],
    as_json: bool,
) -> None:
    """List the built-in models, or the linear layers of MODEL.

    MODEL is a preset, a directory with a config.json or a Hugging Face id. Its layers are listed
    as vLLM serves them, fused and divided by --tp, with the width K' that each pattern runs on.
    """
    if model is None:
        specs = [load_model(name) for name in preset_names()]
        if as_json:
            _print_json({"models": [_summary(spec) for spec in specs]})
        else:
            _list(specs)
        return
    spec = load_model(model)
    layers = spec.linears(tp)
    overflows = int32_overflows(layers, tokens, patterns)
    if as_json:
        _print_json(_details(spec, tp, layers, patterns, tokens, overflows))
    else:
        _show(spec, tp, layers, patterns, tokens, overflows)


def _summary(spec: ModelSpec) -> dict[str, Any]:
    return {**asdict(spec), "parameters": spec.parameters, "tp_sizes": spec.tp_sizes()}


def _details(
    spec: ModelSpec,
    tp: int,
    layers: tuple[LinearLayer, ...],
    patterns: tuple[Pattern, ...],
    tokens: tuple[int, ...],
    overflows: tuple[Overflow, ...],
) -> dict[str, Any]:
    return {
        **_summary(spec),
        "tp": tp,
        "linears": [
            {**asdict(layer), "expanded_k": {str(p): p.expanded_k(layer.k) for p in patterns}}
            for layer in layers
        ],
        "tokens": tokens,
        "overflows": [
            {
                **asdict(overflow),
                "pattern": None if overflow.pattern is None else str(overflow.pattern),
                "elements": overflow.elements,
            }
            for overflow in overflows
        ],
    }


def _print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content, indent=2))


def _list(specs: list[ModelSpec]) -> None:
    table = _table("name", "archi-\ntecture", "layers\nx hidden", "linear\nparams", "source")
    for spec in specs:
        shape = f"{spec.layers} x {spec.hidden}"
        billions = _billions(spec.parameters)
        table.add_row(spec.name, spec.architecture, shape, billions, spec.source)
    console = make_console()
    console.print(table)
    console.print(
        "\nParameters of linear layers only: no embedding, no output head, no routers.\n"
        "slidesparse models NAME lists the layers of one of these, of a directory with\n"
        "a config.json or of a Hugging Face id."
    )


def _show(
    spec: ModelSpec,
    tp: int,
    layers: tuple[LinearLayer, ...],
    patterns: tuple[Pattern, ...],
    tokens: tuple[int, ...],
    overflows: tuple[Overflow, ...],
) -> None:
    console = make_console()
    console.print(
        f"{spec.name}: {spec.architecture}, {spec.layers} layers, hidden {spec.hidden}\n"
        f"source: {spec.source}\nparameters in linear layers: {_billions(spec.parameters)}"
        f"\ntensor-parallel size: {tp} (possible: {', '.join(map(str, spec.tp_sizes()))})\n",
        markup=False,
    )
    sparse = [pattern for pattern in patterns if not pattern.dense]
    table = _table("linear", "kind", "N", "K", "count", *(f"K' {pattern}" for pattern in sparse))
    for layer in layers:
        sizes = (layer.n, layer.k, layer.count, *(p.expanded_k(layer.k) for p in sparse))
        table.add_row(layer.name, layer.kind, *map(str, sizes))
    console.print(table)
    for note in (_routing(spec), "" if overflows else _all_fit(tokens)):
        if note:
            console.print(f"\n{note}", markup=False)
    if overflows:
        console.print(
            f"\nMore than 2^31 - 1 = {INT32_MAX:,} elements, past what 32-bit offsets address:\n"
        )
        console.print(_overflow_table(overflows))


def _routing(spec: ModelSpec) -> str:
    moe = spec.moe
    if moe is None:
        return ""
    return (
        f"Each token is routed to {moe.active} of {moe.experts} experts: an expert GEMM sees "
        f"M x {moe.active}/{moe.experts} rows on average."
    )


def _all_fit(tokens: tuple[int, ...]) -> str:
    return f"No output or lifted input passes 2^31 - 1 elements up to M={max(tokens)}."


def _overflow_table(overflows: tuple[Overflow, ...]) -> Table:
    table = _table("linear", "M", "tensor", "rows", "columns", "elements")
    for overflow in overflows:
        lifted = overflow.pattern is not None and not overflow.pattern.dense
        tensor = f"input lifted for {overflow.pattern}" if lifted else overflow.tensor
        sizes = (overflow.rows, overflow.columns, f"{overflow.elements:,}")
        table.add_row(overflow.layer, str(overflow.m), tensor, *map(str, sizes))
    return table


def _table(*columns: str) -> Table:
    """Make a borderless table that fits 80 columns; what does not fit is folded, never cut."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    for column in columns:
        left = column in _NO_NUMBERS
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    return table


def _billions(count: int) -> str:
    return f"{count / 1e9:.1f} B"
