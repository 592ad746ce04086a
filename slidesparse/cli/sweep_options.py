"""The options of `slidesparse bench prefill` and `decode`, and what they default to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slidesparse.cli.options import (
    DTypeList,
    ModeList,
    Names,
    PatternList,
    Seconds,
    TokenCounts,
)
from slidesparse.cli.target import target_options
from slidesparse.errors import UsageError
from slidesparse.pattern import Pattern, parse_patterns
from slidesparse.problem import SWEEP_M, DType

if TYPE_CHECKING:
    from slidesparse.bench.sweep.job import Mode
    from slidesparse.devices import Device

Function = TypeVar("Function", bound=Callable[..., Any])

GPU_MODEL, CPU_MODEL = "qwen2.5-7b", "llama3.2-1b"
PATTERNS, CPU_PATTERNS = "dense,2:4,4:6,6:8,8:10", "dense,6:8"
DECODE_M = (1, 16, 64, 128, 256, 512)
GPU_M = {"prefill": SWEEP_M, "decode": DECODE_M}
CPU_M = {"prefill": (16, 32), "decode": (1, 4)}
PROMPT = {"prefill": 1024, "decode": 16}
OUTPUTS = 400
"""Long enough for NVML's second of power at a few milliseconds a step, after a short prefill."""
GPU_REPEATS, CPU_REPEATS = 10, 3


@dataclass(frozen=True)
class Options:
    """What the command line says; None where it says nothing.

    Args:
        engine: vllm or linear.
        model: each a list of presets or folders.
        dtypes: FP8, INT8 or both.
        patterns: of ours.
        ms: tokens of a prefill step, or sequences of a decode step.
        modes: eager, graphs or both.
        tp: tensor-parallel size.
        prompt: tokens of one prompt.
        outputs: tokens that each sequence of a decode cell generates.
        repeats: samples of each cell.
        seed: of weights and tokens.
        same_weights: whether stock runs on each pattern's weights, too.
        device: auto, cpu, cuda or cuda:INDEX.
        cache_dir: of tuning results.
        json_path: result file; one that is there is continued.
        resume: the same, which has to be there.
        fresh: whether a result file that is there is overwritten.
        csv_path: table to write.
        figure_path: figure to write.
        budget: seconds after which no process starts.
        build_timeout: seconds for a model to be built.
        cell_timeout: seconds for one cell.
        dry_run: whether to list processes and cells only.
        quiet: whether to print errors only.
    """

    engine: str | None
    model: tuple[tuple[str, ...], ...]
    dtypes: tuple[DType, ...]
    patterns: tuple[Pattern, ...] | None
    ms: tuple[int, ...] | None
    modes: tuple[Mode, ...] | None
    tp: int
    prompt: int
    outputs: int
    repeats: int | None
    seed: int | None
    same_weights: bool
    device: str
    cache_dir: Path | None
    json_path: Path | None
    resume: Path | None
    fresh: bool
    csv_path: Path | None
    figure_path: Path | None
    budget: float | None
    build_timeout: float
    cell_timeout: float
    dry_run: bool
    quiet: bool

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is named, once."""
        return tuple(dict.fromkeys(name for names in self.model for name in names))

    @property
    def result_file(self) -> Path | None:
        """Where the record goes.

        Raises:
            UsageError: --resume excludes what else is given, or its file is not there.
        """
        return chosen_file(self.json_path, self.resume, self.fresh)

    def patterns_on(self, device: Device) -> tuple[Pattern, ...]:
        """Those that were asked for, or the device's defaults."""
        return self.patterns or parse_patterns(PATTERNS if device.is_gpu else CPU_PATTERNS)

    def ms_on(self, device: Device, stage: str) -> tuple[int, ...]:
        """Those that were asked for, or the device's defaults."""
        return self.ms or (GPU_M if device.is_gpu else CPU_M)[stage]

    def repeats_on(self, device: Device) -> int:
        """Those that were asked for, or the device's default."""
        return self.repeats or (GPU_REPEATS if device.is_gpu else CPU_REPEATS)


def chosen_file(json_path: Path | None, resume: Path | None, fresh: bool) -> Path | None:
    """The result file that --json or --resume names, None without either.

    Raises:
        UsageError: --resume excludes what else is given, or its file is not there.
    """
    if resume is None:
        return json_path
    if fresh:
        raise UsageError("--resume and --fresh exclude each other")
    if json_path is not None and json_path.resolve() != resume.resolve():
        raise UsageError(f"--resume {resume} is written to as well; leave out --json {json_path}")
    if not resume.is_file():
        raise UsageError(f"--resume {resume}: there is no such file; begin with --json")
    return resume


def sweep_options(stage: str) -> Callable[[Function], Function]:
    """Add every field of `Options` to a command of this stage."""
    added = (*_what(stage), *_how(stage), *_files())

    def add(function: Function) -> Function:
        for option in reversed(added):
            function = option(function)
        return function

    return add


def _what(stage: str) -> tuple[Callable[[Any], Any], ...]:
    of_m = "Tokens of a step" if stage == "prefill" else "Sequences of a step"
    return (
        click.option(
            "--engine",
            type=click.Choice(["vllm", "linear"]),
            help="vllm serves whole models; linear runs their linears and fused kernels alone.  "
            "[default: vllm where it is installed and there is a GPU]",
        ),
        click.option(
            "--model",
            type=Names(),
            multiple=True,
            help="Preset or directory with config.json; repeat it or separate with commas.  "
            f"[default: {GPU_MODEL}; on the CPU {CPU_MODEL}]",
        ),
        click.option(
            *("--dtype", "dtypes"),
            type=DTypeList(),
            default="fp8,int8",
            show_default=True,
            help="Operands: fp8, int8 or both.",
        ),
        click.option(
            "--patterns",
            type=PatternList(),
            help=f"Of our weights.  [default: {PATTERNS}; on the CPU {CPU_PATTERNS}]",
        ),
        click.option(
            *("--m", "ms"),
            type=TokenCounts(),
            help=f"{of_m}.  [default: {_list(GPU_M[stage])}; on the CPU {_list(CPU_M[stage])}]",
        ),
        click.option(
            "--modes", type=ModeList(), help="eager, graphs or both.  [default: graphs; CPU eager]"
        ),
    )


def _how(stage: str) -> tuple[Callable[[Any], Any], ...]:
    positive = click.IntRange(min=1)
    return (
        click.option("--tp", type=positive, default=1, help="Tensor-parallel size."),
        click.option(
            "--prompt",
            type=positive,
            default=PROMPT[stage],
            show_default=True,
            help="Tokens of one prompt (engine vllm).",
        ),
        click.option(
            "--outputs",
            type=positive,
            default=OUTPUTS,
            show_default=True,
            help="Tokens that each sequence generates in a decode cell (engine vllm).",
        ),
        click.option(
            "--repeats",
            type=positive,
            help=f"Samples of each cell.  [default: {GPU_REPEATS}; on the CPU {CPU_REPEATS}]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**31 - 1),
            help="Of weights and tokens; drawn unless told or resumed.",
        ),
        click.option(
            "--same-weights",
            is_flag=True,
            help="Run stock on each pattern's pruned weights, too: a harder baseline.",
        ),
    )


def _files() -> tuple[Callable[[Any], Any], ...]:
    path = click.Path(path_type=Path)
    return (
        target_options,
        click.option(
            *("--json", "json_path"),
            type=path,
            help="Result file, written as the sweep goes on; one that is there is continued.",
        ),
        click.option("--resume", type=path, help="The same for a file that has to be there."),
        click.option("--fresh", is_flag=True, help="Overwrite a result file that is there."),
        click.option(*("--csv", "csv_path"), type=path, help="Write a row per cell as CSV."),
        click.option(
            *("--figure", "figure_path"), type=path, help="Draw speedup over M (PNG, SVG or PDF)."
        ),
        click.option("--budget", type=Seconds(), help="Seconds after which no process starts."),
        click.option(
            "--build-timeout",
            type=Seconds(),
            default=1800.0,
            show_default=True,
            help="Seconds for a model to be built.",
        ),
        click.option(
            "--cell-timeout",
            type=Seconds(),
            default=600.0,
            show_default=True,
            help="Seconds for one cell.",
        ),
        click.option("--dry-run", is_flag=True, help="List processes and cells; run nothing."),
        click.option("-q", "--quiet", is_flag=True, help="No progress, no tables; errors only."),
    )


def _list(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))
