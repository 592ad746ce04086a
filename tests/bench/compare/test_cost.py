"""Prices, energy and jobs: what is read, what is computed, what is refused."""

from __future__ import annotations

import pytest
from compare_cases import H100, STEP, file, published, rate, row

from slidesparse.bench.compare.cost import (
    CostLine,
    cost_lines,
    cost_of,
    gpus_of_file,
    parse_prices,
    parse_tokens,
    price_files,
)
from slidesparse.bench.compare.lines import compare
from slidesparse.bench.compare.select import Options
from slidesparse.bench.rows import ResultFile
from slidesparse.candidate import Provenance
from slidesparse.devices import Fingerprint
from slidesparse.errors import UsageError

RATE = rate(1000.0, spread=10.0, tokens_per_s=1000.0, joules_per_token=0.5, power_w=600.0)


def costs(*files: ResultFile, price: str = "", tokens: float | None = None) -> list[CostLine]:
    prices = parse_prices(price) if price else ()
    return list(cost_lines(compare(files, Options()), prices, tokens))


def test_prices_of_gpus_and_of_families() -> None:
    h200, h100 = parse_prices("h200=4.10/h, h100=2.70/h")
    assert (h200.name, h200.gpus, h200.per_hour) == ("h200", {"h200"}, 4.1)
    assert (h100.gpus, h100.per_hour) == ({"h100-pcie", "h100-sxm"}, 2.7)
    assert parse_prices("H100_SXM=3")[0].gpus == {"h100-sxm"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h200", "cannot read price 'h200'; write GPU=PRICE/h: h200=4.10/h"),
        ("", "cannot read price ''; write GPU=PRICE/h: h200=4.10/h"),
        ("h200=4/day", "price of h200 is per 'day'; give it per hour: h200=4/h"),
        ("h200=$4/h", "price '$4' of h200 is not a number; write it without a currency: h200=4"),
        ("h200=-1/h", "price -1 of h200 is not positive; give what an hour of it costs"),
        ("h200=0/h", "price 0 of h200 is not positive"),
        ("h200=nan/h", "price nan of h200 is not positive"),
        ("h200=inf", "price inf of h200 is not positive"),
        ("h200=4,H200=5", "two prices for one GPU: h200 and H200; give one"),
        ("h200=1e300/h", "price 1e300 of h200 is more than 1e+12; give that of an hour"),
        ("h20=4/h", "unknown GPU 'h20'; nearest: h200"),
    ],
)
def test_prices_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_prices(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "'many' is not a number of tokens; write 1e9"),
        ("0", "0 is not a positive number of tokens"),
        ("-5", "-5 is not a positive number of tokens"),
        ("inf", "inf is not a positive number of tokens"),
        ("1e400", "1e400 is not a positive number of tokens"),
        ("0.5", "0.5 tokens are no job; give 1 to 1e+18"),
        ("1e300", "1e300 tokens are no job; give 1 to 1e+18"),
    ],
)
def test_jobs_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tokens(text)
    assert str(caught.value) == message


def test_a_million_tokens_by_hand() -> None:
    found = cost_of(RATE, file(RATE), price=3.6, tokens=7.2e6)
    assert found is not None
    # 1000 tokens a second for 3.6 an hour are 3.6 million tokens for 3.6.
    assert found.per_million == pytest.approx(1.0)
    assert found.tokens_per_joule == 2
    assert found.energy is Provenance.MEASURED
    assert found.hours == pytest.approx(2.0)
    assert found.total == pytest.approx(7.2)
    assert found.kwh == pytest.approx(1.0)


def test_energy_from_power_is_derived() -> None:
    bare = rate(1000.0, tokens_per_s=1000.0, power_w=700.0)
    found = cost_of(bare, file(bare), None, None)
    assert found is not None
    assert (found.joules_per_token, found.energy) == (0.7, Provenance.DERIVED)
    assert (found.per_million, found.hours, found.total, found.kwh) == (None,) * 4


def test_without_tokens_there_is_no_cost() -> None:
    assert cost_of(row(3.0), file(row(3.0)), 4.0, 1e9) is None


def test_every_gpu_of_a_tensor_parallel_run_costs() -> None:
    both = rate(1000.0, workload={**STEP, "tp": 2}, tokens_per_s=1000.0)
    found = cost_of(both, file(both), 3.6, None)
    assert found is not None
    assert found.per_million == pytest.approx(2.0)
    by_settings = cost_of(RATE, file(RATE, settings={"tp": 4}), 3.6, None)
    assert by_settings is not None
    assert by_settings.gpus == 4


def test_published_figures_cost_beside_measured_ones() -> None:
    theirs = rate(500.0, tokens_per_s=500.0)
    (line,) = costs(file(RATE), published(theirs), price="h200=3.6,h100=1.8")
    here, there = line.costs
    assert here is not None
    assert there is not None
    assert here.per_million == pytest.approx(there.per_million) == pytest.approx(1.0)
    assert there.provenance is Provenance.PUBLISHED
    assert there.tokens_per_joule is None


def test_the_nearer_of_two_prices_counts() -> None:
    sxm = file(RATE, fingerprint=H100)
    assert price_files([sxm], parse_prices("h100=1,h100-sxm=2")) == (2.0,)


def test_two_prices_for_what_a_published_gpu_may_be() -> None:
    """The table says H100: taking either card's price for it would be a guess."""
    theirs = published(RATE)
    with pytest.raises(UsageError) as caught:
        price_files([theirs], parse_prices("h100-sxm=2.7,h100-pcie=1.9"))
    assert str(caught.value) == (
        "p.json is of H100 (published), which may be h100-pcie or h100-sxm; the prices of "
        "h100-sxm and h100-pcie both fit: give one for it"
    )
    assert price_files([theirs], parse_prices("h100=2,h100-pcie=1.9")) == (1.9,)
    assert price_files([theirs], parse_prices("h100-sxm=2.7")) == (2.7,)


def test_files_without_a_price_have_none() -> None:
    files = file(RATE), file(RATE, fingerprint=H100)
    assert price_files(files, parse_prices("h200=4")) == (4.0, None)


def test_a_price_for_a_gpu_that_no_file_is_of() -> None:
    with pytest.raises(UsageError) as caught:
        price_files([file(RATE), published(RATE)], parse_prices("b200=6/h"))
    assert str(caught.value) == (
        "no file is of b200, which --price names; the files are of NVIDIA H200, H100 (published)"
    )


def test_gpus_of_files() -> None:
    assert gpus_of_file(file(RATE)) == {"h200"}
    assert gpus_of_file(published(RATE)) == {"h100-pcie", "h100-sxm"}
    assert gpus_of_file(published(RATE, machine="RTX4090 (published)")) == {"rtx-4090"}
    assert gpus_of_file(published(RATE, machine="an abacus")) == frozenset()
    assert gpus_of_file(file(RATE, fingerprint=Fingerprint("a CPU", 0, 2, 0))) == frozenset()


@pytest.mark.parametrize(("price", "tokens"), [("h200=4/h", None), ("", 1e9)])
def test_costs_of_what_has_no_tokens_per_second(price: str, tokens: float | None) -> None:
    with pytest.raises(UsageError, match="no row that is compared says tokens per second"):
        costs(file(row(1.0)), file(row(2.0), name="b.json"), price=price, tokens=tokens)


def test_nothing_asked_nothing_refused() -> None:
    assert costs(file(row(1.0)), file(row(2.0), name="b.json")) == []
