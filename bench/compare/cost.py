"""What tokens cost: price, energy and rate of a row, and the whole of a job.

Prices are in whatever unit of money the user thinks in: a comparison does not need to know it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slidesparse.bench.compare.lines import Comparison, Line
from slidesparse.bench.rows import ResultFile, Row
from slidesparse.candidate import Provenance
from slidesparse.errors import UsageError
from slidesparse.gpu_family import gpu_family
from slidesparse.gpus import gpu_of

SECONDS_PER_HOUR = 3600
JOULES_PER_KWH = 3.6e6
MILLION = 1e6

MOST_TOKENS = 1e18
"""A job of more, or of less than one token, is a slip of the keyboard."""

MOST_PRICE = 1e12
"""Per hour, in any currency; more is a slip, too."""

_PRICE = re.compile(r"([^=]+)=([^=/]+)(?:/\s*(\w+))?")


@dataclass(frozen=True)
class Cost:
    """What one row costs.

    Args:
        tokens_per_s: of the whole machine.
        gpus: how many GPUs ran it.
        provenance: of the rate; what is computed from it and a price is derived.
        joules_per_token: None where neither energy nor power is known.
        energy: measured, or derived from mean power over the rate; None without.
        price: per GPU and hour, None where none was given.
        tokens: of a job, None where none was asked about.
    """

    tokens_per_s: float
    gpus: int
    provenance: Provenance
    joules_per_token: float | None
    energy: Provenance | None
    price: float | None
    tokens: float | None

    @property
    def known(self) -> bool:
        """Whether there is more to say than the rate."""
        return self.price is not None or self.tokens is not None or bool(self.joules_per_token)

    @property
    def per_million(self) -> float | None:
        """Money for a million tokens: price * GPUs / 3600 / rate * 1e6."""
        if self.price is None:
            return None
        return self.price * self.gpus / SECONDS_PER_HOUR / self.tokens_per_s * MILLION

    @property
    def tokens_per_joule(self) -> float | None:
        """The inverse of the energy per token."""
        return 1 / self.joules_per_token if self.joules_per_token else None

    @property
    def hours(self) -> float | None:
        """That the job takes at this rate."""
        if self.tokens is None:
            return None
        return self.tokens / self.tokens_per_s / SECONDS_PER_HOUR

    @property
    def total(self) -> float | None:
        """Money for the job: hours * price * GPUs."""
        if self.hours is None or self.price is None:
            return None
        return self.hours * self.price * self.gpus

    @property
    def kwh(self) -> float | None:
        """Energy of the job's GPUs in kilowatt-hours; hosts and cooling are not in it."""
        if self.tokens is None or self.joules_per_token is None:
            return None
        return self.tokens * self.joules_per_token / JOULES_PER_KWH


@dataclass(frozen=True)
class CostLine:
    """What one line of a comparison costs.

    Args:
        line: of the comparison.
        costs: one per column, None where the cell says nothing of tokens.
    """

    line: Line
    costs: tuple[Cost | None, ...]


@dataclass(frozen=True)
class Price:
    """What a GPU costs.

    Args:
        name: as it was given.
        gpus: keys of the GPUs that it names; a family ("h100") names all of its members.
        per_hour: of one GPU.
    """

    name: str
    gpus: frozenset[str]
    per_hour: float


def parse_prices(text: str) -> tuple[Price, ...]:
    """Read "h200=4.10/h,h100=2.70/h": prices of one GPU per hour; "/h" may be left out.

    Raises:
        UsageError: the form is another; a GPU is unknown (with the nearest names) or there twice;
            a price is not a positive number.
    """
    prices: dict[frozenset[str], Price] = {}
    for part in text.split(","):
        match = _PRICE.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"cannot read price {part.strip()!r}; write GPU=PRICE/h: h200=4.10/h")
        name, amount, unit = match[1].strip(), match[2].strip(), match[3]
        if unit not in (None, "h", "hour", "hr"):
            raise UsageError(
                f"price of {name} is per {unit!r}; give it per hour: {name}={amount}/h"
            )
        gpus = gpu_family(name)
        if gpus in prices:
            raise UsageError(f"two prices for one GPU: {prices[gpus].name} and {name}; give one")
        prices[gpus] = Price(name, gpus, _amount(name, amount))
    return tuple(prices.values())


def parse_tokens(text: str) -> float:
    """Read the tokens of a job: "1e9", "1_000_000".

    Raises:
        UsageError: it is no number from 1 to MOST_TOKENS.
    """
    try:
        tokens = float(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a number of tokens; write 1e9") from None
    if not math.isfinite(tokens) or tokens <= 0:
        raise UsageError(f"{text} is not a positive number of tokens")
    if not 1 <= tokens <= MOST_TOKENS:
        raise UsageError(f"{text} tokens are no job; give 1 to {MOST_TOKENS:g}")
    return tokens


def price_files(files: Sequence[ResultFile], prices: Sequence[Price]) -> tuple[float | None, ...]:
    """The price of each file's GPU, None where none was given for it.

    Of two prices that fit, the one that names fewer GPUs counts.

    Raises:
        UsageError: a price is for a GPU that no file is of, or two prices are for GPUs of which a
            file may be either.
    """
    gpus = [gpus_of_file(file) for file in files]
    for price in prices:
        if not any(price.gpus & each for each in gpus):
            machines = ", ".join(dict.fromkeys(file.machine for file in files))
            raise UsageError(
                f"no file is of {price.name}, which --price names; the files are of {machines}"
            )
    return tuple(_price_of(file, each, prices) for file, each in zip(files, gpus, strict=True))


def _price_of(file: ResultFile, gpus: frozenset[str], prices: Sequence[Price]) -> float | None:
    """The price of a file that may be of any of these GPUs.

    Raises:
        UsageError: two fit, and neither is for a part of the other's GPUs.
    """
    fitting = [price for price in prices if price.gpus & gpus]
    if not fitting:
        return None
    nearest = min(fitting, key=lambda price: len(price.gpus))
    apart = next((price for price in fitting if not nearest.gpus <= price.gpus), None)
    if apart is not None:
        raise UsageError(
            f"{file.path} is of {file.machine}, which may be {' or '.join(sorted(gpus))}; "
            f"the prices of {nearest.name} and {apart.name} both fit: give one for it"
        )
    return nearest.per_hour


def gpus_of_file(file: ResultFile) -> frozenset[str]:
    """Keys of the GPUs that a file may be of.

    One by its Fingerprint; by its heading where it has none, which may name a family; none for a
    CPU or a GPU that the table lacks.
    """
    if file.fingerprint is not None:
        spec = gpu_of(file.fingerprint)
        return frozenset() if spec is None else frozenset({spec.key})
    try:
        return gpu_family(str(file.settings.get("gpu") or file.machine.partition("(")[0]))
    except UsageError:
        return frozenset()


def cost_of(row: Row, file: ResultFile, price: float | None, tokens: float | None) -> Cost | None:
    """What a row costs; None where it says nothing of tokens.

    Energy per token is the row's own, else power over the rate: J/token = W / (tokens/s).
    """
    rate = row.tokens_per_s
    if not rate:
        return None
    joules, energy = row.joules_per_token, None if row.joules_per_token is None else row.provenance
    if joules is None and row.power_w is not None:
        joules, energy = row.power_w / rate, Provenance.DERIVED
    gpus = _gpus(row, file.settings)
    return Cost(rate, gpus, row.provenance, joules, energy, price, tokens)


def _gpus(row: Row, settings: Mapping[str, object]) -> int:
    """How many GPUs ran a row: its tensor-parallel size."""
    said = row.workload.get("tp", row.variant.get("tp", settings.get("tp", 1)))
    return int(said) if isinstance(said, int | float) and said >= 1 else 1


def _amount(name: str, text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        raise UsageError(
            f"price {text!r} of {name} is not a number; write it without a currency: {name}=4.10/h"
        ) from None
    if not math.isfinite(price) or price <= 0:
        raise UsageError(f"price {text} of {name} is not positive; give what an hour of it costs")
    if price > MOST_PRICE:
        raise UsageError(
            f"price {text} of {name} is more than {MOST_PRICE:g}; give that of an hour"
        )
    return price


def cost_lines(
    compared: Comparison, prices: Sequence[Price], tokens: float | None
) -> tuple[CostLine, ...]:
    """What every line of a comparison costs in each column.

    Args:
        compared: whose lines these are.
        prices: per GPU and hour; may be empty.
        tokens: of a job, None without.

    Raises:
        UsageError: a price is for a GPU that no file is of, or no row says tokens per second and
            a price or a job was given.
    """
    by_file = price_files(compared.files, prices)
    found = []
    for line in compared.lines:
        costs = tuple(
            None
            if cell is None
            else cost_of(cell, compared.files[column.file], by_file[column.file], tokens)
            for cell, column in zip(line.cells, compared.columns, strict=True)
        )
        if any(costs):
            found.append(CostLine(line, costs))
    if not found and (prices or tokens is not None):
        raise UsageError(
            "no row that is compared says tokens per second, which costs are computed from; "
            "compare files of slidesparse bench prefill or decode, or published end-to-end figures"
        )
    return tuple(found)
