"""Each M bucket runs what was measured fastest, scales and lift counted; nobody gets slower."""

from __future__ import annotations

from dataclasses import replace

import layer_plans as plans
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_plans import (
    CUBLASLT,
    CUSPARSELT,
    INT_MM,
    NATIVE,
    REFERENCE,
    SCALED_MM,
    TORCHAO,
    measured,
    race,
    shape_of,
    steps_of,
)

from slidesparse.candidate import Candidate
from slidesparse.kernel_problem import bucket_k
from slidesparse.layers import LayerPlan, plan_layer
from slidesparse.layers.planning import SETTLED, LayerShape, Timed, _faster
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, Scales

GPU = torch.device("cuda", 0)
FP8 = shape_of()
INT8 = FP8._replace(dtype=DType.INT8)
OTHER_NATIVE = Candidate("native", {**plans.SMALL, "group": 4}, sparse=True)


def planned(shape: LayerShape, cache, *results, memory_format="fastest") -> LayerPlan:
    """File results, then plan."""
    cache.put_many(results)
    return plan_layer(shape, GPU, memory_format)


def raced_at(shape: LayerShape, *times: tuple[int, dict[Candidate, float]]):
    """One race for each M."""
    return [race(shape, m, by_candidate) for m, by_candidate in times]


class TestChoice:
    def test_dense_wins_where_it_is_faster(self, hopper):
        made = planned(FP8, hopper, race(FP8, 16, {NATIVE: 9.0, CUBLASLT: 8.0, SCALED_MM: 8.5}))
        assert steps_of(made) == [(16, CUBLASLT)]
        assert made.forms == ("dense",)
        assert (made.n, made.k, made.pattern) == (256, 512, FP8.pattern)
        assert (made.dtype, made.out) == (DType.FP8, DType.BF16)

    def test_sparse_wins_where_it_is_faster(self, hopper):
        made = planned(FP8, hopper, race(FP8, 16, {NATIVE: 6.0, CUBLASLT: 8.0, SCALED_MM: 8.5}))
        assert steps_of(made) == [(16, NATIVE)]
        assert made.forms == ("native",)

    @pytest.mark.parametrize(
        ("sparse_us", "sparse_spread", "dense_spread", "wins"),
        [
            (98.0, 0.0, 4.0, CUBLASLT),  # Exactly half the spread is no difference.
            (97.9, 0.0, 4.0, NATIVE),
            (98.0, 4.0, 0.0, CUBLASLT),  # The spread of either counts.
            (97.9, 3.9, 1.0, NATIVE),
            (100.0, 0.0, 0.0, CUBLASLT),
        ],
    )
    def test_a_gain_inside_the_spread_is_none(
        self, hopper, sparse_us, sparse_spread, dense_spread, wins
    ):
        ways = (measured(NATIVE, sparse_us, sparse_spread), measured(CUBLASLT, 100.0, dense_spread))
        made = planned(FP8, hopper, plans.raced(plans.problem_of(FP8, 16), *ways))
        assert steps_of(made) == [(16, wins)]

    def test_between_dense_ways_the_faster_one_runs_whatever_the_spread(self, hopper):
        made = planned(FP8, hopper, race(FP8, 16, {SCALED_MM: 8.0, CUBLASLT: 7.9}, spread=4.0))
        assert steps_of(made) == [(16, CUBLASLT)]

    def test_sparse_alone_runs(self, hopper):
        assert steps_of(planned(FP8, hopper, race(FP8, 16, {NATIVE: 6.0}))) == [(16, NATIVE)]

    def test_defaults_of_the_race_take_part(self, hopper):
        """The baseline and the defaults may not be among the finalists."""
        result = race(FP8, 16, {NATIVE: 9.0})
        with_default = replace(result, defaults=(measured(SCALED_MM, 8.0),))
        assert steps_of(planned(FP8, hopper, with_default)) == [(16, SCALED_MM)]
        with_baseline = replace(with_default, baseline=measured(CUBLASLT, 7.0))
        assert steps_of(planned(FP8, hopper, with_baseline)) == [(16, CUBLASLT)]

    @given(
        st.lists(st.tuples(st.booleans(), st.floats(1, 100), st.floats(0, 20)), min_size=1),
    )
    def test_nobody_gets_slower(self, drawn):
        """What runs is the fastest dense way, or a sparse one that beats it beyond the spread."""
        ways = [
            Timed(Candidate("w", {"i": i}, sparse), us, spread)
            for i, (sparse, us, spread) in enumerate(drawn)
        ]
        chosen = next(way for way in ways if way.candidate == _faster(ways))
        dense = [way for way in ways if not way.candidate.sparse]
        sparse = [way for way in ways if way.candidate.sparse]
        rivals = sparse if chosen.candidate.sparse else dense
        assert chosen.us == min(way.us for way in rivals)
        if chosen.candidate.sparse and dense:
            best = min(dense, key=lambda way: way.us)
            assert best.us - chosen.us > max(best.spread_us, chosen.spread_us) / 2


class TestLift:
    """Sparse ways wait for a quantisation that writes K' columns and not K."""

    RACE = race(FP8, 64, {NATIVE: 80.0, CUBLASLT: 90.0})

    @pytest.mark.parametrize(
        ("lifted", "plain", "wins"),
        [
            (12.0, 4.0, NATIVE),
            (15.0, 4.0, CUBLASLT),
            (14.0, 4.0, CUBLASLT),  # A tie is no gain.
            (4.0, 12.0, NATIVE),
        ],
    )
    def test_what_the_lift_costs_more_is_added(self, hopper, lifted, plain, wins):
        hopper.put_kernels(
            [
                plans.quantise_time(FP8, 64, lifted),
                plans.quantise_time(FP8, 64, plain, pattern=DENSE),
            ]
        )
        assert steps_of(planned(FP8, hopper, self.RACE)) == [(64, wins)]

    def test_a_lift_that_was_measured_faster_is_no_bonus(self, hopper):
        hopper.put_kernels(
            [
                plans.quantise_time(FP8, 64, 1.0),
                plans.quantise_time(FP8, 64, 50.0, pattern=DENSE),
            ]
        )
        made = planned(FP8, hopper, race(FP8, 64, {NATIVE: 91.0, CUBLASLT: 90.0}))
        assert steps_of(made) == [(64, CUBLASLT)]

    @pytest.mark.parametrize("which", [FP8.pattern, DENSE])
    def test_half_of_the_difference_says_nothing(self, hopper, which):
        hopper.put_kernels([plans.quantise_time(FP8, 64, 500.0, pattern=which)])
        assert steps_of(planned(FP8, hopper, self.RACE)) == [(64, NATIVE)]

    def test_another_bucket_of_m_says_nothing(self, hopper):
        hopper.put_kernels(
            [
                plans.quantise_time(FP8, 128, 500.0),
                plans.quantise_time(FP8, 128, 4.0, pattern=DENSE),
            ]
        )
        assert steps_of(planned(FP8, hopper, self.RACE)) == [(64, NATIVE)]

    @pytest.mark.parametrize(("lifted", "wins"), [(26.0, NATIVE), (30.0, CUBLASLT)])
    def test_times_of_another_k_of_the_bucket_go_with_the_width(self, hopper, lifted, wins):
        """Tuned at K = 640, asked for at 528: 26 us become 21.45, and 30 become 24.75."""
        shape = FP8._replace(k=528)
        assert bucket_k(528) == bucket_k(640)
        hopper.put_kernels(
            [
                plans.quantise_time(shape, 64, lifted, k=640),
                plans.quantise_time(shape, 64, 16.0, pattern=DENSE, k=640),
            ]
        )
        made = planned(shape, hopper, race(shape, 64, {NATIVE: 80.0, CUBLASLT: 90.0}))
        assert steps_of(made) == [(64, wins)]


class TestResults:
    """Which of the cache's results speak for a layer."""

    def test_a_layer_with_a_bias_uses_a_result_without(self, hopper):
        shape = FP8._replace(bias=True)
        assert steps_of(planned(shape, hopper, race(FP8, 16, {NATIVE: 6.0}))) == [(16, NATIVE)]
        assert steps_of(planned(shape, hopper, race(shape, 16, {SCALED_MM: 8.0}))) == [
            (16, SCALED_MM)
        ], "its own result is better"
        assert steps_of(plan_layer(FP8, GPU)) == [(16, NATIVE)]

    def test_a_float16_layer_uses_a_bfloat16_result(self, hopper):
        shape = FP8._replace(out=DType.FP16)
        assert steps_of(planned(shape, hopper, race(FP8, 16, {NATIVE: 6.0}))) == [(16, NATIVE)]
        assert steps_of(planned(shape, hopper, race(shape, 16, {CUBLASLT: 8.0}))) == [
            (16, CUBLASLT)
        ]

    def test_ways_that_lack_the_output_are_left_out(self, hopper):
        """Neither cuBLASLt with both scales nor the native kernel gives float32."""
        shape = FP8._replace(out=DType.FP32)
        times = {NATIVE: 6.0, CUBLASLT: 7.0, SCALED_MM: 9.0}
        assert steps_of(planned(shape, hopper, race(FP8, 16, times))) == [(16, SCALED_MM)]

    def test_the_output_counts_more_than_the_bias(self, hopper):
        shape = FP8._replace(bias=True)
        fp16 = shape._replace(out=DType.FP16)
        made = planned(
            *(shape, hopper),
            *(race(fp16, 16, {SCALED_MM: 5.0}), race(FP8, 16, {NATIVE: 6.0})),
        )
        assert steps_of(made) == [(16, NATIVE)]

    def test_the_patterns_race_counts_before_a_dense_one(self, hopper):
        """Times of different races, and of weights with other zeros, are not compared."""
        dense = FP8._replace(pattern=DENSE)
        made = planned(
            *(FP8, hopper),
            *(race(dense, 16, {CUBLASLT: 1.0}), race(FP8, 16, {NATIVE: 6.0, SCALED_MM: 8.0})),
            race(dense, 64, {CUBLASLT: 2.0}),
        )
        assert steps_of(made) == [(16, NATIVE), (64, CUBLASLT)]

    @pytest.mark.parametrize(
        ("last", "sparse_us", "counts"),
        [
            (SETTLED, 6.0, False),
            (SETTLED, 7.9, True),
            (SETTLED, 9.0, True),
            (SETTLED // 2, 6.0, True),
        ],
        ids=["sparse won", "sparse won narrowly", "dense won", "too few tokens"],
    )
    def test_dense_races_past_a_large_one_that_sparse_won(self, hopper, last, sparse_us, counts):
        """A search for 65,536 tokens that its budget ended before the sparse problems."""
        own = race(FP8, last, {NATIVE: sparse_us, SCALED_MM: 8.0})
        dense = race(FP8._replace(pattern=DENSE), 4 * SETTLED, {CUBLASLT: 1.0})
        made = planned(FP8, hopper, own, dense)
        won = NATIVE if sparse_us < 8.0 else SCALED_MM
        assert steps_of(made) == [(last, won), *([(4 * SETTLED, CUBLASLT)] if counts else [])]

    def test_a_dense_layer_uses_dense_results_only(self, hopper):
        dense = FP8._replace(pattern=DENSE)
        made = planned(
            *(dense, hopper),
            *(race(FP8, 16, {NATIVE: 1.0}), race(dense, 16, {CUBLASLT: 5.0, SCALED_MM: 4.0})),
        )
        assert steps_of(made) == [(16, SCALED_MM)]

    @pytest.mark.parametrize(
        "other",
        [
            FP8._replace(n=512),
            FP8._replace(k=1024),
            FP8._replace(pattern=Pattern.parse("4:6")),
            FP8._replace(dtype=DType.INT8),
        ],
        ids=["n", "k", "pattern", "dtype"],
    )
    def test_another_layers_results_say_nothing(self, hopper, other, caplog):
        made = planned(FP8, hopper, race(other, 16, {NATIVE: 1.0}))
        assert steps_of(made) == [(16, SCALED_MM)]
        assert "no tuning result" in caplog.text

    def test_results_with_one_scale_say_nothing(self, hopper, caplog):
        problem = plans.problem_of(FP8, 16, Scales.TENSOR)
        made = planned(FP8, hopper, plans.raced(problem, measured(NATIVE, 1.0)))
        assert steps_of(made) == [(16, SCALED_MM)]
        assert "no tuning result" in caplog.text

    def test_int8_runs_what_its_races_found(self, hopper):
        made = planned(INT8, hopper, race(INT8, 16, {NATIVE: 6.0, INT_MM: 8.0, CUBLASLT: 7.0}))
        assert steps_of(made) == [(16, NATIVE)]
        dense = planned(INT8, hopper, race(INT8, 16, {NATIVE: 9.0, INT_MM: 8.0, CUBLASLT: 7.0}))
        assert steps_of(dense) == [(16, CUBLASLT)]


class TestBuckets:
    def test_each_m_runs_its_buckets_winner(self, hopper):
        times = (16, {NATIVE: 6.0}), (256, {SCALED_MM: 8.0}), (4096, {CUBLASLT: 9.0})
        made = planned(FP8, hopper, *raced_at(FP8, *times))
        wanted = {
            **{1: NATIVE, 16: NATIVE, 17: SCALED_MM, 64: SCALED_MM, 256: SCALED_MM},
            **{257: CUBLASLT, 4096: CUBLASLT, 4097: CUBLASLT, 65536: CUBLASLT},
        }
        assert {m: made.at(m).candidate for m in wanted} == wanted

    def test_an_odd_m_that_was_searched_stands_for_its_bucket(self, hopper):
        assert steps_of(planned(FP8, hopper, race(FP8, 129, {NATIVE: 6.0}))) == [(256, NATIVE)]

    def test_neighbours_that_run_the_same_are_one_step(self, hopper):
        times = [(m, {NATIVE: 6.0}) for m in (16, 64, 256)]
        times += [(1024, {CUBLASLT: 9.0}), (4096, {NATIVE: 9.0}), (16384, {OTHER_NATIVE: 9.0})]
        made = planned(FP8, hopper, *raced_at(FP8, *times))
        assert steps_of(made) == [
            (256, NATIVE),
            (1024, CUBLASLT),
            (4096, NATIVE),
            (16384, OTHER_NATIVE),
        ]

    def test_a_bucket_of_which_nothing_runs_here_is_served_by_the_next(self, hopper):
        times = (16, {NATIVE: 6.0}), (256, {TORCHAO: 1.0}), (1024, {CUBLASLT: 8.0})
        made = planned(FP8, hopper, *raced_at(FP8, *times))
        assert steps_of(made) == [(16, NATIVE), (1024, CUBLASLT)]
        assert made.at(256).candidate == CUBLASLT


class TestSmallest:
    """One form of the weight, the smaller one if every bucket has a way that reads it."""

    BOTH = (16, {NATIVE: 6.0, SCALED_MM: 8.0}), (256, {NATIVE: 9.0, CUBLASLT: 8.0})

    def test_fastest_keeps_both_forms_where_both_win(self, hopper):
        made = planned(FP8, hopper, *raced_at(FP8, *self.BOTH))
        assert made.forms == ("dense", "native")

    def test_one_packed_form_though_two_win(self, hopper):
        """The one that takes less time in all."""
        both = (16, {NATIVE: 6.0, CUSPARSELT: 7.0}), (256, {NATIVE: 9.0, CUSPARSELT: 6.0})
        made = planned(FP8, hopper, *raced_at(FP8, *both))
        assert made.forms == ("cusparselt", "native")
        made = planned(FP8, hopper, *raced_at(FP8, *both), memory_format="smallest")
        assert steps_of(made) == [(256, CUSPARSELT)]

    def test_the_packed_form_that_every_bucket_has(self, hopper):
        races = raced_at(FP8, *self.BOTH, (1024, {NATIVE: 50.0, CUSPARSELT: 1.0}))
        made = planned(FP8, hopper, *races, memory_format="smallest")
        assert steps_of(made) == [(1024, NATIVE)]

    def test_packed_everywhere_though_slower(self, hopper):
        made = planned(FP8, hopper, *raced_at(FP8, *self.BOTH), memory_format="smallest")
        assert steps_of(made) == [(256, NATIVE)]

    def test_dense_everywhere_if_some_bucket_has_no_sparse_way(self, hopper):
        races = raced_at(FP8, *self.BOTH, (1024, {SCALED_MM: 9.0, TORCHAO: 2.0}))
        made = planned(FP8, hopper, *races, memory_format="smallest")
        assert steps_of(made) == [(16, SCALED_MM), (256, CUBLASLT), (1024, SCALED_MM)]

    @pytest.mark.parametrize(
        ("pattern", "form"), [("2:4", "native"), ("4:6", "native"), ("8:10", "dense")]
    )
    def test_packed_only_where_that_is_smaller(self, hopper, pattern, form):
        """8:10 takes K' = 8/5 K, of which 5/8 are kept: no less than dense."""
        shape = FP8._replace(pattern=Pattern.parse(pattern), k=960)
        races = raced_at(shape, *self.BOTH)
        assert planned(shape, hopper, *races, memory_format="smallest").forms == (form,)

    def test_torch_runs_if_nothing_measured_reads_the_one_form(self, hopper):
        """8:10 must stay dense, and only sparse ways were measured."""
        shape = FP8._replace(pattern=Pattern.parse("8:10"), k=960)
        made = planned(shape, hopper, race(shape, 64, {NATIVE: 6.0}), memory_format="smallest")
        assert steps_of(made) == [(16, SCALED_MM)]


class TestRunnable:
    """What was measured is planned only where it runs."""

    @pytest.mark.parametrize("gone", [TORCHAO, Candidate("cpu", {"path": "float32"})])
    def test_backends_without_a_way_are_left_out(self, hopper, gone):
        made = planned(FP8, hopper, race(FP8, 16, {gone: 1.0, NATIVE: 6.0, SCALED_MM: 8.0}))
        assert steps_of(made) == [(16, NATIVE)]

    def test_without_a_compiler_dense_runs(self, hopper, monkeypatch):
        monkeypatch.setattr("slidesparse.kernels.native.program.missing", lambda: "no NVRTC")
        made = planned(FP8, hopper, race(FP8, 16, {NATIVE: 1.0, CUBLASLT: 7.0}))
        assert steps_of(made) == [(16, CUBLASLT)]

    def test_without_cublaslt_torch_runs(self, hopper, monkeypatch):
        where = "slidesparse.layers.cublaslt_way.binding_version"
        monkeypatch.setattr(where, lambda name: ("none", "not installed"))
        made = planned(FP8, hopper, race(FP8, 16, {CUBLASLT: 1.0, SCALED_MM: 7.0}))
        assert steps_of(made) == [(16, SCALED_MM)]

    def test_without_cusparselt_the_next_way_runs(self, hopper, monkeypatch):
        times = race(FP8, 16, {CUSPARSELT: 1.0, NATIVE: 6.0, SCALED_MM: 7.0})
        assert steps_of(planned(FP8, hopper, times)) == [(16, CUSPARSELT)]
        where = "slidesparse.layers.cusparselt_way.binding_version"
        monkeypatch.setattr(where, lambda name: ("none", "not installed"))
        assert steps_of(plan_layer(FP8, GPU)) == [(16, NATIVE)]

    def test_a_configuration_of_another_version_is_left_out(self, hopper):
        old = Candidate("native", {**plans.SMALL, "colour": 3}, sparse=True)
        wide = Candidate("native", {**plans.SMALL, "tokens": 100}, sparse=True)
        long = Candidate("native", {**plans.SMALL, "blocks": 8, "stages": 2}, sparse=True)
        shape = FP8._replace(k=64)  # K' = 96 is stored in four blocks, and a stage of eight in two.
        made = planned(shape, hopper, race(shape, 16, {old: 1.0, wide: 2.0, long: 3.0, NATIVE: 6}))
        assert steps_of(made) == [(16, NATIVE)]

    def test_odd_sizes_run_plain_torch(self, hopper):
        """N = 100 is no multiple of 16 or 8, K = 100 none of 16."""
        for shape in (FP8._replace(n=100), INT8._replace(n=100)):
            made = planned(shape, hopper, race(shape, 16, {NATIVE: 1.0, CUBLASLT: 2.0}))
            assert steps_of(made) == [(16, REFERENCE)]
        narrow = FP8._replace(k=100)
        made = planned(narrow, hopper, race(narrow, 16, {NATIVE: 1.0, SCALED_MM: 0.5}))
        assert steps_of(made) == [(16, NATIVE)], "K' is padded, whatever K is"
