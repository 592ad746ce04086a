"""`slidesparse plan --check`: plans against what vLLM reports on this machine's GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.cli.plan_options import Asked, resolve
from slidesparse.errors import DeviceError, SlideSparseError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from slidesparse.bench.capacity.check_record import CheckEntry, CheckRecord
    from slidesparse.devices import Device, Fingerprint

CONTEXT = 4096
"""Of a check, unless told: the KV cache's size in tokens hardly depends on it."""


def run_check(options: Mapping[str, Any], json_path: Path | None, quiet: bool) -> None:
    """Start vLLM for each model and compare; exit with 1 where a plan is off by more than 3 %.

    Args:
        options: of the command; "model" may name several, separated by commas.
        json_path: of the result file; models that it holds already are not started again.
        quiet: print nothing but errors.

    Raises:
        UsageError: a value is wrong, or vLLM or the GPU is missing.
    """
    from slidesparse.bench.capacity.check_record import CheckRecord, write_json
    from slidesparse.devices import detect

    device, asked = _prepared(options)
    here = detect(device)
    before = earlier(json_path, here)
    given = {name: value for name, value in options.items() if value is not None}
    models = {it.model for it in asked}
    others = [entry for entry in before.entries if entry.model not in models] if before else []
    record = CheckRecord(here, given, tuple(others))
    for it in asked:
        kept = before.kept(it.model, it.options) if before is not None else None
        if kept is None and not quiet:
            click.echo(f"starting vLLM with {it.model}", err=True)
        entry = kept or _entry(device, it)
        record = replace(record, entries=(*record.entries, entry)).stamped()
        if json_path is not None:
            write_json(record, json_path)
    if not quiet:
        from slidesparse.cli.console import make_console

        print_check(record, make_console())
    _finish(record)


def print_check(record: CheckRecord, console: Console) -> None:
    """Print a table per model: planned, reported, difference."""
    from slidesparse.capacity.figure import size
    from slidesparse.cli.plan_table import plain_table

    for entry in record.entries:
        console.print(f"{entry.model} on {record.fingerprint.name}", markup=False)
        if entry.error is not None:
            console.print(f"  {entry.error}\n", markup=False)
            continue
        table = plain_table(
            ("", "left"), ("planned", "right"), ("vLLM", "right"), ("difference", "right")
        )
        for it in entry.components:
            tokens = it.name == "KV-cache tokens"
            shown = [f"{n:,}" if tokens else size(n) for n in (it.planned, it.reported)]
            off = 100 * (it.planned / it.reported - 1) if it.reported else None
            table.add_row(it.name, *shown, "" if off is None else f"{off:+.1f} %")
        console.print(table)
        console.print()


def _prepared(options: Mapping[str, Any]) -> tuple[Device, tuple[Asked, ...]]:
    """The GPU and the plans; everything is refused here that can be."""
    from slidesparse.bench.sweep.vllm_compat import prepare
    from slidesparse.devices import gpu_problem, select_device

    # A model that is named twice is started once.
    names = [name.strip() for name in str(options.get("model") or "").split(",")]
    models = [name for name in dict.fromkeys(names) if name]
    if not models:
        raise UsageError("no model is named; use --model, such as --model qwen2.5-7b,llama3.1-8b")
    if options.get("gpu") not in (None, "auto"):
        raise UsageError(
            f"--check starts vLLM on this machine's GPU, not on {options['gpu']}; leave --gpu out"
        )
    missing = gpu_problem()
    if missing:
        raise DeviceError(f"--check starts vLLM, and {missing}; leave --check out for a plan alone")
    prepare()
    context = CONTEXT if options.get("context") is None else options["context"]
    asked = [resolve(name, {**options, "model": name, "context": context}) for name in models]
    return select_device("cuda"), tuple(asked)


def _entry(device: Device, asked: Asked) -> CheckEntry:
    """Start one model in a process of its own."""
    from slidesparse.bench.capacity.check import (
        BUILD_TIMEOUT,
        CheckJob,
        Reported,
        differences,
    )
    from slidesparse.bench.capacity.check_record import CheckEntry, Component
    from slidesparse.capacity.plan import make_plan
    from slidesparse.worker import Worker

    job = CheckJob(asked.model, asked.settings)
    factory = "slidesparse.bench.capacity.check:CapacityEngine"
    worker = Worker(device, factory, job, children=True)
    try:
        found: Reported = worker.call("build", timeout=BUILD_TIMEOUT)
    except UsageError:
        raise
    except SlideSparseError as error:
        reason = " ".join(str(error).split())[:1000] or type(error).__name__
        return CheckEntry(asked.model, asked.options, (), 0, 0, {}, f"vLLM did not start: {reason}")
    except BaseException:
        worker.cancel()
        raise
    finally:
        worker.stop()
    plan = make_plan(asked.settings, asked.stored)
    compared = differences(plan, found)
    components = tuple(Component(it.name, it.planned, it.reported) for it in compared)
    size = (found.blocks, found.block_tokens)
    return CheckEntry(asked.model, asked.options, components, *size, dict(found.ran), None)


def earlier(json_path: Path | None, here: Fingerprint) -> CheckRecord | None:
    """What an earlier run left in the result file, None without one.

    Args:
        json_path: of the file, or None.
        here: the machine.

    Raises:
        UsageError: the file is something else, or of another machine; it is not overwritten.
    """
    from slidesparse.bench.capacity.check_record import read_json

    if json_path is None or not json_path.is_file() or not json_path.stat().st_size:
        return None
    found = read_json(json_path)
    differences = here.differences(found.fingerprint)
    if differences:
        raise UsageError(
            f"{json_path} is of another machine or other versions ({differences[0]}); name "
            "another file"
        )
    return found


def _finish(record: CheckRecord) -> None:
    from slidesparse.bench.capacity.check import TOLERANCE

    failed = [entry for entry in record.entries if entry.error is not None]
    if failed:
        raise click.ClickException(f"{failed[0].model}: {failed[0].error}")
    off = [entry for entry in record.entries if not entry.within(TOLERANCE)]
    if off:
        it = off[0].tokens
        assert it is not None
        raise click.ClickException(
            f"{off[0].model}: {it.planned:,} tokens of KV cache are planned and vLLM reports "
            f"{it.reported:,}, which is more than {100 * TOLERANCE:.0f} % apart"
        )
