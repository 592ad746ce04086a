"""Taking a layer over: what is raced against vLLM's own GEMM, what is kept, what is refused."""

from __future__ import annotations

import layer_checks as checks
import pytest
import torch
import vllm_layers as layers

from slidesparse import vllm_gemm
from slidesparse.candidate import Candidate
from slidesparse.errors import PatternError
from slidesparse.layers.planning import LayerShape, Timed, choose_plan
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.vllm import taken
from slidesparse.vllm.options import Options

SIX, TWO = Pattern.parse("6:8"), Pattern.parse("2:4")
SHAPE = LayerShape(64, 128, SIX, DType.FP8, DType.BF16, bias=False)
CUBLASLT = Candidate("cublaslt", {"algo": "00"}, sparse=False)
TORCH = Candidate("torch", {"function": "scaled_mm_rowwise"}, sparse=False)
NATIVE = Candidate("native", {"tile_n": 128}, sparse=True)
HERE = vllm_gemm.candidate()


def ways(*timed):
    return {4096: tuple(Timed(candidate, us, 1.0) for candidate, us in timed)}


@pytest.fixture
def hopper(monkeypatch):
    """A GPU that has vLLM's GEMM, and what was measured on it."""
    measured = {}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(taken, "measured_ways", lambda shape, device: dict(measured))
    monkeypatch.setattr(vllm_gemm, "mismatch", lambda params: None)
    return measured


class TestTheGemmOfVllm:
    device = torch.device("cuda", 0)

    def test_stands_in_for_dense_ways_that_never_met_it(self, hopper):
        hopper |= ways((CUBLASLT, 10.0), (TORCH, 12.0), (NATIVE, 11.0))
        found = taken.planned_ways(SHAPE, self.device)
        assert found == ways((NATIVE, 11.0), (HERE, 10.0))
        plan = choose_plan(SHAPE, found)
        assert plan.at(4096).candidate.backend == "vllm"

    def test_leaves_a_sparse_way_that_is_faster(self, hopper):
        hopper |= ways((CUBLASLT, 10.0), (NATIVE, 7.0))
        plan = choose_plan(SHAPE, taken.planned_ways(SHAPE, self.device))
        assert plan.at(4096).candidate.backend == "native"

    def test_that_was_raced_is_one_of_the_ways(self, hopper):
        hopper |= ways((CUBLASLT, 9.0), (HERE, 10.0), (NATIVE, 11.0))
        assert taken.planned_ways(SHAPE, self.device) == hopper
        plan = choose_plan(SHAPE, hopper)
        assert plan.at(4096).candidate.backend == "cublaslt"

    @pytest.mark.parametrize("change", [{"n": 63}, {"k": 120}, {"out": DType.FP32}])
    def test_that_cannot_run_takes_no_part(self, hopper, change):
        hopper |= ways((CUBLASLT, 10.0), (NATIVE, 11.0))
        assert taken.planned_ways(SHAPE._replace(**change), self.device) == hopper

    def test_needs_a_gpu(self):
        assert taken.stock_candidate(SHAPE, torch.device("cpu")) is None


def weight(pattern, n=16, k=96):
    w = checks.linear_of(n, k, pattern).weight.detach()
    return (w * 50).round().clamp(-127, 127).to(torch.int8)


def decide(q, options=None, out=torch.bfloat16, static=False, room=2**40):
    return taken.decide(q, out, False, static, options or Options(), room)


class TestPattern:
    @pytest.fixture(autouse=True)
    def measured(self, monkeypatch):
        monkeypatch.setattr(taken, "measured_ways", layers.ways_of(16, 4096))

    @pytest.mark.parametrize("pattern", ["2:4", "4:6", "6:8", "8:10", "dense"])
    def test_is_the_sparsest_that_the_weight_satisfies(self, pattern):
        made = decide(weight(pattern))
        assert made.found == made.plan.pattern == Pattern.parse(pattern)

    def test_runs_dense_if_it_is_not_allowed(self):
        only = Options(patterns=frozenset({TWO}))
        made = decide(weight("6:8"), only)
        assert (made.found, made.plan.pattern) == (SIX, DENSE)
        assert decide(weight("2:4"), only).plan.pattern == TWO

    def test_k_that_is_cut_inside_a_block_is_another_one(self):
        """A tensor-parallel shard of 6:8 whose K begins inside a block of 8."""
        w = weight("6:8")
        assert decide(w[:, :48].contiguous()).found == SIX
        assert decide(w[:, 4:52].contiguous()).found.zeros < SIX.zeros


class TestDecision:
    @pytest.fixture(autouse=True)
    def measured(self, monkeypatch):
        monkeypatch.setattr(taken, "measured_ways", layers.ways_of(16, 4096))

    def test_says_what_it_expects(self):
        made = decide(weight("6:8"))
        assert made.times(4096) == (10.0, 10.0)
        assert made.times(64) is None

    def test_expects_what_was_measured(self):
        """The gain is over the dense way, not the other way round."""
        plan = choose_plan(SHAPE, ways((CUBLASLT, 12.0), (NATIVE, 8.0)))
        made = taken.Taken(plan, SIX, False, ways((CUBLASLT, 12.0), (NATIVE, 8.0)))
        assert made.times(4096) == (8.0, 12.0)

    def test_leaves_results_that_it_cannot_give(self):
        with pytest.raises(taken.LeftToVllm, match=r"^it gives torch.float32$"):
            decide(weight("6:8"), out=torch.float32)

    def test_leaves_what_is_no_matrix(self):
        q = torch.zeros(2, 16, 96, dtype=torch.int8)
        with pytest.raises(taken.LeftToVllm, match=r"^a weight of shape \(2, 16, 96\)$"):
            decide(q)

    def test_leaves_what_was_not_measured(self, monkeypatch):
        monkeypatch.setattr(taken, "measured_ways", layers.ways_of())
        with pytest.raises(taken.LeftToVllm, match=r"^no tuning result$"):
            decide(weight("6:8"))


class TestRoom:
    """Several forms of a weight only where the GPU has room for them."""

    @pytest.fixture(autouse=True)
    def two_forms(self, hopper, monkeypatch):
        first = {16: (Timed(TORCH, 1.0, 0.1), Timed(NATIVE, 3.0, 0.1))}
        hopper |= {**first, **ways((TORCH, 9.0), (NATIVE, 5.0))}
        monkeypatch.setattr(taken, "stock_candidate", lambda shape, device: None)
        monkeypatch.setattr(taken, "prepared", lambda *arguments: None)
        monkeypatch.setattr("slidesparse.layers.ways.Native.refusal", lambda *arguments: None)

    def test_enough(self):
        made = decide(weight("2:4", 64, 128))
        assert made.plan.forms == ("dense", "native")
        assert taken.bytes_of(made.plan) == 64 * 128 * 13 // 8

    def test_too_little_keeps_the_smallest(self):
        made = decide(weight("2:4", 64, 128), room=64 * 128 * 5 // 8 - 1)
        assert made.plan.forms == ("native",)

    def test_just_enough(self):
        made = decide(weight("2:4", 64, 128), room=64 * 128 * 5 // 8)
        assert made.plan.forms == ("dense", "native")


def test_static_activations_stay_where_nothing_is_faster(hopper, monkeypatch):
    """Joined with attention and collectives in vLLM, and not by us."""
    monkeypatch.setattr(taken, "prepared", lambda *arguments: None)
    monkeypatch.setattr(taken, "stock_candidate", lambda shape, device: HERE)
    hopper |= ways((CUBLASLT, 10.0))
    reason = r"^static activations, and vLLM's own GEMM is the fastest$"
    with pytest.raises(taken.LeftToVllm, match=reason):
        decide(weight("dense"), static=True)
    assert decide(weight("dense")).plan.at(4096).candidate.backend == "vllm"


class TestPack:
    def pack(self, monkeypatch, scale, q=None, x_scale=None):
        monkeypatch.setattr(taken, "measured_ways", layers.ways_of(16))
        first = weight("6:8")
        return first, taken.pack(decide(first), first if q is None else q, scale, x_scale)

    def test_keeps_the_weight_and_one_scale_for_each_row(self, monkeypatch):
        q, packed = self.pack(monkeypatch, torch.full((16, 1), 0.02))
        assert torch.equal(packed.forms[0], q)
        assert torch.equal(packed.scale, torch.full((16,), 0.02))
        assert packed.x_scale is None

    def test_one_scale_for_all_rows(self, monkeypatch):
        _, packed = self.pack(monkeypatch, torch.tensor(0.5, dtype=torch.bfloat16))
        assert torch.equal(packed.scale, torch.full((16,), 0.5))
        assert packed.scale.is_contiguous()
        assert packed.scale.dtype is torch.float32

    def test_a_static_scale_has_one_dimension(self, monkeypatch):
        _, packed = self.pack(monkeypatch, torch.ones(16, 1), x_scale=torch.tensor(0.25))
        assert torch.equal(packed.x_scale, torch.tensor([0.25]))

    def test_weights_that_break_the_pattern_of_the_plan(self, hopper, monkeypatch):
        """They came again, as a trainer sends them, and nobody pruned them."""
        monkeypatch.setattr(taken, "prepared", lambda *arguments: None)
        monkeypatch.setattr("slidesparse.layers.ways.Native.refusal", lambda *arguments: None)
        hopper |= ways((NATIVE, 5.0))
        made = decide(weight("2:4", 64, 128))
        assert made.plan.forms == ("native",)
        with pytest.raises(PatternError, match="2:4"):
            taken.pack(made, weight("dense", 64, 128), torch.ones(64), None)
