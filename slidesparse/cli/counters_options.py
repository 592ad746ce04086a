"""The options of `slidesparse bench decode --counters`, and which of decode's own go with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from slidesparse.cli.options import MOST_TOKENS, Seconds, TokenCounts
from slidesparse.cli.sweep_options import chosen_file
from slidesparse.errors import UsageError
from slidesparse.problem import DType

if TYPE_CHECKING:
    from slidesparse.bench.sweep.job import Mode

Function = TypeVar("Function", bound=Callable[..., Any])

MODEL = "qwen3-30b-a3b"
CONCURRENCY = (1, 256, 1024)
PROMPT, MAX_TOKENS = 30, 512
SECONDS, SETTLE, SAMPLE_MS = 15.0, 3.0, 100
SOURCES = ("auto", "gpm", "dcgm", "none")
LEAST_SAMPLES = 3
"""Of a stretch between two switches of sampling; the first is lost to the switch."""

MOST_REQUESTS = 2**16
"""At once. vLLM reserves max_num_seqs times max_model_len of host memory, and plans every step in
Python: more would not be a load but a wait."""

MOST_HELD = 2**28
"""Tokens of all requests together, far more than the KV cache of any GPU holds."""

LOAD_ONLY = ("concurrency", "max_tokens", "seconds", "settle", "sample_ms", "counter_source")
"""Arguments that only --counters reads."""

SWEEP_ONLY: Mapping[str, str] = {
    "patterns": "--patterns (stock vLLM runs, on dense weights)",
    "ms": "--m; give --concurrency",
    "outputs": "--outputs; give --max-tokens",
    "repeats": "--repeats; give --seconds",
    "same_weights": "--same-weights",
    "figure_path": "--figure; slidesparse report draws the result file",
}
"""Arguments that --counters does not read, as the command line spells them, with what to do."""


@dataclass(frozen=True)
class LoadOptions:
    """What the command line says of a load benchmark.

    Args:
        models: presets or folders.
        dtypes: FP8, INT8 or both.
        concurrency: requests that are there all the time.
        modes: eager, graphs or both; None for both.
        tp: tensor-parallel size.
        prompt: tokens of a request's prompt.
        max_tokens: that it generates.
        seconds: of each window.
        settle: seconds before it.
        sample_ms: milliseconds between samples.
        counter_source: auto, gpm, dcgm or none.
        seed: of weights and tokens.
        device: auto, cpu, cuda or cuda:INDEX.
        cache_dir: of tuning results, and of the folders that vLLM loads.
        json_path: result file; one that is there is continued.
        resume: the same, which has to be there.
        fresh: whether a result file that is there is overwritten.
        csv_path: table to write.
        budget: seconds after which no process starts.
        build_timeout: seconds for a model to be built.
        cell_timeout: seconds for one cell.
        dry_run: whether to list processes and cells only.
        quiet: whether to print errors only.
    """

    models: tuple[str, ...]
    dtypes: tuple[DType, ...]
    concurrency: tuple[int, ...]
    modes: tuple[Mode, ...] | None
    tp: int
    prompt: int
    max_tokens: int
    seconds: float
    settle: float
    sample_ms: int
    counter_source: str
    seed: int | None
    device: str
    cache_dir: Path | None
    json_path: Path | None
    resume: Path | None
    fresh: bool
    csv_path: Path | None
    budget: float | None
    build_timeout: float
    cell_timeout: float
    dry_run: bool
    quiet: bool

    @property
    def result_file(self) -> Path | None:
        """Where the record goes.

        Raises:
            UsageError: --resume excludes what else is given, or its file is not there.
        """
        return chosen_file(self.json_path, self.resume, self.fresh)

    def check(self) -> None:
        """Refuse settings that no window can be measured with, or no engine can hold.

        Raises:
            UsageError: says which, and what would do.
        """
        from slidesparse.bench.counters.window import PAIRS

        least = PAIRS * (LEAST_SAMPLES + 1) * self.sample_ms / 1000
        if self.seconds < least:
            raise UsageError(
                f"--seconds {self.seconds:g} is too short for samples every {self.sample_ms} ms: "
                f"where the cost of sampling is measured it is switched on {PAIRS} times, for "
                f"{LEAST_SAMPLES} samples at least; use --seconds {least:g} or more, or a smaller "
                "--sample-ms"
            )
        if not math.isfinite(self.settle):
            raise UsageError(f"--settle {self.settle} is not a number of seconds")
        longest = 2 * self.seconds + self.settle
        if longest >= self.cell_timeout:
            raise UsageError(
                f"--seconds {self.seconds:g}, twice where the cost of sampling is measured, and "
                f"--settle {self.settle:g} take {longest:g} s, and a cell that takes "
                f"{self.cell_timeout:g} s counts as hung; use less, or a longer --cell-timeout"
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.prompt + self.max_tokens > MOST_TOKENS:
            raise UsageError(
                f"--prompt {self.prompt} and --max-tokens {self.max_tokens} make sequences of more "
                f"than {MOST_TOKENS} tokens"
            )
        held = max(self.concurrency) * (self.prompt + self.max_tokens)
        if held > MOST_HELD:
            raise UsageError(
                f"{max(self.concurrency)} requests of {self.prompt} + {self.max_tokens} tokens are "
                f"{held} together, more than the {MOST_HELD} that this command takes; use a "
                "smaller --concurrency, --prompt or --max-tokens"
            )


class Concurrencies(TokenCounts):
    """Comma-separated positive integers: 1,256,1024."""

    name = "c,..."
    symbol, unit = "C", "requests"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse the list or fail naming the entry that is no number of requests."""
        counts = super().convert(value, param, ctx)
        if max(counts) > MOST_REQUESTS:
            self.fail(f"C={max(counts)} is more than {MOST_REQUESTS} requests", param, ctx)
        return counts


def load_options(function: Function) -> Function:
    """Add --counters and the arguments of LOAD_ONLY to a command."""
    for option in reversed(_added()):
        function = option(function)
    return function


def _added() -> tuple[Callable[[Any], Any], ...]:
    return (
        click.option(
            "--counters",
            is_flag=True,
            help="Instead of steps: keep C requests running in vLLM, with hardware counters and "
            "engine statistics. The options below belong to it; with it the defaults are --model "
            f"{MODEL}, --dtype fp8, --modes eager,graphs and --prompt {PROMPT}.",
        ),
        click.option(
            "--concurrency",
            type=Concurrencies(),
            default=",".join(map(str, CONCURRENCY)),
            show_default=True,
            help="Requests that are there all the time.",
        ),
        click.option(
            "--max-tokens",
            type=click.IntRange(min=1),
            default=MAX_TOKENS,
            show_default=True,
            help="Tokens that each request generates.",
        ),
        click.option(
            "--seconds",
            type=Seconds(),
            default=SECONDS,
            show_default=True,
            help="Of each window; twice as long at the smallest and the largest C, where the cost "
            "of sampling is measured.",
        ),
        click.option(
            "--settle",
            type=click.FloatRange(min=0, max=3600),
            default=SETTLE,
            show_default=True,
            help="Seconds between the last sequence's start and the window.",
        ),
        click.option(
            "--sample-ms",
            type=click.IntRange(10, 60000),
            default=SAMPLE_MS,
            show_default=True,
            help="Milliseconds between samples.",
        ),
        click.option(
            "--counter-source",
            type=click.Choice(SOURCES),
            default="auto",
            show_default=True,
            help="Of hardware counters: NVML's GPM, else DCGM, else none.",
        ),
    )


def check_mix(context: click.Context, counters: bool) -> None:
    """Refuse options that the chosen half of the command does not read.

    Args:
        context: of the command.
        counters: whether --counters is given.

    Raises:
        UsageError: names the option and the remedy.
    """
    if not counters:
        for name in LOAD_ONLY:
            if _given(context, name):
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} belongs to --counters; add --counters, or leave it out")
        return
    for name, spelled in SWEEP_ONLY.items():
        if _given(context, name):
            option, _, remedy = spelled.partition(";")
            what = remedy.strip() or "leave it out"
            raise UsageError(f"--counters does not take {option}: {what}")
    if context.params.get("engine") == "linear":
        raise UsageError(
            "--counters serves whole models: it does not take --engine linear; leave it out"
        )


def read_load_options(context: click.Context) -> LoadOptions:
    """The options of a load benchmark; what was not given has the defaults of --counters."""
    given = dict(context.params)
    named = [name for names in given["model"] for name in names]
    shared = {name: given[name] for name in LoadOptions.__dataclass_fields__ if name in given}
    return LoadOptions(
        **{
            **shared,
            "models": tuple(dict.fromkeys(named)) or (MODEL,),
            "dtypes": given["dtypes"] if _given(context, "dtypes") else (DType.FP8,),
            "prompt": given["prompt"] if _given(context, "prompt") else PROMPT,
        }
    )


def _given(context: click.Context, name: str) -> bool:
    """Whether somebody gave an option."""
    return context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
