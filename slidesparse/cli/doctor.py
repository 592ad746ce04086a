"""`slidesparse doctor`: what works on this machine, and the command that mends what does not."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse._version import __version__
from slidesparse.cli.target import open_cache, target_options

if TYPE_CHECKING:
    from slidesparse.cache import TuningCache
    from slidesparse.devices import Device

_PACKAGES = {
    "triton": ("triton",),
    "nvmath": ("nvmath-python",),
    "cuda-bindings": ("cuda-bindings",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "nvidia-ml-py": ("nvidia-ml-py",),
    "torchao": ("torchao",),
    "vllm": ("vllm",),
}
"""What the doctor calls a package, and the distributions that it comes in."""


@click.command("doctor")
@target_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(device: str, cache_dir: Path | None, as_json: bool) -> None:
    """Say what works on this machine and how to mend what does not.

    Exits with 1 if no backend works.
    """
    selected, cache = open_cache(device, cache_dir)
    report = examine(selected, cache)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _show(report)
    if not report["usable"]:
        raise click.ClickException(f"no backend works on {selected}; see the remedies above")


def examine(device: Device, cache: TuningCache) -> dict[str, Any]:
    """All that the doctor reports, as JSON data."""
    backends = _backends(device)
    return {
        "slidesparse": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _device(device, cache),
        "versions": _versions(),
        "backends": backends,
        "cache": _cache(cache),
        "usable": any(backend["ok"] for backend in backends),
    }


def _device(device: Device, cache: TuningCache) -> dict[str, Any]:
    from slidesparse.devices import l2_bytes
    from slidesparse.monitor import read_clock_power
    from slidesparse.serialize import to_plain

    reading = read_clock_power(device)
    return {
        "name": str(device),
        "fingerprint": to_plain(cache.fingerprint),
        "description": str(cache.fingerprint),
        "l2_bytes": l2_bytes(device),
        "clock_mhz": reading[0] if reading else None,
        "power_w": reading[1] if reading else None,
        "note": "" if device.is_gpu else _why_no_gpu(),
    }


def _why_no_gpu() -> str:
    """Why no GPU is used here."""
    from slidesparse.devices import gpu_problem

    return gpu_problem() or "there is one; --device cuda examines it"


def _versions() -> list[dict[str, str]]:
    """Run-time versions; for a library that does not load, the reason."""
    from slidesparse import libraries

    absent = libraries.ABSENT
    driver = libraries.driver_version()
    no_driver = "no NVIDIA driver on this machine" if driver == absent else ""
    rows = [{"name": "driver", "version": driver, "note": no_driver}]
    for name in ("cublasLt", "cusparseLt"):
        version, note = libraries.binding_version(name)
        rows.append({"name": name, "version": version, "note": note})
    rows.append({"name": "torch", "version": libraries.torch_version(), "note": ""})
    for name, distributions in _PACKAGES.items():
        found = [libraries.package_version(distribution) for distribution in distributions]
        version = next((version for version in found if version != absent), absent)
        note = "not installed" if version == absent else ""
        rows.append({"name": name, "version": version, "note": note})
    return rows


def _backends(device: Device) -> list[dict[str, Any]]:
    from slidesparse.search.backends import all_backends

    rows = []
    for backend in all_backends():
        state = backend.availability(device)
        rows.append(
            {"name": backend.name, "ok": state.ok, "reason": state.reason, "remedy": state.remedy}
        )
    return rows


def _cache(cache: TuningCache) -> dict[str, Any]:
    from slidesparse.cli.cache_table import stale_data

    unwritable = cache.unwritable_reason()
    return {
        "directory": str(cache.directory),
        "entries": len(cache.user_entries()),
        "bundled": len(cache.bundled_entries()),
        "kernels": len(cache.user_kernels()),
        "bundled_kernels": len(cache.bundled_kernels()),
        "writable": not unwritable,
        "unwritable_reason": unwritable,
        "stale": stale_data(cache.stale()),
    }


def _show(report: dict[str, Any]) -> None:
    from rich.table import Table

    from slidesparse.cli.console import make_console

    console = make_console()

    def line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    device, cache = report["device"], report["cache"]
    line(f"slidesparse {report['slidesparse']}, Python {report['python']}, {report['platform']}")
    now = "" if device["clock_mhz"] is None else f", now {device['clock_mhz']} MHz"
    watts = "" if device["power_w"] is None else f", {device['power_w']:.0f} W"
    cache_mib = device["l2_bytes"] / 2**20
    line(f"{device['name']}: {device['description']}, {cache_mib:g} MiB cache{now}{watts}")
    if device["note"]:
        line(f"no GPU is used: {device['note']}")
    for title, rows in (("library", _version_rows(report)), ("backend", _backend_rows(report))):
        table = Table(box=None, pad_edge=False)
        for name in (title, "state", "note"):
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)
    console.print()
    line(f"cache: {cache['directory']}")
    line(f"       {cache['entries']} entries, {cache['bundled']} bundled with the package")
    line(
        f"       {cache['kernels']} kernel configurations, {cache['bundled_kernels']} bundled "
        "with the package"
    )
    if not cache["writable"]:
        line(f"       not writable: {cache['unwritable_reason']}")
    for item in cache["stale"]:
        line(
            f"       stale: {item['entries']} in {item['path']} ({'; '.join(item['differences'])})"
        )


def _version_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    from rich.markup import escape

    return [(row["name"], row["version"], escape(row["note"])) for row in report["versions"]]


def _backend_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    from rich.markup import escape

    rows = []
    for row in report["backends"]:
        remedy = f"; to mend it: {row['remedy']}" if row["remedy"] else ""
        state = "[green]works[/]" if row["ok"] else "[red]no[/]"
        rows.append((row["name"], state, escape(row["reason"] + remedy)))
    return rows
