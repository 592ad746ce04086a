"""`slidesparse cache`: look at, move and check the tuning results of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.cli.options import PatternList, TokenCounts
from slidesparse.cli.target import open_cache, target_options

if TYPE_CHECKING:
    from slidesparse.cache import Hit, TuningCache
    from slidesparse.pattern import Pattern

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("cache")
def command() -> None:
    """Look at, move and check the tuning cache of this machine.

    Results are filed under the machine's fingerprint: GPU, driver and library versions. A result
    of another fingerprint is never used; `list` and `clear --stale` show and remove those of the
    same GPU with other versions.
    """


@command.command("path", short_help="Print where results live.")
@target_options
@_json_option
def path_command(device: str, cache_dir: Path | None, as_json: bool) -> None:
    """Print the directory of this machine's results."""
    _, cache = open_cache(device, cache_dir)
    if as_json:
        _print_json({"root": str(cache.root), "directory": str(cache.directory)})
    else:
        click.echo(cache.directory)


@command.command("list", short_help="List every result.")
@target_options
@_json_option
def list_command(device: str, cache_dir: Path | None, as_json: bool) -> None:
    """List every result: the problem, its best candidate and where the figure comes from.

    The table counts the configurations of kernels around the GEMM; --json lists each of them.
    """
    from slidesparse.cli import cache_table

    _, cache = open_cache(device, cache_dir)
    if as_json:
        _print_json(cache_table.listing(cache))
    else:
        cache_table.print_listing(cache)


@command.command("show", short_help="Show one result, or those that match.")
@click.argument("key", required=False)
@click.option("--n", type=click.IntRange(min=1), help="Only this N (output channels).")
@click.option("--k", type=click.IntRange(min=1), help="Only this K (input channels).")
@click.option("--m", "tokens", type=TokenCounts(), help="Only the buckets of these M.")
@click.option("--pattern", "patterns", type=PatternList(), help="Only these patterns.")
@target_options
@_json_option
def show_command(
    key: str | None,
    n: int | None,
    k: int | None,
    tokens: tuple[int, ...] | None,
    patterns: tuple[Pattern, ...] | None,
    device: str,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Show all that is known of one result (KEY, as `list` prints it) or of those that match."""
    from slidesparse.cli import cache_table

    _, cache = open_cache(device, cache_dir)
    if key is not None and (kernel := cache.kernel_entries().get(key)) is not None:
        if as_json:
            _print_json({"entries": [cache_table.details(key, kernel)]})
        else:
            cache_table.print_kernel_details(key, kernel)
        return
    hits = _matching(cache, key, n, k, tokens, patterns)
    if as_json:
        _print_json({"entries": [cache_table.details(*item) for item in hits.items()]})
    else:
        cache_table.print_details(hits)


@command.command("export", short_help="Write results to one file.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@target_options
def export_command(file: Path, device: str, cache_dir: Path | None) -> None:
    """Write this machine's results to one FILE for machines with an equal fingerprint."""
    _, cache = open_cache(device, cache_dir)
    count = cache.export(file)
    click.echo(f"exported {_entries(count)} of {cache.fingerprint} to {file}")


@command.command("import", short_help="Merge an exported file.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace entries that are here already.")
@target_options
def import_command(file: Path, overwrite: bool, device: str, cache_dir: Path | None) -> None:
    """Merge an exported FILE into this machine's results; own entries stay unless --overwrite."""
    _, cache = open_cache(device, cache_dir)
    report = cache.import_file(file, overwrite=overwrite)
    done = f"imported {_entries(len(report.added) + len(report.replaced))} into {cache.directory}"
    if report.replaced:
        done += f", {len(report.replaced)} of them replaced own ones"
    if report.kept:
        done += f"; kept {len(report.kept)} that were here already (--overwrite replaces them)"
    click.echo(done)


@command.command("clear", short_help="Remove results.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--stale", is_flag=True, help="Only results of this GPU with other versions.")
@target_options
def clear_command(yes: bool, stale: bool, device: str, cache_dir: Path | None) -> None:
    """Remove this machine's results, those of kernels too, and the journals of searches."""
    _, cache = open_cache(device, cache_dir)
    if stale:
        _clear_stale(cache, yes)
        return
    if not yes:
        count = len(cache.user_entries()) + len(cache.user_kernels())
        click.confirm(
            f"Remove {_entries(count)} and all journals of {cache.directory}?", abort=True
        )
    click.echo(f"removed {_entries(cache.clear())} of {cache.directory}")


@command.command("verify", short_help="Time a sample again.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="How many results to time again.",
)
@target_options
@_json_option
def verify_command(sample: int, device: str, cache_dir: Path | None, as_json: bool) -> None:
    """Time a sample of the GEMM results again; exit with 1 if a stored order no longer holds."""
    from slidesparse.cli import cache_table

    selected, cache = open_cache(device, cache_dir)
    results = [hit.result for hit in cache.entries().values() if hit.result.ranked]
    if not results:
        raise click.ClickException(f"nothing to verify: no results in {cache.path}")
    from slidesparse.search.verify_cache import verify_entries

    verified = verify_entries(results, selected, sample, lambda line: click.echo(line, err=True))
    if as_json:
        _print_json(cache_table.verification(verified))
    else:
        cache_table.print_verification(verified)
    broken = [item.key for item in verified if not item.holds]
    if broken:
        raise click.ClickException(
            f"the stored order no longer holds for {len(broken)} of {len(verified)} results; "
            "run slidesparse search --fresh for their layers"
        )


def _clear_stale(cache: TuningCache, yes: bool) -> None:
    found = cache.stale()
    if not found:
        click.echo(f"no stale results of {cache.fingerprint.name} in {cache.root}")
        return
    for item in found:
        click.echo(f"{item.path}: {_entries(item.entries)}; {'; '.join(item.differences)}")
    if not yes:
        click.confirm("Remove these?", abort=True)
    removed = cache.clear_stale()
    click.echo(f"removed {_entries(sum(item.entries for item in removed))}")


def _matching(
    cache: TuningCache,
    key: str | None,
    n: int | None,
    k: int | None,
    tokens: tuple[int, ...] | None,
    patterns: tuple[Pattern, ...] | None,
) -> dict[str, Hit]:
    from slidesparse.problem import bucket_m

    everything = cache.entries()
    if key is not None and key not in everything:
        import difflib

        near = difflib.get_close_matches(key, [*everything, *cache.kernel_entries()], n=1)
        hint = f", did you mean {near[0]}" if near else "; `slidesparse cache list` shows the keys"
        raise click.ClickException(f"no result with key {key!r}{hint}")
    buckets = {bucket_m(m) for m in tokens} if tokens else None
    hits = {}
    for name, hit in everything.items():
        problem = hit.result.problem
        wanted = (
            (key is None or name == key)
            and (n is None or problem.n == n)
            and (k is None or problem.k == k)
            and (buckets is None or bucket_m(problem.m) in buckets)
            and (patterns is None or problem.pattern in patterns)
        )
        if wanted:
            hits[name] = hit
    if not hits:
        total = _entries(len(everything))
        raise click.ClickException(f"no result matches; there are {total} in {cache.path}")
    return hits


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}"


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2))
