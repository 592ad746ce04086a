"""What one process of a sweep measures, and what it says of each cell.

A sweep is many cells (model, dtype, variant, mode, M). All M of one (model, dtype, variant, mode)
run in one process, an `Engine` inside a `slidesparse.worker.Worker`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from slidesparse.devices import Device
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType


class _Word(str, Enum):
    """A word of the command line."""

    def __str__(self) -> str:
        """The word as the command line spells it."""
        return str(self.value)


class Stage(_Word):
    """What a step does: M tokens of prompts, or one token for each of M sequences."""

    PREFILL = "prefill"
    DECODE = "decode"


class Mode(_Word):
    """How kernels are launched: one by one, or as CUDA graphs where the engine captures them."""

    EAGER = "eager"
    GRAPHS = "graphs"


class System(_Word):
    """Whose linear layers run."""

    STOCK = "stock"
    OURS = "ours"


@dataclass(frozen=True)
class Variant:
    """Whose linears run, on weights pruned to which pattern.

    Args:
        system: the engine's own linears, or ours.
        pattern: of the weights; DENSE for weights without zeros.
    """

    system: System
    pattern: Pattern = DENSE

    def __str__(self) -> str:
        """As tables print it: "stock", "ours 6:8", "stock 6:8"."""
        if self.system is System.STOCK and self.pattern.dense:
            return "stock"
        return f"{self.system} {self.pattern}"


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Args:
        stage: of all its cells.
        model: a preset's name or a folder with config.json, with weights or without.
        tp: tensor-parallel size.
        dtype: FP8 or INT8.
        variant: whose linears, and the pattern of the weights.
        mode: eager or graphs.
        ms: tokens of a prefill step, or sequences of a decode step, that will be asked for; an
            engine reserves for the largest.
        prompt: tokens of one prompt; the prompts of a prefill step hold M tokens together.
        outputs: tokens that each sequence of a decode cell generates.
        repeats: samples of each cell.
        seed: of weights and tokens.
    """

    stage: Stage
    model: str
    tp: int
    dtype: DType
    variant: Variant
    mode: Mode
    ms: tuple[int, ...]
    prompt: int
    outputs: int
    repeats: int
    seed: int


@dataclass(frozen=True)
class CellTime:
    """What one cell took.

    Args:
        m: tokens of a prefill step, or sequences of a decode step.
        step_us: microseconds of a step, one per sample.
        shares: fraction of the GPU's busy time by kind of kernel ("gemm", "fused", "attention",
            "other"); empty where it was not measured.
        clock_mhz: of the SMs, mean while timed; None without NVML.
        power_w: mean while timed; None without NVML.
        joules_per_token: the GPU's energy while timed over the tokens; None without NVML.
        largest: elements of the largest tensor of a step, to be told from 2^31 - 1.
    """

    m: int
    step_us: tuple[float, ...]
    shares: Mapping[str, float]
    clock_mhz: float | None
    power_w: float | None
    joules_per_token: float | None
    largest: int


class Engine(ABC):
    """Runs the cells of one job. Made and used in a worker process of its own.

    Args:
        device: on which the model runs.
        job: what it measures.
    """

    def __init__(self, device: Device, job: Job) -> None:
        """Note the job; `build` does what takes time."""
        self.device, self.job = device, job

    @abstractmethod
    def build(self) -> Mapping[str, str]:
        """Build the model.

        Returns:
            What runs, by name: versions, kernels, plans; one line each.

        Raises:
            UsageError: the job cannot run here, with the remedy.
            torch.OutOfMemoryError: memory does not suffice; it is tried again without the
                largest M. MemoryError where that of the host does not.
        """

    @abstractmethod
    def run(self, m: int) -> CellTime:
        """Measure one cell.

        Raises:
            SlideSparseError: it cannot run, with the reason in one line. The process goes on with
                the next M; after any other error, out of memory among them, it is replaced.
        """
