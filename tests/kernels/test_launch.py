"""Checks of operands, dtypes and devices; the options and the grid of a launch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from slidesparse.errors import DeviceError, KernelError, PatternError
from slidesparse.kernel_problem import Op
from slidesparse.kernels import launch as module
from slidesparse.kernels.config import Config, default_config
from slidesparse.kernels.launch import (
    QUANTISED,
    Scaled,
    check_output,
    check_q,
    check_quantised,
    check_rows,
    check_scale_out,
    check_vector,
    config_for,
    launch,
    loops,
    pattern_of,
    programs,
)
from slidesparse.pattern import DENSE, Pattern

ROWS = torch.ones(4, 16)
META = torch.ones(4, 16, device="meta")


class Kernel:
    """Notes what it is launched with."""

    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.calls.append((grid, arguments, options))


def on_gpu(m=4, index=0):
    """Rows that say they are on a GPU."""
    device = SimpleNamespace(index=index)
    return SimpleNamespace(is_cuda=True, device=device, shape=(m, 16), dtype=torch.bfloat16)


@pytest.fixture
def capability(monkeypatch):
    """Set the compute capability of every GPU."""

    def set_to(value):
        monkeypatch.setattr(module, "_capability", lambda index: value)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    return set_to


def test_the_device_has_to_be_one():
    for check in (
        lambda: check_vector(META[0], "weight", 16, ROWS),
        lambda: check_output(META, "q", (4, 16), ROWS),
        lambda: check_scale_out(META[:, 0].contiguous(), 4, ROWS),
        lambda: Scaled(META[0, :4], ROWS[0]).check(ROWS),
        lambda: Scaled(ROWS[0, :4], META[0]).check(ROWS),
        lambda: Scaled(ROWS[0, :4], ROWS[0], META[0]).check(ROWS),
    ):
        with pytest.raises(KernelError, match=r"on meta and the rows are on cpu"):
            check()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float8_e5m2])
def test_only_two_dtypes_are_quantised_to(dtype):
    with pytest.raises(KernelError, match=f"cannot quantise to {dtype}; use"):
        check_quantised(dtype, ROWS)


@pytest.mark.parametrize("version", [(8, 0), (8, 6)])
def test_a_gpu_without_fp8_is_told_to_use_int8(capability, version):
    capability(version)
    expected = rf"FP8 needs SM 8\.9 and .* is SM {version[0]}\.{version[1]}; use torch\.int8"
    with pytest.raises(DeviceError, match=expected):
        check_quantised(torch.float8_e4m3fn, on_gpu())
    check_quantised(torch.int8, on_gpu())


@pytest.mark.parametrize("version", [(8, 9), (9, 0), (12, 0)])
def test_a_gpu_with_fp8_is_taken(capability, version):
    capability(version)
    for dtype in QUANTISED:
        check_quantised(dtype, on_gpu())


def test_a_given_width_has_to_fit():
    check_rows(ROWS, "x", (torch.float32,), 16)
    with pytest.raises(KernelError, match="x has 16 columns, and 8 are needed"):
        check_rows(ROWS, "x", (torch.float32,), 8)


def test_one_column_may_have_any_stride():
    column = torch.ones(4, 16)[:, 3:4].T.T
    check_rows(column, "x", (torch.float32,))
    check_output(column, "q", (4, 1), ROWS)


def test_lifted_rows_are_an_even_number_of_bytes_apart_if_there_are_two():
    pattern = Pattern.parse("6:8")
    width = pattern.expanded_k(16)
    one, two = (
        torch.empty_strided((rows, width), (width + 1, 1), dtype=torch.int8) for rows in (1, 2)
    )
    assert width % 2 == 0
    check_q(one, 1, 16, pattern, ROWS)
    check_q(two, 2, width, DENSE, ROWS)
    with pytest.raises(KernelError, match=f"rows are {width + 1} bytes apart; .* multiples of 2"):
        check_q(two, 2, 16, pattern, ROWS)


def test_scales_for_one_or_for_all():
    one, row, column = torch.ones(1), torch.ones(4), torch.ones(16)
    for scaled, strides in (
        (Scaled(row, column), (1, 1)),
        (Scaled(one, column), (0, 1)),
        (Scaled(row, one), (1, 0)),
        (Scaled(one, one), (0, 0)),
    ):
        scaled.check(ROWS)
        assert scaled.strides == strides


@pytest.mark.parametrize("text", ["dense", "2:4", "6:8", "16:18"])
def test_a_block_names_its_pattern(text):
    pattern = Pattern.parse(text)
    assert pattern_of(pattern.block) == pattern


@pytest.mark.parametrize("block", [0, 2, 5])
def test_other_blocks_are_refused(block):
    with pytest.raises(PatternError):
        pattern_of(block)


def test_the_cpu_runs_the_default():
    want = default_config(Op.QUANTIZE, 16, 4)
    assert config_for(Op.QUANTIZE, ROWS, 16, torch.int8, DENSE) == want


def test_a_launch_on_the_cpu_overlaps_nothing():
    kernel = Kernel()
    launch(kernel, ROWS, Config(64, 2, overlap=True), (4,), ROWS, 7, N=16)
    [(grid, arguments, options)] = kernel.calls
    assert grid == (4,)
    assert arguments[1] == 7
    wanted = {"N": 16, "OVERLAP": False, "num_warps": 2, "enable_fp_fusion": False}
    assert {name: options[name] for name in wanted} == wanted
    assert "launch_pdl" not in options


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize(("version", "can"), [((8, 9), False), ((9, 0), True), ((10, 0), True)])
def test_only_hopper_and_later_overlap(capability, version, can, wanted):
    capability(version)
    kernel = Kernel()
    launch(kernel, on_gpu(), Config(64, 2, overlap=wanted), (4,))
    options = kernel.calls[0][2]
    assert options["OVERLAP"] is (can and wanted)
    assert options.get("launch_pdl", False) is (can and wanted)


def test_a_launch_on_another_gpu_makes_it_current(capability, monkeypatch):
    capability((9, 0))
    entered = []

    class Guard:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device.index)

        def __exit__(self, *exception):
            return None

    monkeypatch.setattr(torch.cuda, "device", Guard)
    kernel = Kernel()
    launch(kernel, on_gpu(index=1), Config(64, 2), (4,))
    launch(kernel, on_gpu(index=0), Config(64, 2), (4,))
    assert entered == [1]
    assert len(kernel.calls) == 2


def test_the_grid(monkeypatch):
    monkeypatch.setattr(module, "_sm_count", lambda index: 132)
    for config, m, count, looping in (
        (Config(64, 1), 7, 7, False),
        (Config(64, 1, rows=3), 7, 3, True),
        (Config(64, 1, per_sm=2), 7, 7, True),
        (Config(64, 1, per_sm=2), 4096, 264, True),
    ):
        assert programs(on_gpu(m), config) == count
        assert loops(config) is looping
    assert programs(ROWS, Config(64, 1, rows=2, per_sm=2)) == 2
