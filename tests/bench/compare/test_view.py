"""The tables of a comparison: differences first, every figure with its provenance, verdicts."""

from __future__ import annotations

import pytest
from compare_cases import H100, STEP, file, published, rate, row

from slidesparse.bench.compare.cost import cost_lines, parse_prices
from slidesparse.bench.compare.cost_view import cost_sections
from slidesparse.bench.compare.lines import compare
from slidesparse.bench.compare.markdown import to_markdown
from slidesparse.bench.compare.profile import profile_sections
from slidesparse.bench.compare.select import Options, Phase
from slidesparse.bench.compare.text import Section, figure, varying
from slidesparse.bench.compare.view import make_view
from slidesparse.bench.rows import ResultFile
from slidesparse.candidate import Provenance

LARGE = {**STEP, "m": 4096}
OURS = {"system": "ours", "pattern": "6:8"}
HERE = file(row(100.0, 4.0), row(800.0, 8.0, LARGE), name="here.json")
THERE = file(
    row(102.0, 4.0, variant=OURS, how="cublaslt id=66"),
    row(400.0, 4.0, LARGE, variant=OURS, how="native A"),
    row(1.0, 0.1, {**STEP, "m": 1}),
    name="there.json",
    fingerprint=H100,
)


def sections(*files: ResultFile, every: bool = False, **options: object) -> list[Section]:
    return make_view(compare(files, Options(**options)), every)  # type: ignore[arg-type]


def test_what_differs_is_said_first() -> None:
    first = sections(HERE, THERE)[0]
    assert first.title == "What differs"
    assert first.headings == ("", "A", "B")
    assert first.rows[0] == ("file", "here.json", "there.json")
    assert first.rows[2] == (
        "figures",
        "H200 (measured)",
        "H100 80GB HBM3 (measured)",
    )
    assert ("machine: memory mib", "143156", "81079") in first.rows
    assert first.lines == ("Phase baseline: settings that decide a measurement are the same.",)


def test_files_that_differ_in_nothing_say_so() -> None:
    first = sections(HERE, file(*HERE.rows, name="again.json"))[0]
    assert first.lines[0] == "Machine, software, commit and settings are the same."


def test_settings_that_count_have_a_mark_in_the_adapted_phase() -> None:
    other = file(*HERE.rows, name="b.json", settings={"repeats": 5, "seed": 8})
    first = sections(HERE, other, phase=Phase.ADAPTED)[0]
    assert ("setting: repeats *", "3", "5") in first.rows
    assert ("setting: seed", "7", "8") in first.rows
    assert first.lines[0].startswith("Phase adapted: each file's best over dtype, out,")


def test_long_settings_are_cut_in_tables() -> None:
    other = file(*HERE.rows, name="b.json", settings={"repeats": 3, "seed": 7, "note": "x" * 200})
    (note,) = [it for it in sections(HERE, other)[0].rows if it[0] == "setting: note"]
    assert note[2] == "x" * 77 + "..."


def test_figures_with_spread_variant_and_ratio() -> None:
    table = sections(HERE, THERE)[1]
    assert table.title == "time (us, lower is better): step qwen2.5-7b dtype=fp8_e4m3"
    assert table.headings == (
        *("m", "A H200 (measured)", "B H100 80GB HBM3 (measured)", "by", "B vs A"),
    )
    assert table.rows == [
        ("512", "100.0 ±2.0%", "102.0 ±2.0%", "cublaslt", "no difference (0.98)"),
        ("4096", "800.0 ±0.5%", "400.0 ±0.5%", "native", "2.00 ±0.01"),
    ]
    assert table.lines == (
        "A is stock in all of it.",
        "B is ours pattern=6:8 in all of it.",
        "B vs A: better in 1, no difference in 1 of 2; geometric mean 1.40 (0.98 to 2.00)",
    )


def test_by_variant_names_the_variant_once() -> None:
    table = sections(THERE, file(*THERE.rows, name="c.json"), by="variant")[1]
    assert table.headings[:2] == ("m", "variant")
    assert [it[1] for it in table.rows] == ["ours pattern=6:8", "ours pattern=6:8", "stock"]
    assert "by" not in table.headings


def test_published_columns_say_so_and_have_no_spread() -> None:
    found = sections(HERE, published(*HERE.rows))
    assert found[1].headings[-2:] == ("B H100 (published)", "B vs A")
    assert found[1].rows[0][-1] == "1.00~"
    assert found[0].lines == (
        "Settings are not known, and not held to this phase: p.json (not measured here).",
    )


def test_a_rare_provenance_is_told_in_its_cell() -> None:
    mixed = file(
        row(1.0),
        row(2.0, workload=LARGE),
        row(3.0, workload={**STEP, "m": 1}, provenance=Provenance.DERIVED),
        name="mixed.json",
    )
    table = sections(mixed, file(*mixed.rows, name="b.json"))[1]
    assert table.headings[1] == "A H200 (measured, derived)"
    assert [it[1] for it in table.rows] == ["1.000", "2.000", "3.000 (derived)"]


def test_the_best_of_other_patterns_is_warned_about() -> None:
    table = sections(
        file(row(1.0, variant={**OURS, "pattern": "2:4"})), file(row(1.0, variant=OURS), name="b")
    )[1]
    assert table.lines[-1] == (
        "The best are of different patterns (2:4, 6:8), whose models answer differently: --where "
        "pattern=6:8 keeps one, --by variant shows all."
    )


def test_the_sparsest_does_not_win_unnoticed() -> None:
    """Stock on full weights is no rival of 2:4: another model answers."""
    rows = [row(us, variant={**OURS, "pattern": name}) for us, name in ((1.0, "2:4"), (2.0, "6:8"))]
    stock = row(3.0, variant={"system": "stock", "pattern": "dense"})
    table = sections(file(*rows, stock), file(*rows, name="b.json"))[1]
    assert table.lines[-1] == (
        "The best are all of pattern 2:4, whose model answers differently than those of 6:8, "
        "dense: --where pattern=6:8 keeps one, --by variant shows all."
    )
    where = {"pattern": ("2:4",)}
    alone = sections(file(*rows, stock), file(*rows, name="b.json"), where=where)[1]
    assert not any(line.startswith("The best are") for line in alone.lines)


def test_many_columns_stand_below_each_other() -> None:
    files = [file(row(10.0 * (i + 1), 0.1), name=f"{i}.json") for i in range(4)]
    table = sections(*files)[1]
    assert table.headings == ("column", "figure", "by", "vs A")
    assert [it[0] for it in table.rows] == [f"{mark} H200 (measured)" for mark in "ABCD"]
    assert [it[3] for it in table.rows] == ["", "0.500 ±0.003", "0.333 ±0.002", "0.250 ±0.001"]


@pytest.mark.parametrize(
    ("every", "lines"),
    [
        (False, ("1 only in B (there.json); --all lists them.",)),
        (True, ("1 only in B (there.json):", "  time step qwen2.5-7b dtype=fp8_e4m3 m=1")),
    ],
)
def test_what_one_file_has_alone(every: bool, lines: tuple[str, ...]) -> None:
    counted = sections(HERE, THERE, every=every)[2]
    assert counted.lines[0] == "2 workloads and metrics are in at least two columns."
    assert counted.lines[1:] == lines


def test_quality_is_told_as_differences() -> None:
    here = file(row(20.0, 0.2, metric="perplexity", unit="", workload={"what": "accuracy"}))
    there = file(
        row(20.1, 0.2, metric="perplexity", unit="", workload={"what": "accuracy"}), name="b.json"
    )
    table = sections(here, there)[1]
    assert table.rows == [("stock", "20", "20.1", "within noise (+0.1 ±0.14)")]
    assert table.lines == ("perplexity should be the same on every machine: 1 within noise.",)


def test_costs_as_a_table() -> None:
    cheap = rate(500.0, tokens_per_s=500.0, power_w=250.0, spread=5.0)
    dear = rate(1000.0, tokens_per_s=1000.0, joules_per_token=0.25, spread=5.0)
    found = compare([file(dear), file(cheap, name="b.json", fingerprint=H100)], Options())
    prices = parse_prices("h200=3.6,h100=0.9")
    (table,) = cost_sections(found, cost_lines(found, prices, 1e9), prices, 1e9)
    assert table.headings[-8:] == (
        *("tokens/s", "J/token", "tokens/J", "cost per 1M tokens"),
        *("job: hours", "job: cost", "job: kWh", "cost, A = 1"),
    )
    assert table.rows == [
        (
            *("A H200 (measured)", "stock", "measured", "1,000", "0.2500", "4.000", "1.000"),
            *("277.8", "1,000", "69.44", "1.00"),
        ),
        (
            *("B H100 80GB HBM3 (measured)", "stock", "measured", "500.0", "0.5000 (derived)"),
            *("2.000", "0.5000", "555.6", "500.0", "138.9", "0.50"),
        ),
    ]
    assert table.lines[:2] == (
        "A: 1.000 per 1M tokens at the least.",
        "B: 0.5000 per 1M tokens at the least.",
    )


@pytest.mark.parametrize(("engine", "said"), [("linear", True), ("vllm", False)])
def test_costs_of_the_linears_alone_say_what_is_missing(engine: str, said: bool) -> None:
    both = [
        file(rate(value, workload={**STEP, "engine": engine}, tokens_per_s=value), name=name)
        for value, name in ((1000.0, "a.json"), (2000.0, "b.json"))
    ]
    compared, prices = compare(both, Options()), parse_prices("h200=3.6")
    (section,) = cost_sections(compared, cost_lines(compared, prices, 1e15), prices, 1e15)
    assert any(line.startswith("Engine linear runs the") for line in section.lines) is said
    assert "The job: 1.000e+15 tokens at the rate of the row, on one machine." in section.lines


def test_a_column_without_a_partner_in_the_base_is_named() -> None:
    other = file(row(1.0, 0.1, {**STEP, "m": 1}), name="c.json")
    *_, alone, _ = sections(HERE, THERE, other)
    assert "C has nothing in common with A." in alone.lines
    assert not any(line.startswith("B has nothing") for line in alone.lines)


def test_no_cost_table_where_there_is_only_a_rate() -> None:
    bare = rate(1.0, tokens_per_s=1.0)
    found = compare([file(bare), file(bare, name="b.json")], Options())
    assert cost_sections(found, cost_lines(found, (), None), (), None) == []


def test_profiles_stand_below_an_adapted_comparison() -> None:
    volta = published(*HERE.rows, machine="v100-32gb (published)")
    (table,) = profile_sections(compare([HERE, volta], Options(phase=Phase.ADAPTED)))
    assert table.headings == ("", "H200 SXM 141 GB", "V100 SXM2 32 GB")
    values = {name: rest for name, *rest in table.rows}
    assert values["dtype"] == ["fp8 (W8A8) (derived)", "fp16 (derived)"]
    assert values["sparse"][1] == "no (derived)"


def test_no_profiles_of_a_model_that_is_no_preset() -> None:
    other = file(row(1.0, workload={**STEP, "model": "mine"}))
    assert profile_sections(compare([other, file(*other.rows, name="b")], Options())) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.0273, "7.027"),
        (99.104, "99.10"),
        (999.96, "1,000.0"),
        (42596.2, "42,596"),
        (0.0, "0.000"),
        (-0.5, "-0.5000"),
        (0.00123456, "0.001235"),
        (1e-9, "1.000e-09"),
    ],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_sizes_that_the_layer_says_have_no_column() -> None:
    gemm = {"what": "gemm", "layer": "o", "tokens": 1, "m": 1, "n": 10, "k": 20}
    rows = [
        row(1.0, workload=gemm),
        row(1.0, workload={**gemm, "layer": "qkv", "n": 30, "tokens": 2, "m": 2}),
    ]
    lines = compare([file(*rows), file(*rows, name="b")], Options()).lines
    assert varying(lines) == ({"what": "gemm", "k": 20}, ["layer", "tokens"])
    routed = row(1.0, workload={**gemm, "m": 5})
    lines = compare([file(*rows, routed), file(*rows, routed, name="b")], Options()).lines
    assert varying(lines)[1] == ["layer", "tokens", "m"]


def test_markdown_escapes_what_it_would_take_for_marks() -> None:
    text = to_markdown(
        [Section("a | b", ("x*", "y"), [("1~", "2\n3")], ("line", "  below"), frozenset({0}))]
    )
    assert text.splitlines() == [
        r"**a \| b**",
        "",
        r"| x\* | y |",
        "| --- | ---: |",
        r"| 1\~ | 2 3 |",
        "",
        "* line",
        "  * below",
    ]
