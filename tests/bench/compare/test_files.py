"""What differs between files, and which settings the baseline phase holds equal."""

from __future__ import annotations

import pytest
from compare_cases import H100, H200, file, published, row

from slidesparse.bench.compare.files import differences, flat, require_same_settings, spell
from slidesparse.bench.compare.lines import compare
from slidesparse.bench.compare.select import Options, Phase
from slidesparse.bench.rows import ResultFile
from slidesparse.errors import UsageError


def pair(here: dict[str, object], there: dict[str, object]) -> tuple[ResultFile, ResultFile]:
    return (
        file(row(1.0), name="here.json", settings=here),
        file(row(1.0), name="there.json", settings=there, fingerprint=H100),
    )


def test_machine_software_and_settings_in_this_order() -> None:
    here = file(
        row(1.0), settings={"repeats": 3, "seed": 1}, versions={"vllm": "0.25.1"}, commit="a" * 40
    )
    there = file(
        row(1.0),
        name="b.json",
        fingerprint=H100,
        settings={"repeats": 5, "seed": 2},
        versions={"vllm": "0.33.0"},
        commit="b" * 40,
    )
    found = [(it.group, it.name, it.values, it.matters) for it in differences([here, there])]
    assert found == [
        ("machine", "name", (H200.name, H100.name), False),
        ("machine", "memory_mib", ("143156", "81079"), False),
        ("software", "driver", ("580", "575"), False),
        ("software", "vllm", ("0.25.1", "0.33.0"), False),
        ("software", "commit", ("a" * 12, "b" * 12), False),
        ("setting", "repeats", ("3", "5"), True),
        ("setting", "seed", ("1", "2"), False),
    ]


def test_equal_files_differ_in_nothing() -> None:
    assert differences([file(row(1.0)), file(row(2.0), name="b.json")]) == ()


@pytest.mark.parametrize(
    "name", ["seed", "device", "devices", "budget_s", "fresh", "patterns", "m", "dtype", "dtypes"]
)
def test_seeds_devices_and_coverage_may_differ(name: str) -> None:
    require_same_settings(pair({name: "one"}, {name: "another"}))


def test_a_path_may_differ() -> None:
    require_same_settings(pair({"text": "./mine.txt"}, {"text": "./yours.txt"}))


def test_what_the_rows_themselves_tell_may_differ() -> None:
    files = [
        file(row(1.0, variant={"kv-dtype": dtype}), name=dtype, settings={"kv_dtype": dtype})
        for dtype in ("bf16", "fp8")
    ]
    require_same_settings(files)


def test_plans_have_no_fingerprint_and_are_held_to_it_all_the_same() -> None:
    plans = [
        file(row(1.0), name=name, fingerprint=None, machine=name, settings={"eager": eager})
        for name, eager in (("a", True), ("b", False))
    ]
    with pytest.raises(UsageError, match="eager yes in a, no in b"):
        require_same_settings(plans)


def test_a_setting_that_counts_may_not() -> None:
    with pytest.raises(UsageError) as caught:
        require_same_settings(pair({"effort": "normal", "seed": 1}, {"effort": "quick", "seed": 2}))
    assert str(caught.value) == (
        "settings differ: effort normal in here.json, quick in there.json; the baseline phase "
        "compares identical settings: measure again with one of them, or use --phase adapted"
    )


def test_a_setting_that_one_of_a_kind_lacks_may_not() -> None:
    with pytest.raises(UsageError, match=r"prompt 1024 in here\.json, unset in there\.json"):
        require_same_settings(pair({"prompt": 1024}, {}))


def test_many_settings_are_counted_behind_three() -> None:
    names = [f"option{index}" for index in range(5)]
    with pytest.raises(UsageError, match=r"option2 1 in .* and 2 more; the baseline phase"):
        require_same_settings(pair(dict.fromkeys(names, 1), dict.fromkeys(names, 2)))


def test_two_kinds_agree_in_what_both_have() -> None:
    here, there = pair({"effort": "normal", "backends": ["cublaslt"]}, {"compile": True})
    other = file(row(1.0), name="there.json", settings=dict(there.settings), kind="another")
    require_same_settings([here, other])


def test_published_figures_are_exempt_and_said_to_be() -> None:
    here, there = file(row(1.0), settings={"prompt": 1024}), published(row(2.0))
    require_same_settings([here, there])
    assert compare([here, there], Options()).exempt == (1,)


def test_the_adapted_phase_lets_settings_differ() -> None:
    files = pair({"effort": "normal"}, {"effort": "quick"})
    with pytest.raises(UsageError, match="settings differ"):
        compare(files, Options())
    found = compare(files, Options(phase=Phase.ADAPTED))
    assert [it.name for it in found.differences if it.matters] == ["effort"]


def test_settings_inside_settings_have_dotted_names() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


@pytest.mark.parametrize(
    ("value", "text"), [(None, "none"), (True, "yes"), ([1, 2], "1,2"), ([], "none"), (0.5, "0.5")]
)
def test_how_settings_are_spelled(value: object, text: str) -> None:
    assert spell(value) == text
