"""slidesparse search: the fastest correct algorithm for every GEMM of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.cli.main import end_run
from slidesparse.cli.options import (
    DTypeName,
    PatternList,
    Seconds,
    TokenCounts,
    check_outputs,
)
from slidesparse.cli.target import refuse_fp8, select_devices
from slidesparse.errors import CacheError, UsageError
from slidesparse.pattern import Pattern, parse_patterns
from slidesparse.problem import SEARCH_M, DType, GemmProblem, default_output, default_scales

if TYPE_CHECKING:
    from slidesparse.bench.search.record import SearchRecord
    from slidesparse.bench.workload import LayerProblem
    from slidesparse.models import ModelSpec
    from slidesparse.search.driver import Outcome, Search, SearchOptions

GPU_PATTERNS = "dense,2:4,4:6,6:8,8:10"
CPU_PATTERNS = "dense,2:4,6:8"
CPU_M = (16, 64)


@click.command()
@click.option(
    "--model", required=True, help="Preset, directory with config.json, or Hugging Face id."
)
@click.option("--dtype", type=DTypeName(), required=True, help="Operands: fp8 (E4M3) or int8.")
@click.option("--m", "tokens", type=TokenCounts(), help="Token counts. [16,64,256,1024,4096,16384]")
@click.option("--patterns", type=PatternList(), help=f"Weight patterns. [{GPU_PATTERNS}]")
@click.option("--tp", type=click.IntRange(min=1), default=1, help="Tensor-parallel size.")
@click.option(
    "--out-dtype",
    type=click.Choice(["bf16", "fp16", "fp32", "int32", "int8"]),
    help="Output. [bf16; int32 for int8 without scales]",
)
@click.option(
    "--scales",
    type=click.Choice(["tensor", "rowcol", "none"]),
    help="Scales that the GEMM applies. [tensor; none for int32]",
)
@click.option("--backends", help="Comma-separated names; all that the device has unless told.")
@click.option("--device", "device_name", default="auto", help="auto, cpu, cuda or cuda:INDEX.")
@click.option("--gpus", help="all, or indices such as 0,1: one worker per GPU.")
@click.option(
    "--effort", type=click.Choice(["quick", "normal", "full"]), default="normal", show_default=True
)
@click.option("--budget", type=Seconds(), help="Seconds for everything.")
@click.option("--resume/--fresh", default=True, help="Use what is cached or journalled. [resume]")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), help="Of the random operands; drawn unless told."
)
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where tuning results live.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write a result file.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write a table as CSV.")
@click.option("--dry-run", is_flag=True, help="List problems and candidates, run nothing.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no tables; errors only.")
def command(
    model: str,
    dtype: DType,
    tokens: tuple[int, ...] | None,
    patterns: tuple[Pattern, ...] | None,
    tp: int,
    out_dtype: str | None,
    scales: str | None,
    backends: str | None,
    device_name: str,
    gpus: str | None,
    effort: str,
    budget: float | None,
    resume: bool,
    seed: int | None,
    cache_dir: Path | None,
    json_path: Path | None,
    csv_path: Path | None,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Find the fastest correct algorithm for every GEMM of a model and cache it for this GPU."""
    from slidesparse.models import load_model

    # Whatever can be wrong with the input is found before torch is imported.
    check_outputs(json_path, csv_path)
    spec = load_model(model)
    spec.linears(tp)
    template = _template(dtype, out_dtype, scales)
    wanted = _backends(backends)

    from slidesparse.bench.workload import layer_problems
    from slidesparse.cache import TuningCache
    from slidesparse.cli.console import make_console
    from slidesparse.cli.search_notes import heading, notes
    from slidesparse.devices import detect
    from slidesparse.search.backend import Effort
    from slidesparse.search.driver import Search, SearchOptions

    devices = select_devices(device_name, gpus)
    fingerprint = detect(devices[0])
    on_gpu = devices[0].is_gpu
    defaults = parse_patterns(GPU_PATTERNS if on_gpu else CPU_PATTERNS)
    refuse_fp8(template.dtype, devices[0], fingerprint.sm, "this search")
    items = layer_problems(
        spec,
        tp,
        tokens or (SEARCH_M if on_gpu else CPU_M),
        patterns or defaults,
        template,
    )
    options = SearchOptions(
        effort=Effort(effort),
        budget_s=budget,
        fresh=not resume,
        backends=wanted,
        seed=seed,
    )
    cache = TuningCache(cache_dir, fingerprint)
    unwritable = cache.unwritable_reason()
    if unwritable and not dry_run:
        raise CacheError(f"cannot write the tuning cache: {unwritable}")
    search = Search([item.problem for item in items], devices, cache, options)
    console = make_console()
    if not quiet:
        for line in (heading(spec.name, devices, fingerprint.name), *notes(items, cache)):
            console.print(line, soft_wrap=True, markup=False)
    if dry_run:
        _print_offers(search, json_path)
        return
    outcome = _run(search, quiet)
    record = _record(spec, tp, search, outcome, options, items)
    if json_path is not None or csv_path is not None:
        _write(record, json_path, csv_path)
    if not quiet:
        from slidesparse.cli.search_table import print_record

        print_record(record, console)
        console.print(
            f"{len(outcome.found)} of {len(search.problems)} problems in {outcome.seconds:.1f} s, "
            f"seed {outcome.seed}; cache: {cache.directory}",
            soft_wrap=True,
            markup=False,
        )
    end_run(outcome.interrupted, outcome.found, outcome.skipped, "found")


def _template(dtype: DType, out_dtype: str | None, scales: str | None) -> GemmProblem:
    from slidesparse.problem import Scales

    wanted = Scales(scales) if scales else None
    out = DType(out_dtype) if out_dtype else default_output(dtype, wanted)
    mode = wanted or default_scales(out)
    return GemmProblem(m=1, n=1, k=1, dtype=dtype, out=out, scales=mode)


def _backends(text: str | None) -> tuple[str, ...] | None:
    """Comma-separated backends without repetitions, each of them known; None for all."""
    if text is None:
        return None
    from slidesparse.search.backends import load_backend

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        load_backend(name)
    return names


def _run(search: Search, quiet: bool) -> Outcome:
    if quiet:
        return search.run()
    from slidesparse.cli.console import make_console
    from slidesparse.cli.search_progress import ProgressListener

    with ProgressListener(len(search.problems), make_console(stderr=True)) as listener:
        return search.run(listener)


def _print_offers(search: Search, json_path: Path | None) -> None:
    offers = search.offers()
    if json_path is not None:
        from slidesparse.serialize import to_plain

        data = [
            {
                "problem": to_plain(problem),
                "candidates": to_plain(offer.candidates),
                "left_out": offer.left_out,
            }
            for problem, offer in offers.items()
        ]
        try:
            json_path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {json_path}: {error.strerror}") from error
    for problem, offer in offers.items():
        counts: dict[str, int] = {}
        for candidate in offer.candidates:
            counts[candidate.backend] = counts.get(candidate.backend, 0) + 1
        listed = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
        click.echo(f"{problem}: {listed}")
        for name, reason in offer.left_out.items():
            click.echo(f"    without {name}: {reason}")
    total = sum(len(offer.candidates) for offer in offers.values())
    click.echo(f"{len(offers)} problems, {total} candidates before neighbours; nothing was run")


def _record(
    spec: ModelSpec,
    tp: int,
    search: Search,
    outcome: Outcome,
    options: SearchOptions,
    items: tuple[LayerProblem, ...],
) -> SearchRecord:
    from slidesparse.bench.search.record import SearchRecord

    settings: dict[str, Any] = {
        "effort": str(options.effort),
        "budget_s": options.budget_s,
        "fresh": options.fresh,
        "backends": list(search.backend_names),
        "seed": outcome.seed,
        "devices": [str(device) for device in search.devices],
    }
    return SearchRecord(
        model=spec.name,
        tp=tp,
        fingerprint=search.cache.fingerprint,
        settings=settings,
        seconds=outcome.seconds,
        interrupted=outcome.interrupted,
        layers=items,
        results={p: (f.result, f.provenance) for p, f in outcome.found.items()},
        skipped=dict(outcome.skipped),
    ).stamped()


def _write(record: SearchRecord, json_path: Path | None, csv_path: Path | None) -> None:
    from slidesparse.bench.search.record import write_csv, write_json

    if json_path is not None:
        write_json(record, json_path)
    if csv_path is not None:
        write_csv(record, csv_path)
