"""Rows: what any result file says, in one form that comparisons and reports read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from slidesparse.candidate import Provenance
from slidesparse.devices import Fingerprint

Value = str | int | float
"""What names a workload or a variant."""

Key = tuple[tuple[tuple[str, Value], ...], tuple[tuple[str, Value], ...], str]
"""Workload, variant and metric of a row, hashable."""


@dataclass(frozen=True)
class Row:
    """One figure of a result file.

    Two rows of one file may be compared where their workloads and metrics are equal: that is ours
    against stock. Two files are compared row by row where the variants are equal, too: that is ours
    here against ours there. No two rows of a file have one workload, variant and metric.

    Args:
        workload: what must be equal for two rows to be compared, for example {"what": "gemm",
            "model": "qwen2.5-7b", "layer": "qkv", "tokens": 4096, "m": 4096, "n": 4608, "k": 3584,
            "dtype": "fp8_e4m3", "out": "bf16", "scales": "tensor", "pattern": "6:8"}. The names are
            in one order in all rows of a kind. It names no machine, commit or candidate.
        variant: what may differ between rows of a workload: {"system": "ours", "pattern": "6:8"}.
        metric: "time", "throughput", "perplexity" and so on.
        unit: of value and spread: "us", "tok/s", "" for a bare number.
        value: the figure, a median where it was measured more than once.
        better: which way it improves.
        provenance: measured, derived from other figures, estimated or published.
        spread: interquartile range in `unit`, None where there is one sample only.
        tokens_per_s: tokens that the workload gets through, None where it has none.
        joules_per_token: energy of the GPUs per token, None where it was not measured.
        power_w: mean power of the GPUs, None where it was not measured.
        how: what ran, to be read and never compared: a backend and its candidate, a plan.
    """

    workload: Mapping[str, Value]
    variant: Mapping[str, Value]
    metric: str
    unit: str
    value: float
    better: Literal["lower", "higher"]
    provenance: Provenance
    spread: float | None = None
    tokens_per_s: float | None = None
    joules_per_token: float | None = None
    power_w: float | None = None
    how: str = ""

    @property
    def key(self) -> Key:
        """What tells the row from all others of its file, and finds its like in another file."""
        return tuple(self.workload.items()), tuple(self.variant.items()), self.metric


@dataclass(frozen=True)
class ResultFile:
    """A result file of any kind.

    Args:
        path: of the file.
        kind: as the file names it.
        command: that writes such files.
        fingerprint: of the machine; None where another project measured, or nobody did.
        machine: for headings: "NVIDIA H200", "H100 (published)".
        versions: of the software, by name.
        settings: the options that the file was made with.
        commit: of the source, "unknown" outside a checkout.
        created: UTC time in ISO 8601, "unknown" in files of a schema that had none.
        rows: its figures.
        record: what the kind's own reader gives.
    """

    path: Path
    kind: str
    command: str
    fingerprint: Fingerprint | None
    machine: str
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    commit: str
    created: str
    rows: tuple[Row, ...]
    record: Any


@lru_cache(maxsize=256)
def model_name(text: str) -> str:
    """A model as workloads name it: the same for a preset, a folder and a Hugging Face id of it.

    Args:
        text: as a command was given it. Of a path or an id the last part counts; a preset's name
            is in lower case.
    """
    from slidesparse.models import preset_names

    last = text.strip().replace("\\", "/").rstrip("/").rpartition("/")[2] or text
    return last.lower() if last.lower() in preset_names() else last
