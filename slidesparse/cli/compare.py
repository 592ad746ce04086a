"""`slidesparse compare`: result files of any kind side by side, what differs said first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.cli.console import make_console
from slidesparse.cli.endings import write_each
from slidesparse.cli.inputs import keep_inputs
from slidesparse.cli.options import Names, check_outputs
from slidesparse.errors import UsageError

if TYPE_CHECKING:
    from slidesparse.bench.compare.cost import CostLine, Price
    from slidesparse.bench.compare.lines import Comparison
    from slidesparse.bench.compare.select import Options

PHASES = ("baseline", "adapted")


@click.command("compare")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The file that ratios are over.  [default: the first]",
)
@click.option(
    "--phase",
    type=click.Choice(PHASES),
    default="baseline",
    show_default=True,
    help="baseline: the same settings, enforced; adapted: each file's own best.",
)
@click.option(
    "--by",
    type=click.Choice(["workload", "variant"]),
    default="workload",
    show_default=True,
    help="Pair the best of each workload, or only what is of one variant.",
)
@click.option("--split", default="", help="Give each value of this name a column: system, pattern.")
@click.option("--where", multiple=True, help="Keep rows with NAME=VALUE[,VALUE]; may be repeated.")
@click.option("--metric", "metrics", type=Names(), default="", help="Keep these metrics only.")
@click.option(
    "--adapt",
    type=Names(),
    help="Names that --phase adapted lets a file choose, instead of dtype, mode, backend, ...",
)
@click.option("--price", help="Of a GPU and hour: h200=4.10/h,h100=2.70/h.")
@click.option("--tokens", "job", help="Tokens of a job whose total is told: 1e9.")
@click.option("--all", "every", is_flag=True, help="List the workloads that one file has alone.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "md"]),
    default="table",
    show_default=True,
    help="A table for terminals, or Markdown.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write a result file.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write a CSV.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    files: tuple[Path, ...],
    base: Path | None,
    price: str | None,
    job: str | None,
    every: bool,
    form: str,
    json_path: Path | None,
    csv_path: Path | None,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Compare result FILES of different GPUs, software versions or settings.

    Rows are aligned by workload. What differs between the files is said first, then each figure
    with its spread and ratios over the first file; a ratio inside the spread is no difference.
    One file alone is compared with itself by --split system.
    """
    check_outputs(json_path, csv_path)
    keep_inputs(files, {"--json": json_path, "--csv": csv_path})
    _check_twice(files)
    options = _options(files, base, chosen)
    prices, tokens = _costs(price, job)
    compared, costs = _compared(files, options, prices, tokens)
    if not quiet:
        _print(compared, costs, prices, tokens, every, form)
    if json_path or csv_path:
        from slidesparse.bench.compare import csv as compare_csv
        from slidesparse.bench.compare import record as compare_record

        settings = {**chosen, "base": str(files[options.base]), "price": price, "tokens": tokens}
        record = compare_record.make_record(compared, costs, settings).stamped()
        failures = write_each(
            record,
            (compare_record.write_json, json_path),
            (compare_csv.write_csv, csv_path),
        )
        if failures:
            raise click.ClickException("; ".join(failures))


def _check_twice(files: tuple[Path, ...]) -> None:
    """Refuse a file that is given twice.

    Raises:
        UsageError: it is; names it.
    """
    resolved = [file.resolve() for file in files]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise UsageError(f"{files[index]} is given twice; compare two files, or --split one")


def _options(files: tuple[Path, ...], base: Path | None, chosen: dict[str, Any]) -> Options:
    """The options as the comparison takes them.

    Raises:
        UsageError: --base is none of the files; --where is malformed; --adapt without its phase.
    """
    from slidesparse.bench.compare.select import ADAPTED, Options, Phase

    resolved = [file.resolve() for file in files]
    if chosen["adapt"] and chosen["phase"] != "adapted":
        raise UsageError("--adapt is for --phase adapted; leave one out or give both")
    if base is not None and base.resolve() not in resolved:
        raise UsageError(f"--base {base} is none of the files: {', '.join(map(str, files))}")
    return Options(
        phase=Phase(chosen["phase"]),
        by=chosen["by"],
        base=0 if base is None else resolved.index(base.resolve()),
        split=chosen["split"],
        where=_where(chosen["where"]),
        metrics=chosen["metrics"],
        adapt=chosen["adapt"] or ADAPTED,
    )


def _where(texts: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Values to keep by name."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not name.strip() or not equals or not values.strip():
            raise UsageError(f"cannot read --where {text!r}; write NAME=VALUE: pattern=6:8")
        kept = tuple(value.strip() for value in values.split(","))
        found[name.strip()] = (*found.get(name.strip(), ()), *kept)
    return found


def _costs(price: str | None, job: str | None) -> tuple[tuple[Price, ...], float | None]:
    """Prices and tokens of the job, read before any file is."""
    if price is None and job is None:
        return (), None
    from slidesparse.bench.compare.cost import parse_prices, parse_tokens

    prices = () if price is None else parse_prices(price)
    return prices, None if job is None else parse_tokens(job)


def _compared(
    files: tuple[Path, ...], options: Options, prices: tuple[Price, ...], tokens: float | None
) -> tuple[Comparison, tuple[CostLine, ...]]:
    from slidesparse.bench.compare.cost import cost_lines
    from slidesparse.bench.compare.lines import compare
    from slidesparse.bench.kinds import read_results

    compared = compare([read_results(path) for path in files], options)
    return compared, cost_lines(compared, prices, tokens)


def _print(
    compared: Comparison,
    costs: tuple[CostLine, ...],
    prices: tuple[Price, ...],
    tokens: float | None,
    every: bool,
    form: str,
) -> None:
    from slidesparse.bench.compare.cost_view import cost_sections
    from slidesparse.bench.compare.view import make_view

    sections = [*make_view(compared, every), *cost_sections(compared, costs, prices, tokens)]
    if str(compared.options.phase) == "adapted":
        from slidesparse.bench.compare.profile import profile_sections

        sections += profile_sections(compared)
    if form == "md":
        from slidesparse.bench.compare.markdown import to_markdown

        click.echo(to_markdown(sections), nl=False)
        return
    from slidesparse.cli.compare_table import print_sections

    print_sections(sections, make_console())
