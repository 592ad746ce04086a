"""The order of a sweep's processes, and what is left of one that was interrupted."""

from __future__ import annotations

from sweep_records import BLOCK, OURS, OURS_SIX, STOCK, make_sweep

from slidesparse.bench.sweep.job import Mode, System
from slidesparse.bench.sweep.plan import Key, Known, Turn, due
from slidesparse.problem import DType


def labels(turns: tuple[Turn, ...]) -> list[str]:
    return [f"{turn.keys[0].label} {','.join(map(str, turn.job.ms))}" for turn in turns]


def test_stock_comes_first_and_last_and_the_largest_m_last() -> None:
    turns = make_sweep().turns()
    expected = ["stock 512,4096", "ours dense 512,4096", "ours 6:8 512,4096"]
    assert labels(turns) == [*expected, "stock again 512,4096"]
    assert [turn.again for turn in turns] == [False, False, False, True]
    job = turns[2].job
    assert (job.prompt, job.outputs, job.repeats, job.seed) == (1024, 128, 3, 7)
    assert (job.variant.system, str(job.variant.pattern)) == (System.OURS, "6:8")


def test_stock_on_the_same_weights_runs_beside_ours() -> None:
    assert [turn.keys[0].label for turn in make_sweep(same_weights=True).turns()] == [
        *("stock", "ours dense", "stock 6:8", "ours 6:8", "stock again"),
    ]


def test_each_model_dtype_and_mode_has_baselines_of_its_own() -> None:
    sweep = make_sweep(dtypes=(DType.FP8, DType.INT8), modes=(Mode.EAGER, Mode.GRAPHS))
    turns = sweep.turns()
    assert len(turns) == 16
    blocks = list(dict.fromkeys(str(turn.block) for turn in turns))
    assert blocks == [
        *("qwen2.5-7b fp8_e4m3 eager", "qwen2.5-7b fp8_e4m3 graphs"),
        *("qwen2.5-7b int8 eager", "qwen2.5-7b int8 graphs"),
    ]
    keys = [key for turn in turns for key in turn.keys]
    assert len(keys) == len(set(keys)) == 32


def test_what_is_measured_is_not_measured_again() -> None:
    turns = make_sweep().turns()
    every = [key for turn in turns for key in turn.keys]
    assert due(turns, Known(set(every))) == ()
    assert due(turns, Known(set())) == turns
    only = [Key(BLOCK, STOCK, True, m) for m in (512, 4096)]
    left = due(turns, Known(set(every) - set(only)))
    assert labels(left) == ["stock again 512,4096"]


def test_what_is_measured_later_is_followed_by_stock_at_the_same_m() -> None:
    """Or a drift between two sessions would not show."""
    turns = make_sweep().turns()
    every = [key for turn in turns for key in turn.keys]
    missing = {Key(BLOCK, OURS_SIX, False, 4096)}
    left = due(turns, Known(set(every) - missing))
    assert labels(left) == ["ours 6:8 4096", "stock again 4096"]


def test_another_block_is_left_alone() -> None:
    turns = make_sweep(dtypes=(DType.INT8, DType.FP8)).turns()
    every = [key for turn in turns for key in turn.keys]
    missing = {Key(BLOCK, OURS, False, 512)}
    left = due(turns, Known(set(every) - missing))
    assert [turn.block.dtype for turn in left] == [DType.FP8, DType.FP8]


def test_a_comparison_that_another_gpu_has_begun_starts_anew() -> None:
    """And one that is complete stays."""
    turns = make_sweep(dtypes=(DType.INT8, DType.FP8)).turns()
    every = {key for turn in turns for key in turn.keys}
    missing = Key(BLOCK, OURS, False, 512)
    left = due(turns, Known(every - {missing}, elsewhere=every - {missing}))
    assert {turn.block.dtype for turn in left} == {DType.FP8}
    assert labels(left) == labels(make_sweep().turns())
    assert due(turns, Known(every, elsewhere=every)) == ()


def test_what_failed_for_good_is_tried_again_here_and_not_on_another_gpu() -> None:
    turns = make_sweep().turns()
    every = {key for turn in turns for key in turn.keys}
    failed = {Key(BLOCK, OURS_SIX, False, 4096)}
    here = Known(every - failed, settled=failed)
    assert labels(due(turns, here)) == ["ours 6:8 4096", "stock again 4096"]
    assert due(turns, Known(every - failed, elsewhere=every - failed, settled=failed)) == ()


def test_what_this_gpu_has_begun_goes_on() -> None:
    turns = make_sweep().turns()
    every = {key for turn in turns for key in turn.keys}
    elsewhere = {Key(BLOCK, STOCK, False, 4096)}
    left = due(turns, Known(every - {Key(BLOCK, OURS_SIX, False, 4096)}, elsewhere))
    assert labels(left) == ["stock 4096", "ours 6:8 4096", "stock again 4096"]


def test_keys_and_turns_name_themselves() -> None:
    last = make_sweep().turns()[-1]
    assert str(last) == "qwen2.5-7b fp8_e4m3 graphs stock again"
    assert str(last.key(512)) == "qwen2.5-7b fp8_e4m3 graphs stock again M=512"
