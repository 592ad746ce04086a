"""`slidesparse results`: what result files are, whether they are valid, and published tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slidesparse.cli.inputs import keep_inputs
from slidesparse.cli.options import check_outputs, check_writable
from slidesparse.errors import UsageError

if TYPE_CHECKING:
    from slidesparse.bench.rows import ResultFile

_files = click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
_json = click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write as JSON.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="Print errors only.")


@click.group("results")
def command() -> None:
    """Look at result files, check them, and import published figures as such.

    Result files are what the commands of this tool write with --json (and --figure draws).
    """


@command.command("show", short_help="Say what files are and what they hold.")
@_files
@_json
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write all rows as CSV.")
@_quiet
def show_command(
    files: tuple[Path, ...], json_path: Path | None, csv_path: Path | None, quiet: bool
) -> None:
    """Say of each FILE what wrote it, where and when, and which figures it holds.

    --json and --csv hold every figure: its workload, what may differ between figures of one
    workload, value, unit, spread and provenance.
    """
    from slidesparse.bench.kinds import read_results
    from slidesparse.bench.results_text import as_data, describe, write_csv
    from slidesparse.cli.endings import write_each

    check_outputs(json_path, csv_path)
    keep_inputs(files, {"--json": json_path, "--csv": csv_path})
    found = [read_results(path) for path in files]
    if not quiet:
        for result in found:
            click.echo("\n".join(describe(result)))

    def write_json(results: Sequence[ResultFile], path: Path) -> None:
        _write_json(path, [as_data(result) for result in results])

    unwritten = write_each(found, (write_json, json_path), (write_csv, csv_path))
    if unwritten:
        raise click.ClickException("; ".join(unwritten))


@command.command("validate", short_help="Check files against their schema.")
@_files
@_json
@_quiet
def validate_command(files: tuple[Path, ...], json_path: Path | None, quiet: bool) -> None:
    """Check each FILE as its kind's schema and its own figures want it.

    Prints the first fault of each that is not valid, with its place, and exits with 1. What is
    checked is in bench/result.schema.json, and more: that medians follow from their samples.
    """
    from slidesparse.bench.kinds import read_results

    check_writable(json_path)
    keep_inputs(files, {"--json": json_path})
    checked: list[dict[str, object]] = []
    for path in files:
        kind, fault = None, None
        try:
            kind = read_results(path).kind
        except UsageError as error:
            fault = str(error)
            click.echo(fault, err=True)
        else:
            if not quiet:
                click.echo(f"{path}: valid, {kind}")
        checked.append({"path": str(path), "valid": fault is None, "kind": kind, "fault": fault})
    if json_path is not None:
        _write_json(json_path, checked)
    broken = sum(not item["valid"] for item in checked)
    if broken:
        raise click.ClickException(f"{broken} of {len(files)} files are not valid")


@command.command("import", short_help="Make a published table a result file.")
@click.argument("table", metavar="CSV", type=click.Path(path_type=Path))
@click.option("--gpu", required=True, help="Whose lines: a name in the table.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Result file to write."
)
@click.option("--source", help="Who published the table, and where. [the SlideSparse paper]")
@_quiet
def import_command(table: Path, gpu: str, output: Path, source: str | None, quiet: bool) -> None:
    """Make one GPU's lines of a published CSV a result file, labelled published.

    Takes the two tables of the SlideSparse paper's results: tokens per second end to end, and GEMM
    latency. The figures then stand beside those of `bench prefill`, `bench decode` and `search`.
    """
    from slidesparse.bench.published.record import write_json
    from slidesparse.bench.published.tables import SOURCE, import_table

    check_writable(output)
    keep_inputs([table], {"-o": output})
    if source is not None and not source.strip():
        raise UsageError("--source is empty; say who published the table, and where")
    done = import_table(table, gpu, source or SOURCE)
    write_json(done.record, output)
    if quiet:
        return
    count = len(done.record.steps) + len(done.record.gemms)
    click.echo(f"imported {count} figures of {done.record.machine} to {output}")
    for reason, lines in done.left_out.items():
        click.echo(f"left out {lines} {'line' if lines == 1 else 'lines'}: {reason}")


def _write_json(path: Path, data: object) -> None:
    from slidesparse.bench.result_file import write_text

    write_text(path, json.dumps(data, indent=1) + "\n")
