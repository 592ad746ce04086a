"""Result files of `slidesparse bench decode --counters`: every cell, measured or why not.

One JSON form, versioned, written by the tool and never by hand; a CSV beside it for spreadsheets
(see the rows beside it).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from slidesparse import __version__
from slidesparse.bench.counters.job import LoadFound, LoadKey
from slidesparse.bench.counters.sampler import Source
from slidesparse.bench.fields import STRICT, Amount, Duration, Index, Machine, Name, Positive, Text
from slidesparse.bench.record_form import RecordForm
from slidesparse.bench.result_file import FileKind
from slidesparse.bench.sweep.job import Mode
from slidesparse.bench.sweep.record import OfCells, Session
from slidesparse.bench.sweep.runner import Kind
from slidesparse.problem import DType
from slidesparse.stats import interquartile

KIND = FileKind("slidesparse-counters", 1, "slidesparse bench decode --counters")

MOST_COST = 1.0
"""Percent of the throughput that sampling may cost."""

_ROUNDED = 1e-6
"""A file's figures may be off from what follows from the others by this share."""

Percent = Annotated[float, Field(le=100.0001)]


@dataclass(frozen=True)
class Quantity:
    """One quantity over the samples of a window.

    Args:
        mean: weighted by time.
        spread: interquartile range of the samples.
        least: smallest sample.
        most: largest sample.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    mean: Amount
    spread: Amount
    least: Amount
    most: Amount

    def __post_init__(self) -> None:
        """Refuse a mean outside its samples."""
        slack = _ROUNDED * max(self.most, 1.0)
        if not self.least - slack <= self.mean <= self.most + slack:
            raise ValueError(f"the mean {self.mean} is not in {self.least} to {self.most}")


@dataclass(frozen=True)
class Cut:
    """What the steady state was cut out of.

    Args:
        lead_s: seconds before the window.
        lead_tokens: generated before it.
        dropped: requests that were unfinished after it, and were aborted.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    lead_s: Amount
    lead_tokens: Index
    dropped: Index


@dataclass(frozen=True)
class Cost:
    """What sampling costs: throughput with it and without it, in neighbouring stretches of time.

    Args:
        percent: of the throughput, median over pairs; below 0 where sampling looked faster.
        spread: interquartile range over pairs, in percent.
        with_sampling: tokens per second of each stretch.
        without: likewise, the neighbours of these.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    percent: Percent
    spread: Amount
    with_sampling: Annotated[tuple[Duration, ...], Field(min_length=1)]
    without: Annotated[tuple[Duration, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        """Refuse a cost that does not follow from the stretches."""
        if len(self.with_sampling) != len(self.without):
            raise ValueError("stretches with and without sampling do not come in pairs")
        pairs = zip(self.with_sampling, self.without, strict=True)
        costs = [100 * (1 - on / off) for on, off in pairs]
        for name, given, true in (
            ("percent", self.percent, statistics.median(costs)),
            ("spread", self.spread, interquartile(costs)),
        ):
            if abs(given - true) > 1e-4:
                raise ValueError(f"{name} {given} is not {true}, that of the pairs")

    @property
    def error(self) -> float:
        """Standard error of the median in percent, as `slidesparse.stats.settled` has it."""
        return float(1.2533 * self.spread / 1.349 / len(self.without) ** 0.5)


@dataclass(frozen=True)
class LoadFigures:
    """What one cell gave.

    Args:
        tokens: generated in the sampled time.
        seconds: of sampled time.
        steps: of the engine in it.
        tokens_per_s: tokens over seconds.
        rates: tokens per second of parts of the sampled time.
        spread: their interquartile range.
        cut: what the steady state was cut out of.
        quantities: by name: sm_active, sm_occupancy, tensor_active, hmma_active, imma_active and
            dram_active in percent, power_w, temperature_c, sm_mhz, memory_mhz, running, waiting,
            kv_percent. What a GPU does not tell is not there.
        samples: that they are made of.
        joules_per_token: None where the GPU does not count energy.
        finished: requests that ended in the window.
        preemptions: in the window.
        window_s: seconds of the window; longer than `seconds` where the cost was measured in it.
        kv_tokens: that the KV cache holds.
        power_limit_w: of the GPUs together, None where not told.
        source: of the hardware counters, none without any.
        why: there are none, "" where there are.
        cost: of sampling, None where it was not measured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tokens: Positive
    seconds: Duration
    steps: Positive
    tokens_per_s: Duration
    rates: Annotated[tuple[Duration, ...], Field(min_length=1)]
    spread: Amount
    cut: Cut
    quantities: dict[Name, Quantity]
    samples: Positive
    joules_per_token: Amount | None
    finished: Index
    preemptions: Index
    window_s: Duration
    kv_tokens: Index
    power_limit_w: Amount | None
    source: Source
    why: Text
    cost: Cost | None

    def __post_init__(self) -> None:
        """Refuse figures that do not follow from the others."""
        for name, given, true, of in (
            ("tokens_per_s", self.tokens_per_s, self.tokens / self.seconds, self.tokens_per_s),
            ("spread", self.spread, interquartile(self.rates), self.tokens_per_s),
        ):
            if abs(given - true) > _ROUNDED * of:
                raise ValueError(f"{name} {given} is not {true}, which follows from the rest")
        for needed in ("running", "waiting", "kv_percent"):
            if needed not in self.quantities:
                raise ValueError(f"the engine's {needed} is missing")

    def mean(self, name: str) -> float | None:
        """The mean of a quantity, None where it was not told."""
        found = self.quantities.get(name)
        return None if found is None else found.mean

    @classmethod
    def of(cls, found: LoadFound) -> LoadFigures:
        """What an engine measured."""
        window = found.window
        tokens = sum(it.tokens for it in window.sampled)
        seconds = float(sum(it.seconds for it in window.sampled))
        rates = tuple(it.rate for it in window.parts)
        cost = None
        if found.cost is not None:
            cost = Cost(
                percent=float(found.cost.percent),
                spread=float(found.cost.spread),
                with_sampling=tuple(it.rate for it in window.stretches if it.sampled),
                without=tuple(it.rate for it in window.stretches if not it.sampled),
            )
        joules = window.joules
        return cls(
            tokens=tokens,
            seconds=seconds,
            steps=sum(it.steps for it in window.sampled),
            tokens_per_s=tokens / seconds,
            rates=rates,
            spread=float(interquartile(rates)),
            cut=Cut(window.lead_s, window.lead_tokens, window.dropped),
            quantities={name: Quantity(*it) for name, it in found.summaries.items()},
            samples=found.samples,
            joules_per_token=None if joules is None else joules / window.tokens,
            finished=window.finished,
            preemptions=window.preemptions,
            window_s=window.seconds,
            kv_tokens=found.kv_tokens,
            power_limit_w=found.power_limit_w,
            source=found.source,
            why=found.why,
            cost=cost,
        )


@dataclass(frozen=True)
class LoadCell:
    """One cell: what it gave, or why there is nothing.

    Args:
        model: as it was given.
        dtype: FP8 or INT8.
        mode: eager or graphs.
        concurrency: requests that are there all the time.
        session: index of the record's session that measured it.
        ran: index into the record's `ran`, None where nothing could be built.
        figures: None where it failed.
        failure: how it failed, None where it was measured.
        reason: why it failed, "" where it was measured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: Name
    dtype: DType
    mode: Mode
    concurrency: Positive
    session: Index
    ran: Index | None
    figures: LoadFigures | None
    failure: Kind | None
    reason: Text

    def __post_init__(self) -> None:
        """Refuse a cell that is both or neither."""
        if (self.figures is None) == (self.failure is None):
            raise ValueError("a cell has either figures or a failure")

    @property
    def key(self) -> LoadKey:
        """Which cell it is."""
        return LoadKey(self.model, self.dtype, self.mode, self.concurrency)


@dataclass(frozen=True)
class CountersRecord(OfCells[LoadCell]):
    """A load benchmark as its result file holds it.

    Args:
        fingerprint: of the machine.
        versions: of what the fingerprint does not name: slidesparse, vllm.
        settings: the options of the command.
        models: by name as it was given, the sizes that its config.json says.
        interrupted: whether it ended early, by hand.
        sessions: in their order.
        ran: what engines said that they had built; cells refer to it.
        cells: in the order in which they are measured.
        commit: of the last session's source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time of writing in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    fingerprint: Machine
    versions: dict[Name, Text]
    settings: dict[Name, Any]
    models: dict[Name, Text]
    interrupted: bool
    sessions: tuple[Session, ...]
    ran: tuple[dict[Name, Text], ...]
    cells: tuple[LoadCell, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    def figures(self, model: str, dtype: DType, mode: Mode, concurrency: int) -> LoadFigures | None:
        """Of one cell, None where it is not there or failed."""
        key = LoadKey(model, dtype, mode, concurrency)
        return next((cell.figures for cell in self.cells if cell.key == key), None)


FORM = RecordForm(KIND, CountersRecord)
read_json, write_json = FORM.read, FORM.write
