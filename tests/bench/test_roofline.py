"""The roofline's arithmetic, by hand on small problems, and on what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import bench_records
import pytest
import search_records
from hypothesis import given
from hypothesis import strategies as st
from report_records import read_all, write_results

from slidesparse.bench.roofline import (
    GEMM,
    LINEAR,
    Machine,
    Place,
    compulsory_bytes,
    machines_of,
    places_of,
)
from slidesparse.devices import Fingerprint
from slidesparse.gpus import find_gpu
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, GemmProblem, Scales

SIX = Pattern.parse("6:8")
H200 = Fingerprint("NVIDIA H200", 90, 132, 143156)


def problem(m: int, n: int, k: int, pattern: Pattern = DENSE) -> GemmProblem:
    return GemmProblem(m, n, k, DType.FP8, DType.BF16, Scales.ROWCOL, pattern)


def test_each_operand_moves_once() -> None:
    assert compulsory_bytes(problem(2, 3, 8), False, False) == 2 * 8 + 3 * 8 + 2 * 3 * 2
    # The input of a whole linear is BF16.
    assert compulsory_bytes(problem(2, 3, 8), False, True) == 2 * 8 * 2 + 3 * 8 + 2 * 3 * 2
    # Six of eight weights, each with two bits of position.
    sparse = compulsory_bytes(problem(2, 3, 8, SIX), True, False)
    assert sparse == 2 * 8 + 3 * 6 * 1.25 + 2 * 3 * 2
    assert compulsory_bytes(problem(2, 3, 8, SIX), False, False) == 2 * 8 + 3 * 8 + 2 * 3 * 2


def place(m: int, sparse: bool, us: float = 1.0) -> Place:
    it = problem(m, 4096, 4096, SIX if sparse else DENSE)
    return Place("o of tiny", it, sparse, us, it.flops / compulsory_bytes(it, sparse, False))


def test_the_roof_is_the_lower_of_memory_and_arithmetic() -> None:
    machine = Machine(H200, find_gpu("h200"), None)
    peak, bandwidth = machine.spec.tflops["fp8"], machine.spec.bandwidth_gbs
    small, large = place(1, False), place(65536, False)
    assert machine.roof(small) == pytest.approx(small.intensity * bandwidth / 1e3)
    assert machine.roof(large) == peak
    assert machine.roof(place(65536, True)) == pytest.approx(peak * 4 / 3)
    assert machine.share(place(65536, False, us=1e6)) == pytest.approx(
        2 * 65536 * 4096 * 4096 / 1e12 / peak
    )


def test_a_gpu_without_the_dtype_has_no_roof() -> None:
    machine = Machine(H200, find_gpu("a100-80gb-sxm"), None)
    assert machine.roof(place(1, False)) is None
    assert machine.share(place(1, False)) is None


@given(m=st.integers(1, 2**17), n=st.integers(1, 2**15), blocks=st.integers(1, 4096))
def test_zeros_save_bytes_for_every_size(m: int, n: int, blocks: int) -> None:
    k = 8 * blocks
    sparse = compulsory_bytes(problem(m, n, k, SIX), True, False)
    dense = compulsory_bytes(problem(m, n, k), False, False)
    assert dense - sparse == pytest.approx(n * k * (1 - 0.75 * 1.25))


def test_places_of_files(tmp_path: Path) -> None:
    files = {file.path.stem: file for file in read_all(write_results(tmp_path))}
    (dense, sparse) = places_of(files["search"])
    assert dense[0] == sparse[0] == GEMM
    assert (dense[1].sparse, dense[1].us) == (False, 10.0)
    assert (sparse[1].sparse, sparse[1].us) == (True, 8.0)
    assert {what for what, _ in places_of(files["linear"])} == {LINEAR}
    # Of seven rows one has no time of ours.
    assert len(list(places_of(files["linear"]))) == 6
    assert list(places_of(files["kernels"])) == []


def test_machines_of_files(tmp_path: Path) -> None:
    files = read_all(write_results(tmp_path))
    (machine,) = machines_of(files)
    assert machine.spec.key == "h200"
    assert machine.copy_gbs == bench_records.CEILINGS.copy_gbs
    cpu = replace(search_records.make_record().fingerprint, name="A CPU", sm=0)
    assert machines_of([replace(file, fingerprint=cpu) for file in files]) == []
    assert machines_of([replace(file, fingerprint=None) for file in files]) == []


def test_nothing_that_was_measured_passes_its_roof(root: Path) -> None:
    names = ("kernels", "linear", "native_qwen2.5-7b_int8", "qwen2.5-7b-fp8")
    folder = root / "bench" / "results" / "nvidia-h200"
    files = read_all([folder / f"{name}.json" for name in names])
    (machine,) = machines_of(files)
    shares = [machine.share(it) for file in files for _, it in places_of(file)]
    assert len(shares) > 200
    assert min(share for share in shares if share is not None) > 0
    assert max(share for share in shares if share is not None) <= 1
