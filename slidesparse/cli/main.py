"""The command group: subcommands load when they run, errors become one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import click

from slidesparse._version import __version__
from slidesparse.errors import SlideSparseError, UsageError

COMMANDS = {
    "search": "Find the fastest correct algorithm for every GEMM of a model.",
    "bench": "Measure kernels, linears and whole models against ceilings and alternatives.",
    "tune": "Find the fastest configuration of every kernel around the GEMMs.",
    "allocate": "Choose a pattern for every linear: fastest within a loss, or best at a speed.",
    "convert": "Prune and quantise a checkpoint into a standard one that keeps its zeros.",
    "inspect": "Show what the linears of a checkpoint hold: dtype, zeros, pattern, speedup.",
    "eval": "Measure what pruning and quantising a model costs in perplexity and agreement.",
    "compare": "Put result files of GPUs, versions or settings side by side, with costs.",
    "profile": "Show the settings that would be adapted to each GPU, with reasons.",
    "results": "Show and check result files, and import published figures as such.",
    "plan": "Say whether a model fits a GPU, what it takes, and what bounds its layers.",
    "models": "Show the linear layers of a model and their expanded widths.",
    "report": "Make a page with figures and tables, or Markdown, of result files.",
    "doctor": "Say what works on this machine and how to mend what does not.",
    "cache": "Look at, move and check the tuning cache.",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def end_run(interrupted: bool, found: object, skipped: Mapping[Any, str], done: str) -> None:
    """Exit with 130 if a run was interrupted, 1 if nothing was found.

    Args:
        interrupted: whether it was stopped by hand.
        found: its results; none if empty.
        skipped: what has no result, with the reason.
        done: what was to be done, in the past: "found".
    """
    if interrupted:
        click.echo("interrupted; finished work is kept, the same command resumes", err=True)
        raise SystemExit(EXIT_INTERRUPTED)
    if not found:
        problem, reason = next(iter(skipped.items()))
        raise click.ClickException(f"nothing was {done}; for example {problem}: {reason}")


class FailedRun(click.ClickException):
    """A library error as the user sees it: one line, no traceback."""

    exit_code = EXIT_FAILED


class BadUsage(click.ClickException):
    """The same where the user's input is at fault."""

    exit_code = EXIT_USAGE


class LazyGroup(click.Group):
    """A group that imports slidesparse.cli.<name> only when <name> is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every subcommand without importing one."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one subcommand."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"slidesparse.cli.{cmd_name}")
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"slidesparse.cli.{cmd_name}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List subcommands from the table above, so that --help imports nothing."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Offer the nearest subcommand for a misspelt one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Turn library errors into one line, and Ctrl-C into one line and its own exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise SystemExit(EXIT_INTERRUPTED) from None
        except SlideSparseError as error:
            kind = BadUsage if isinstance(error, UsageError) else FailedRun
            raise kind(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="slidesparse")
@click.option("-v", "--verbose", count=True, help="Log more; twice for debug.")
def cli(verbose: int) -> None:
    """Make the linear layers of a W8A8 language model as fast as this GPU allows.

    Start with: slidesparse search --model qwen2.5-7b --dtype fp8
    """
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")


def main() -> None:
    """Entry point of the console script."""
    if sys.stdout is None:  # Closed by the shell: nobody wants to read.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for good.
    code: Any = EXIT_FAILED
    try:
        try:
            cli(prog_name="slidesparse")
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
    except OSError as error:
        # Files name themselves in errors of ours: what is left is standard output.
        if error.errno not in _FULL:
            raise
        said = "cannot write to standard output, not all of it was printed"
        click.echo(f"Error: {said}: {error.strerror}", err=True)
        code = code or EXIT_FAILED
        # Python would try it once more at its end, and complain in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if code == EXIT_INTERRUPTED:
        # A thread that is still inside a library would abort Python's own way of ending.
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)
    raise SystemExit(code)
