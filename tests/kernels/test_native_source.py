"""The CUDA source of a variant: complete, and what the assembler makes of it is fast."""

from __future__ import annotations

import os
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from native_checks import FP8, INT8, SMALL, assembled, no_compiler, offered

from slidesparse.kernels.native import source as module
from slidesparse.kernels.native.config import REGISTERS, NativeConfig
from slidesparse.kernels.native.gemm import variant_of
from slidesparse.kernels.native.source import FILES, KERNEL, Variant, instruction, source
from slidesparse.problem import DType

LARGE = NativeConfig(slabs=3, tokens=192, stages=4, box=32, boxes=3, group=1)
SPLIT = NativeConfig(1, 32, 4, 4, cluster_k=4, resident=2, box=8, boxes=2, group=1)
SHARED = replace(SMALL, cluster_w=2, cluster_x=2, tokens=64)
FORMS = [
    (*FP8, False),
    (DType.FP8, DType.FP16, True),
    (*INT8, True),
    (DType.INT8, DType.BF16, False),
]

MOST_SECONDS = 20
MOST_SPILLED = 64
"""Bytes. More would be in the loop over K and cost time."""


def code_of(name, root):
    """A file's code without comments and strings."""
    text = (root / "kernels" / "cuda" / name).read_text()
    return re.sub(r'//[^\n]*|"(?:[^"\\\n]|\\.)*"', " ", text)


def names_in(text):
    """Identifiers of capitals, as macros and constants are spelled here."""
    return set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", text))


@pytest.fixture(scope="module")
def code(root):
    return "\n".join(code_of(name, root) for name in FILES if name != "INSTRUCTION")


def test_every_file_is_in_the_source(root):
    there = {path.name for path in (root / "kernels" / "cuda").iterdir()}
    assert there == set(FILES) - {"INSTRUCTION"}
    text = source(Variant(SMALL, *FP8, False))
    for name in there:
        assert (root / "kernels" / "cuda" / name).read_text() in text


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_macro_that_is_used_is_given_and_the_other_way_round(form, code):
    made = re.findall(r"\bconstexpr\s+\w+\s+([A-Z][A-Z0-9_]+)\b", code)
    made += re.findall(r"\btemplate\s*<\s*int\s+([A-Z][A-Z0-9_]+)\s*>", code)
    assert len(made) > 20, "the constants were not found"
    given = set(Variant(LARGE, *form).macros())
    assert names_in(code) - set(made) == given
    assert not set(made) & given, "a constant has the name of a macro"


def test_conditions_name_only_macros(code):
    """The preprocessor takes a name that it does not know for 0."""
    conditions = re.findall(r"^\s*#\s*(?:el)?if\s+(.*)$", code, re.MULTILINE)
    assert conditions
    used = {name for line in conditions for name in re.findall(r"[A-Za-z_]\w*", line)}
    assert used <= set(Variant(SMALL, *FP8, False).macros())


def test_the_source_includes_nothing():
    assert not re.search(r"^\s*#\s*include", source(Variant(SMALL, *FP8, False)), re.MULTILINE)


def test_macros_by_hand():
    config = NativeConfig(
        **{"slabs": 2, "tokens": 64, "blocks": 4, "stages": 3, "box": 32, "boxes": 2},
        **{"cluster_w": 2, "cluster_x": 2, "resident": 1},
    )
    wanted = {"SLABS": 2, "TOKENS": 64, "BLOCKS": 4, "STAGES": 3, "RESIDENT": 1}
    wanted |= {"CLUSTER_W": 2, "CLUSTER_X": 2, "CLUSTER_K": 1, "STORE_BOXES": 2}
    wanted |= {"TRACED": 0}
    scaled = {"STORE_TOKENS": 32, "SHARED": config.shared_bytes(), "SCALED": 1}
    raw = {"STORE_TOKENS": 0, "SHARED": config.shared_bytes(False), "SCALED": 0}
    fp8 = wanted | scaled | {"ODD": 1, "FP8": 1, "OUT_FP16": 0}
    assert Variant(config, *FP8, True).macros() == fp8
    assert Variant(config, *FP8, True, traced=True).macros() == fp8 | {"TRACED": 1}
    int8 = wanted | raw | {"ODD": 0, "FP8": 0, "OUT_FP16": 0}
    assert Variant(config, *INT8, False).macros() == int8
    half = Variant(LARGE, DType.FP8, DType.FP16, False).macros()
    assert (half["OUT_FP16"], half["CLUSTER_K"]) == (1, 1)
    assert Variant(SPLIT, *FP8, False).macros()["CLUSTER_K"] == 4


def test_the_raster_is_no_part_of_the_code():
    variant = Variant(SMALL, *FP8, False)
    for config in (replace(SMALL, group=32), replace(SMALL, along_x=True)):
        assert source(replace(variant, config=config)) == source(variant)


def test_all_else_is():
    base = replace(SMALL, box=8)
    others = [Variant(base, *form) for form in FORMS] + [Variant(base, *FP8, True)]
    changes = {"slabs": 2, "tokens": 64, "blocks": 4, "stages": 5, "resident": 2, "boxes": 3}
    changes |= {"cluster_w": 2, "cluster_x": 2, "cluster_k": 2, "box": 16}
    for name, value in changes.items():
        others.append(Variant(replace(base, **{name: value}), *FP8, False))
    assert len({source(variant) for variant in others}) == len(others)


@pytest.mark.parametrize("tokens", [8, 24, 64, 256])
@pytest.mark.parametrize(
    ("dtype", "kind", "letter", "types", "signs"),
    [
        (DType.FP8, "float", "f", "f32.e4m3.e4m3", ", 1, 1"),
        (DType.INT8, "int", "r", "s32.s8.s8", ""),
    ],
    ids=str,
)
def test_the_instruction(tokens, dtype, kind, letter, types, signs):
    """PTX: d, a, b, metadata, selector, scale-d; the signs of floating operands behind them."""
    text = instruction(tokens, dtype)
    count = tokens // 2
    assert f"typedef {kind} Accumulator;" in text
    assert f"(Accumulator (&sums)[{count}], u64 weights, u64 tokens," in text
    assert "satfinite" not in text
    flat = re.sub(r'"\s*"', "", text)
    (found,) = re.findall(r"wgmma\.mma_async\S* \{([^}]*)\}, ([^;]*);", flat)
    assert f"wgmma.mma_async.sp.sync.aligned.m64n{tokens}k64.{types} " in flat
    assert found[0].split(", ") == [f"%{i}" for i in range(count)]
    assert found[1] == f"%{count}, %{count + 1}, %{count + 2}, 0, add{signs}"
    assert f"setp.ne.b32 add, %{count + 3}, 0;" in flat
    outputs, inputs = re.findall(r"^ +: (.*)\n +: (.*)\);$", text, re.MULTILINE)[0]
    assert outputs.split(", ") == [f'"+{letter}"(sums[{i}])' for i in range(count)]
    assert re.findall(r'"(\w)"', inputs) == ["l", "l", "r", "r"]


def test_files_are_read_once(monkeypatch):
    source(Variant(SMALL, *FP8, False))
    monkeypatch.setattr(module.resources, "files", None)
    source(Variant(LARGE, *INT8, True))


def chosen(seed):
    """What is compiled here: some of the candidates for a model's layers, and rare forms."""
    random_ = random.Random(seed)
    found = random_.sample(offered(*FP8), 18) + random_.sample(offered(*FP8, near=True), 4)
    for dtype, out in (INT8, (DType.FP8, DType.FP16), (DType.INT8, DType.FP16)):
        found += random_.sample(offered(dtype, out), 3)
    found += [
        Variant(config, *form)
        for config in (LARGE, NativeConfig(group=1))
        for form in ((*FP8, True), (*FP8, False), (*INT8, True))
    ]
    found += [Variant(SHARED, *FP8, True), Variant(SPLIT, *INT8, False)]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def reports(request):
    """Variants, compiled side by side: seconds and what the assembler says."""
    if no_compiler():
        pytest.skip(no_compiler())
    variants = chosen(int(request.config.getoption("--seed")))
    assert 30 <= len(variants) <= 40

    def compiled(variant):
        start = time.perf_counter()
        return assembled(source(variant)), time.perf_counter() - start

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(variants, pool.map(compiled, variants), strict=True))


def waits(log):
    """Remarks of ptxas that cost several times the time."""
    return [line for line in log.splitlines() if re.search("serializ|injected|Performance", line)]


class TestAssembly:
    """Of the sample that is compiled here."""

    def test_it_is_a_cubin_with_the_kernel(self, reports):
        for report, seconds in reports.values():
            assert report.code.startswith(b"\x7fELF")
            assert KERNEL.encode() in report.code
            assert seconds < MOST_SECONDS

    def test_multiplications_stay_asynchronous(self, reports):
        """Ptxas remarks on every wait that it adds and on products that it has to serialise."""
        for variant, (report, _) in reports.items():
            assert not waits(report.log), (variant, report.log)

    def test_such_a_wait_would_be_seen(self, reports):
        """A sum that is touched before its product is done."""
        text, commit = source(Variant(NativeConfig(), *FP8, True)), "        wgmma_commit();"
        assert text.count(commit) == 1
        log = assembled(text.replace(commit, f"        sums[0] += 1.0f;\n{commit}")).log
        assert "serialized" in log
        assert waits(log)

    def test_nothing_is_remarked(self, reports):
        """Neither warnings nor a setmaxnreg that is ignored."""
        for variant, (report, _) in reports.items():
            for word in ("warning", "setmaxnreg", "ignored", "error"):
                assert word not in report.log.lower(), (variant, report.log)

    def test_next_to_nothing_is_spilled(self, reports):
        spilled = {variant: report.spilled for variant, (report, _) in reports.items()}
        assert not {v: count for v, count in spilled.items() if count > MOST_SPILLED}

    def test_the_blocks_that_should_share_a_multiprocessor_fit_its_registers(self, reports):
        for variant, (report, _) in reports.items():
            config = variant.config
            assert report.registers * config.threads * config.resident <= REGISTERS, variant


def test_the_sample_has_every_form():
    variants = chosen(0)
    assert {variant.odd for variant in variants} == {False, True}
    assert {variant.out for variant in variants} == {DType.BF16, DType.FP16, DType.INT32}
    assert {variant.config.cluster_k for variant in variants} >= {1, 4}
    assert {variant.config.resident for variant in variants} >= {1, 2}
    assert variant_of(LARGE, 4800, *FP8) in variants
