"""Taking a layer over: what is raced against vLLM's own GEMM, what is kept, what is refused."""

from __future__ import annotations

import layer_checks as checks
import pytest
import torch
import vllm_layers as layers

from slidesparse import vllm_gemm
from slidesparse.candidate import Candidate
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


class TestPattern:
    def weight(self, pattern):
        w = checks.linear_of(16, 96, pattern).weight.detach()
        return (w * 50).round().clamp(-127, 127).to(torch.int8)

    @pytest.mark.parametrize("pattern", ["2:4", "4:6", "6:8", "8:10", "dense"])
    def test_is_the_sparsest_that_the_weight_satisfies(self, pattern):
        assert taken.pattern_of(self.weight(pattern), Options()) == Pattern.parse(pattern)

    def test_runs_dense_if_it_is_not_allowed(self):
        only = Options(patterns=frozenset({TWO}))
        assert taken.pattern_of(self.weight("6:8"), only) == DENSE
        assert taken.pattern_of(self.weight("2:4"), only) == TWO

    def test_k_that_is_cut_inside_a_block_is_still_seen(self):
        """A tensor-parallel shard of 6:8 whose K is no multiple of 8: its blocks are other ones."""
        w = self.weight("6:8")
        assert taken.pattern_of(w[:, :48].contiguous(), Options()) == SIX
        cut = taken.pattern_of(w[:, 4:52].contiguous(), Options())
        assert cut.zeros < SIX.zeros  # No longer 6:8: dense, or what the weight is by chance.


class TestTake:
    def take(self, monkeypatch, out=torch.bfloat16, scale=None, shape=(16, 96)):
        monkeypatch.setattr(taken, "measured_ways", layers.ways_of(16, 4096))
        w = checks.linear_of(*shape, "6:8").weight.detach()
        q = (w * 50).round().clamp(-127, 127).to(torch.int8)
        given = torch.full((shape[0], 1), 0.02) if scale is None else scale
        return q, taken.take(q, given, None, out, False, Options())

    def test_keeps_the_weight_and_one_scale_for_each_row(self, monkeypatch):
        q, made = self.take(monkeypatch)
        assert torch.equal(made.forms[0], q)
        assert torch.equal(made.scale, torch.full((16,), 0.02))
        assert made.x_scale is None

    def test_one_scale_for_all_rows(self, monkeypatch):
        _, made = self.take(monkeypatch, scale=torch.tensor(0.5, dtype=torch.bfloat16))
        assert torch.equal(made.scale, torch.full((16,), 0.5))
        assert made.scale.is_contiguous()
        assert made.scale.dtype is torch.float32

    def test_says_what_it_expects(self, monkeypatch):
        _, made = self.take(monkeypatch)
        assert made.times(4096) == (10.0, 10.0)
        assert made.times(64) is None

    def test_leaves_results_that_it_cannot_give(self, monkeypatch):
        with pytest.raises(taken.LeftToVllm, match=r"^it gives torch.float32$"):
            self.take(monkeypatch, out=torch.float32)

    def test_leaves_what_was_not_measured(self, monkeypatch):
        q = torch.zeros(16, 96, dtype=torch.int8)
        with pytest.raises(taken.LeftToVllm, match=r"^no tuning result$"):
            taken.take(q, torch.ones(16), None, torch.bfloat16, False, Options())

    def test_leaves_what_is_no_matrix(self, monkeypatch):
        q = torch.zeros(2, 16, 96, dtype=torch.int8)
        with pytest.raises(taken.LeftToVllm, match=r"^a weight of shape \(2, 16, 96\)$"):
            taken.take(q, torch.ones(16), None, torch.bfloat16, False, Options())
