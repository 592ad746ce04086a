"""Tiles cover every row, configurations read back, and a launch finds what was tuned."""

from __future__ import annotations

from dataclasses import replace

import kernel_checks as checks
import pytest
from hypothesis import given
from hypothesis import strategies as st

import slidesparse.cache
import slidesparse.devices
from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Measurement
from slidesparse.devices import Fingerprint
from slidesparse.errors import CandidateError
from slidesparse.kernel_problem import KernelProblem, KernelResult, Op
from slidesparse.kernels import config as module
from slidesparse.kernels.config import (
    BACKEND,
    MOST_CHUNKS,
    Config,
    Table,
    candidates,
    chosen,
    default_config,
    load,
    tile_of,
)
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType

SIX_EIGHT = Pattern.parse("6:8")
FINGERPRINT = Fingerprint("Some GPU", 90, 132, 1024, "1", "2", "3", "4", "5")
PROBLEM = KernelProblem(Op.QUANTIZE, 16, 512, DType.BF16, DType.FP8, SIX_EIGHT)


def result(problem, config, us=1.0):
    candidate = config.candidate if isinstance(config, Config) else config
    measured = Measurement(candidate, us, 0.1, 10, 5, 1e-3, 1e-2, True, True, 64, 1000, 100.0)
    return KernelResult(problem, (measured,))


def values(tile):
    return {name: int(getattr(tile, name)) for name in tile.__dataclass_fields__}


@given(
    pattern=st.sampled_from([*checks.PATTERNS, Pattern(30, 32), Pattern(62, 64)]),
    k=st.one_of(st.integers(1, 300), st.integers(1, 300_000)),
    block=st.integers(0, 14).map(lambda power: 2**power),
)
def test_a_tile_covers_the_row_and_its_padding(pattern, k, block):
    t = values(tile_of(k, pattern, block))
    assert (t["k"], t["k_out"], t["windows"]) == (k, pattern.expanded_k(k), pattern.windows)
    assert t["block"] >= block
    assert t["block"] & (t["block"] - 1) == 0
    assert t["span"] <= t["block"]
    assert t["chunks"] >= 1
    assert t["chunks"] * t["span"] >= k, "columns are left out"
    if pattern.windows <= 1:
        assert t["span"] == t["block"]
        assert t["chunks"] * t["block"] >= t["k_out"] > (t["chunks"] - 1) * t["block"]
        return
    assert t["span"] % pattern.block == 0, "a chunk ends within a block"
    assert 2 * t["made"] == t["span"] // pattern.block * pattern.windows * 4
    assert 2 * t["made"] % 16 == 0, "the next chunk does not start on 16 bytes"
    assert t["span"] % 16 == 0
    assert t["made_block"] >= t["made"] > t["made_block"] // 2
    assert t["chunks"] * 2 * t["made"] >= t["k_out"] > (t["chunks"] - 1) * 2 * t["made"]


@given(
    pattern=st.sampled_from(checks.PATTERNS),
    k=st.integers(1, 300_000),
    block=st.integers(0, 13).map(lambda power: 2**power),
)
def test_a_row_has_few_enough_chunks_to_compile(pattern, k, block):
    t = values(tile_of(k, pattern, block))
    # A chunk of a lifted row may cover half of its block, and padding adds one.
    assert t["chunks"] <= 2 * MOST_CHUNKS + 1


@given(
    config=st.builds(
        Config,
        block=st.integers(0, 14).map(lambda power: 2**power),
        warps=st.integers(0, 5).map(lambda power: 2**power),
        rows=st.integers(0, 4).map(lambda power: 2**power),
        per_sm=st.integers(0, 16),
        stages=st.integers(1, 4),
        overlap=st.booleans(),
        registers=st.sampled_from([0, 64, 128]),
    )
)
def test_a_configuration_reads_back(config):
    again = Config.of(config.candidate)
    assert again == config
    assert isinstance(again.overlap, bool)
    assert config.candidate.backend == BACKEND


GOOD = Config(1024, 4).candidate
BAD = {
    "another backend": replace(GOOD, backend="cublaslt"),
    "a field too few": replace(GOOD, params={"block": 1024, "warps": 4}),
    "a field too many": replace(GOOD, params={**GOOD.params, "tile": 3}),
    "block of 1000": replace(GOOD, params={**GOOD.params, "block": 1000}),
    "no block": replace(GOOD, params={**GOOD.params, "block": 0}),
    "three warps": replace(GOOD, params={**GOOD.params, "warps": 3}),
    "negative warps": replace(GOOD, params={**GOOD.params, "warps": -4}),
    "no rows": replace(GOOD, params={**GOOD.params, "rows": 0}),
    "block of text": replace(GOOD, params={**GOOD.params, "block": "1024"}),
    "block of half a column": replace(GOOD, params={**GOOD.params, "block": 1024.5}),
    "block that is true": replace(GOOD, params={**GOOD.params, "block": True}),
    "block of a billion": replace(GOOD, params={**GOOD.params, "block": 2**30}),
    "too many warps": replace(GOOD, params={**GOOD.params, "warps": 1024}),
    "fewer than no programs": replace(GOOD, params={**GOOD.params, "per_sm": -3}),
    "no stages": replace(GOOD, params={**GOOD.params, "stages": 0}),
    "negative registers": replace(GOOD, params={**GOOD.params, "registers": -5}),
    "overlap in words": replace(GOOD, params={**GOOD.params, "overlap": "no"}),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_configuration_is_refused(name):
    with pytest.raises(
        CandidateError, match=r"is not a configuration|is not a (power|whole)|neither true"
    ):
        Config.of(BAD[name])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("op", Op, ids=str)
@pytest.mark.parametrize("m", [1, 129, 65536])
@pytest.mark.parametrize("k", [1, 64, 3584, 18944, 300_000])
def test_candidates_are_unique_and_begin_with_the_default(op, m, k, full):
    out = DType.FP8 if op.quantizes else DType.BF16
    offered = candidates(KernelProblem(op, m, k, DType.BF16, out), full)
    assert offered[0] == default_config(op, k, m)
    assert len(set(offered)) == len(offered)
    for config in offered:
        assert Config.of(config.candidate) == config
    if 64 <= k <= 18944:
        assert len(offered) > 1


class TestTable:
    def test_the_same_bucket_then_the_next_above_then_the_largest(self):
        small, large = Config(512, 1), Config(2048, 8)
        table = Table(
            [result(replace(PROBLEM, m=64), small), result(replace(PROBLEM, m=1024), large)]
        )
        found = {m: table.find(replace(PROBLEM, m=m)) for m in (1, 33, 64, 65, 1024, 1025, 10**6)}
        wanted = {1: small, 33: small, 64: small, 65: large, 1024: large}
        assert found == {**wanted, 1025: large, 10**6: large}

    def test_k_is_bucketed(self):
        table = Table([result(replace(PROBLEM, k=500), Config(512, 1))])
        assert table.find(replace(PROBLEM, k=512)) == Config(512, 1)
        assert table.find(replace(PROBLEM, k=449)) == Config(512, 1)
        assert table.find(replace(PROBLEM, k=448)) is None
        assert table.find(replace(PROBLEM, k=513)) is None

    @pytest.mark.parametrize(
        "change",
        [
            {"op": Op.SILU_MUL_QUANTIZE},
            {"source": DType.FP16},
            {"out": DType.INT8},
            {"pattern": DENSE},
        ],
        ids=str,
    )
    def test_everything_else_has_to_agree(self, change):
        table = Table([result(PROBLEM, Config(512, 1))])
        assert table.find(PROBLEM) == Config(512, 1)
        assert table.find(replace(PROBLEM, **change)) is None

    def test_with_a_residual_the_plain_one_serves(self):
        plain = replace(PROBLEM, op=Op.RMSNORM_QUANTIZE)
        adds = replace(plain, residual=True)
        table = Table([result(plain, Config(512, 1))])
        assert table.find(adds) == Config(512, 1)
        table = Table([result(plain, Config(512, 1)), result(adds, Config(1024, 2))])
        assert table.find(adds) == Config(1024, 2)
        assert Table([result(adds, Config(1024, 2))]).find(plain) == Config(1024, 2)

    def test_what_was_tuned_for_the_same_code_goes_first(self):
        """Past 2^31 elements offsets are long, which is other code: its bucket does not count."""
        long = replace(PROBLEM, m=65536, k=37888)
        short = replace(long, m=1024)
        table = Table([result(long, Config(512, 1)), result(short, Config(1024, 2))])
        assert table.find(replace(long, m=2048)) == Config(1024, 2)
        assert table.find(replace(long, m=10**6)) == Config(512, 1)
        assert Table([result(long, Config(512, 1))]).find(short) == Config(512, 1)

    def test_what_cannot_be_read_is_left_out(self, caplog):
        unreadable = result(PROBLEM, Candidate("triton", {"num_warps": 4}))
        assert Table([unreadable, KernelResult(PROBLEM, ())]).find(PROBLEM) is None
        assert f"tuned configuration of {PROBLEM.key} is not used" in caplog.text
        assert Table().find(PROBLEM) is None


@pytest.fixture
def fresh(monkeypatch):
    """No table is loaded, and none stays."""
    module.forget()
    yield
    module.forget()


@pytest.fixture
def reads(monkeypatch, tmp_path, fresh):
    """A tuning cache in a temporary folder, and the list of what looked into it."""
    seen = []

    class Counting(TuningCache):
        def __init__(self, root, fingerprint):
            seen.append(fingerprint)
            super().__init__(tmp_path / "cache", fingerprint, bundled=tmp_path / "bundled")

    monkeypatch.setattr(slidesparse.devices, "detect", lambda device: FINGERPRINT)
    monkeypatch.setattr(slidesparse.cache, "TuningCache", Counting)
    return seen


def ask(device=0, m=16, k=512, pattern=SIX_EIGHT):
    return chosen(device, Op.QUANTIZE, m, k, DType.BF16, DType.FP8, pattern, False)


def test_a_launch_finds_what_was_tuned_and_reads_files_once(reads, tmp_path):
    tuned = Config(256, 2, rows=2, per_sm=3, stages=2, overlap=True)
    cache = TuningCache(tmp_path / "cache", FINGERPRINT, bundled=tmp_path / "bundled")
    cache.put_kernels([result(PROBLEM, tuned)])
    assert ask() == tuned
    assert reads == [FINGERPRINT]
    for m in (16, 32, 1024):
        assert ask(m=m) == tuned
    assert ask(k=4096) == default_config(Op.QUANTIZE, 4096, 16)
    assert ask(pattern=DENSE) == default_config(Op.QUANTIZE, 512, 16)
    assert reads == [FINGERPRINT], "a file was read after the first launch"
    cache.put_kernels([result(PROBLEM, Config(64, 1))])
    assert ask() == tuned
    load(0)
    assert ask() == Config(64, 1)
    assert len(reads) == 2


def test_each_device_reads_for_itself(reads):
    assert ask(device=0) == ask(device=1) == default_config(Op.QUANTIZE, 512, 16)
    assert len(reads) == 2
    ask(device=0, m=64)
    ask(device=1, m=64)
    assert len(reads) == 2


def test_a_given_table_reads_nothing(reads):
    load(0, Table([result(PROBLEM, Config(128, 1))]))
    assert ask() == Config(128, 1)
    assert ask(k=99) == default_config(Op.QUANTIZE, 99, 16)
    load(0, Table())
    assert ask() == default_config(Op.QUANTIZE, 512, 16)
    assert not reads


def test_the_cpu_reads_nothing(reads):
    assert ask(device=-1) == default_config(Op.QUANTIZE, 512, 16)
    assert not reads
