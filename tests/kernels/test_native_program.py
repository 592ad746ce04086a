"""Compiling without a GPU: the cache on disk, what goes wrong with it, and what is refused."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from native_checks import FP8, INT8, SMALL, no_compiler, offered

from slidesparse.errors import CandidateError, DeviceError
from slidesparse.kernels.native import program
from slidesparse.kernels.native.config import NativeConfig
from slidesparse.kernels.native.program import (
    checked,
    compile_variant,
    compile_variants,
    is_loaded,
    launch_config,
    load,
    missing,
)
from slidesparse.kernels.native.source import KERNEL, Variant
from slidesparse.problem import DType

PLAIN = Variant(SMALL, *FP8, False)
SECONDS_FROM_DISK = 0.1


@pytest.fixture
def nvrtc():
    """Skip where nothing can be compiled."""
    if no_compiler():
        pytest.skip(no_compiler())


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """The cache folder of this test."""
    monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(folder):
    """Files of compiled code."""
    return sorted(path for path in (folder / "entries").rglob("*") if path.is_file())


def assert_code(made):
    """It is a cubin with the kernel."""
    code = bytes(made.code)
    assert code.startswith(b"\x7fELF")
    assert KERNEL.encode() in code


def digest(made):
    """Of the code. No assertion compares ObjectCodes: their repr hangs where there is no driver."""
    return hashlib.sha256(made.code).hexdigest()


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class TestCompile:
    @pytest.mark.parametrize(
        "variant",
        [
            PLAIN,
            Variant(SMALL, *FP8, True),
            Variant(SMALL, *INT8, False),
            Variant(SMALL, DType.INT8, DType.FP16, False),
            Variant(NativeConfig(1, 16, 2, 2, box=8, boxes=2, cluster_k=2), *FP8, False),
            Variant(NativeConfig(1, 8, 2, 2, box=8, boxes=2), *FP8, False),
            Variant(NativeConfig(1, 256, 2, 2, box=64, boxes=2), DType.INT8, DType.BF16, True),
            Variant(NativeConfig(4, 64, 2, 3, box=16, boxes=2, cluster_w=4), *FP8, False),
            Variant(NativeConfig(1, 64, 8, 2, box=64, boxes=2, cluster_x=8), *INT8, False),
            Variant(NativeConfig(1, 32, 2, 16, box=32, boxes=8), *FP8, False),
            Variant(NativeConfig(1, 32, 2, 2, box=16, boxes=2, resident=4), *FP8, False),
        ],
        ids=lambda v: f"{v.dtype}-{v.out}-{v.config.label}".replace(" ", "-"),
    )
    def test_the_ends_of_every_range(self, nvrtc, tmp_path, variant, caplog):
        assert_code(compile_variant(variant, tmp_path))
        assert not warnings(caplog)

    def test_what_is_offered(self, nvrtc, tmp_path, request):
        random_ = random.Random(int(request.config.getoption("--seed")))
        variants = random_.sample(offered(*FP8), 3) + random_.sample(offered(*INT8), 3)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            made = list(pool.map(lambda variant: compile_variant(variant, tmp_path), variants))
        count = len({digest(one) for one in made})
        assert count == len(entries(tmp_path)) == len(set(variants))

    def test_the_same_again_comes_from_disk(self, nvrtc, tmp_path):
        first = digest(compile_variant(PLAIN, tmp_path))
        (entry,) = entries(tmp_path)
        written = entry.stat().st_mtime_ns
        start = time.perf_counter()
        again = digest(compile_variant(PLAIN, tmp_path))
        assert time.perf_counter() - start < SECONDS_FROM_DISK
        assert again == first
        assert entries(tmp_path) == [entry]
        assert entry.stat().st_mtime_ns == written

    def test_another_raster_is_the_same_code(self, nvrtc, tmp_path):
        for config in (SMALL, replace(SMALL, group=32), replace(SMALL, along_x=True, group=4)):
            compile_variant(replace(PLAIN, config=config), tmp_path)
        assert len(entries(tmp_path)) == 1

    def test_other_code_is_another_entry(self, nvrtc, tmp_path):
        for variant in (PLAIN, replace(PLAIN, odd=True), replace(PLAIN, out=DType.FP16)):
            compile_variant(variant, tmp_path)
        assert len(entries(tmp_path)) == 3

    def test_it_lies_in_the_cache_folder_unless_told(self, nvrtc, elsewhere):
        compile_variant(PLAIN)
        assert len(entries(elsewhere / "native")) == 1
        assert [path.name for path in elsewhere.iterdir()] == ["native"]

    def test_the_oldest_leave_when_the_disk_is_full(self, nvrtc, tmp_path, monkeypatch):
        monkeypatch.setattr(program, "DISK_LIMIT", 60_000)
        variants = [replace(PLAIN, config=replace(SMALL, stages=stages)) for stages in range(2, 8)]
        for variant in variants:
            assert_code(compile_variant(variant, tmp_path))
        kept = entries(tmp_path)
        assert 1 <= len(kept) < len(variants)
        assert sum(path.stat().st_size for path in kept) <= 60_000

    def test_threads_may_compile_the_same(self, nvrtc, tmp_path):
        barrier = threading.Barrier(4)

        def compiled(_):
            barrier.wait(timeout=60)
            return digest(compile_variant(PLAIN, tmp_path))

        with ThreadPoolExecutor(4) as pool:
            made = set(pool.map(compiled, range(4)))
        assert len(made) == len(entries(tmp_path)) == 1
        assert made == {digest(compile_variant(PLAIN, tmp_path))}
        assert not any((tmp_path / "tmp").iterdir())

    def test_processes_may_compile_the_same(self, nvrtc, tmp_path):
        code = """if True:
            import hashlib, sys, time
            from pathlib import Path
            from slidesparse.kernels.native.config import NativeConfig
            from slidesparse.kernels.native.program import compile_variant
            from slidesparse.kernels.native.source import Variant
            from slidesparse.problem import DType
            folder, name = Path(sys.argv[1]), sys.argv[2]
            config = NativeConfig(1, 32, 2, 4, box=32, boxes=2, group=1)
            (folder / name).touch()
            end = time.monotonic() + 60
            while len(list(folder.glob("ready-*"))) < 2 and time.monotonic() < end:
                time.sleep(0.001)
            variant = Variant(config, DType.FP8, DType.BF16, False)
            for _ in range(20):
                made = compile_variant(variant, folder / "code")
            print(hashlib.sha256(made.code).hexdigest())
        """
        command = [sys.executable, "-c", code, str(tmp_path)]
        running = [
            subprocess.Popen(
                [*command, f"ready-{number}"],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        results = [process.communicate(timeout=120) for process in running]
        assert [process.returncode for process in running] == [0, 0], results
        assert len(entries(tmp_path / "code")) == 1
        whole = digest(compile_variant(PLAIN, tmp_path / "code"))
        assert [out.strip() for out, _ in results] == 2 * [whole]


class TestSideBySide:
    def test_repetitions_are_compiled_once(self, nvrtc, elsewhere):
        others = [replace(PLAIN, odd=True), replace(PLAIN, out=DType.FP16)]
        assert compile_variants([PLAIN, *others, PLAIN, PLAIN]) == []
        assert len(entries(elsewhere / "native")) == 3

    def test_the_reasons_come_in_order(self, nvrtc, elsewhere):
        configs = [NativeConfig(1, tokens, 2, 2, box=8, boxes=2) for tokens in (40, 56, 72)]
        bad = [Variant(config, *INT8, False) for config in configs]
        reasons = compile_variants([bad[0], PLAIN, *bad[1:]])
        assert [reason.split()[0] for reason in reasons] == ["64x40x128", "64x56x128", "64x72x128"]
        assert len(entries(elsewhere / "native")) == 1

    def test_nothing_to_compile(self, elsewhere):
        assert compile_variants([]) == []
        assert not elsewhere.exists()


class TestDisk:
    """Compiled code that cannot be kept costs a warning."""

    def assert_one_warning(self, caplog, reason):
        (message,) = warnings(caplog)
        assert re.search(f"^compiled kernels are not kept: .*{reason}", message), message

    @pytest.mark.parametrize("below", ["", "native"])
    def test_a_folder_that_is_a_file(self, nvrtc, tmp_path, caplog, below):
        (tmp_path / "file").write_text("mine")
        assert_code(compile_variant(PLAIN, tmp_path / "file" / below))
        self.assert_one_warning(caplog, "(File exists|Not a directory)")
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("name", ["entries", "tmp"])
    def test_a_file_where_the_cache_has_a_folder(self, nvrtc, tmp_path, caplog, name):
        (tmp_path / name).touch()
        assert_code(compile_variant(PLAIN, tmp_path))
        self.assert_one_warning(caplog, "File exists")

    def test_a_folder_that_nobody_may_write(self, nvrtc, tmp_path, caplog, monkeypatch):
        """Root may write everywhere, so the system's answer is made up."""

        def refuse(*arguments, **options):
            raise PermissionError(13, "Permission denied", str(tmp_path))

        monkeypatch.setattr("tempfile.mkstemp", refuse)
        assert_code(compile_variant(PLAIN, tmp_path))
        self.assert_one_warning(caplog, "Permission denied")
        assert not entries(tmp_path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_read_only_folder(self, nvrtc, tmp_path, caplog):
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        assert_code(compile_variant(PLAIN, folder))
        self.assert_one_warning(caplog, "Permission denied")

    def test_a_full_disk(self, nvrtc, tmp_path, caplog, monkeypatch):
        def refuse(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", refuse)
        assert_code(compile_variant(PLAIN, tmp_path))
        self.assert_one_warning(caplog, "No space left on device")
        assert not entries(tmp_path)

    def test_an_entry_that_is_a_folder(self, nvrtc, tmp_path, caplog):
        compile_variant(PLAIN, tmp_path)
        (entry,) = entries(tmp_path)
        entry.unlink()
        entry.mkdir()
        assert_code(compile_variant(PLAIN, tmp_path))
        self.assert_one_warning(caplog, "Is a directory")

    @pytest.mark.parametrize("damage", ["empty", "noise", "half", "zeros at the end"])
    def test_a_damaged_entry_is_compiled_again(self, nvrtc, tmp_path, caplog, damage):
        """The cache hands out what it finds; a damaged cubin fails only when it is loaded."""
        code = digest(compile_variant(PLAIN, tmp_path))
        (entry,) = entries(tmp_path)
        kept = entry.read_bytes()
        half = len(kept) // 2
        entry.write_bytes(
            {
                "empty": b"",
                "noise": b"this is no cubin",
                "half": kept[:half],
                "zeros at the end": kept[:half] + bytes(len(kept) - half),
            }[damage]
        )
        again = digest(compile_variant(PLAIN, tmp_path))
        assert again == code, "the damaged code was handed out"
        assert len(warnings(caplog)) == 1
        (entry,) = entries(tmp_path)
        assert entry.stat().st_size == len(kept), "the damaged code was kept"
        assert digest(compile_variant(PLAIN, tmp_path)) == code
        assert len(warnings(caplog)) == 1


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("#error broken on purpose", "broken on purpose"),
            ('extern "C" __global__ void sparse_gemm() { nowhere(); }', "nowhere"),
            ('static_assert(false, "the host\'s model is the layout");', "the host's model"),
            (
                'extern "C" __global__ void sparse_gemm() { asm volatile("wgmma.bad;"); }',
                "modifier '.bad'",
            ),
        ],
        ids=["preprocessor", "name", "assertion", "assembler"],
    )
    def test_the_compilers_first_message_is_passed_on(
        self, nvrtc, tmp_path, monkeypatch, text, reason
    ):
        monkeypatch.setattr(program, "source", lambda variant: text)
        with pytest.raises(CandidateError) as raised:
            compile_variant(PLAIN, tmp_path)
        message = str(raised.value)
        assert message.startswith(f"{SMALL.label} does not compile: ")
        assert reason in message
        assert not re.search(r"\n|\\n|NVRTC_ERROR", message), "more than the one line"
        assert not entries(tmp_path)

    def test_a_broken_source_is_a_candidates_fault(self, nvrtc, tmp_path, monkeypatch):
        monkeypatch.setattr(program, "source", lambda variant: "this is not C++")
        with pytest.raises(CandidateError, match=f"^{SMALL.label} does not compile: .") as raised:
            compile_variant(PLAIN, tmp_path)
        assert raised.value.__cause__ is not None
        assert not entries(tmp_path)

    def test_a_token_count_that_int8_lacks_does_not_compile(self, nvrtc, tmp_path):
        config = NativeConfig(slabs=1, tokens=40, stages=2, box=8, boxes=2)
        assert_code(compile_variant(Variant(config, *FP8, False), tmp_path))
        with pytest.raises(CandidateError, match=r"^64x40x128 .* does not compile"):
            compile_variant(Variant(config, *INT8, False), tmp_path)

    def test_the_layout_is_checked_against_the_hosts_model(self, nvrtc, tmp_path, monkeypatch):
        monkeypatch.setattr(
            NativeConfig, "shared_bytes", lambda self, scaled=True: 1024 * (1 + scaled)
        )
        with pytest.raises(CandidateError, match="does not compile"):
            compile_variant(PLAIN, tmp_path)


class TestMissing:
    def test_nothing_where_it_compiles(self, nvrtc):
        """NVRTC needs no GPU and no driver."""
        assert missing() == ""

    @pytest.mark.parametrize("name", ["cuda.core", "cuda.core.utils"])
    def test_without_cuda_core(self, monkeypatch, name):
        pytest.importorskip("cuda.core")
        monkeypatch.setitem(sys.modules, name, None)
        message = missing()
        assert message.startswith("cuda.core does not import (")
        assert name in message

    def test_with_a_cuda_core_that_is_too_old(self, monkeypatch):
        utils = pytest.importorskip("cuda.core.utils")
        old = SimpleNamespace(**{**vars(utils), "__name__": "cuda.core.utils"})
        del old.FileStreamProgramCache
        monkeypatch.setitem(sys.modules, "cuda.core.utils", old)
        assert re.match(r"cuda.core does not import \(.*FileStreamProgramCache", missing())

    def test_without_nvrtc(self, monkeypatch):
        core = pytest.importorskip("cuda.core")

        def refuse(*arguments, **options):
            raise RuntimeError("libnvrtc.so.13 was not found\nsearched everywhere")

        monkeypatch.setattr(core, "Program", refuse)
        assert missing() == "NVRTC does not load (RuntimeError: libnvrtc.so.13 was not found)"

    def test_an_error_without_words(self, monkeypatch):
        """`missing` raises nothing."""
        core = pytest.importorskip("cuda.core")

        def refuse(*arguments, **options):
            raise RuntimeError

        monkeypatch.setattr(core, "Program", refuse)
        assert missing().startswith("NVRTC does not load (RuntimeError")


class TestLoad:
    @pytest.mark.parametrize(
        ("capability", "spelled"), [((8, 0), "SM 8.0"), ((8, 9), "SM 8.9"), ((10, 0), "SM 10.0")]
    )
    def test_other_gpus_are_refused(self, monkeypatch, capability, spelled):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(program, "compile_variant", None)
        with pytest.raises(DeviceError) as raised:
            load(PLAIN, 3)
        wanted = f"the native kernel is for SM 9.0 (Hopper) and cuda:3 is {spelled}"
        assert str(raised.value) == wanted
        assert not is_loaded(PLAIN, 3)


class TestDriver:
    """The driver's structures, which need no driver."""

    @pytest.fixture(autouse=True)
    def _bindings(self):
        pytest.importorskip("cuda.bindings.driver", reason="launches are described to the driver")

    @pytest.mark.parametrize("overlap", [False, True])
    @pytest.mark.parametrize(
        ("sides", "cluster"),
        [({}, 1), ({"cluster_w": 2, "cluster_x": 2}, 4), ({"cluster_k": 2, "box": 16}, 2)],
        ids=str,
    )
    def test_a_launch(self, sides, cluster, overlap):
        from cuda.bindings import driver

        config = replace(SMALL, slabs=2, **sides)
        launch = launch_config(Variant(config, *FP8, False), 5000, 7, overlap)
        grid = (launch.gridDimX, launch.gridDimY, launch.gridDimZ)
        block = (launch.blockDimX, launch.blockDimY, launch.blockDimZ)
        assert (grid, block, launch.sharedMemBytes) == ((7 * cluster, 1, 1), (384, 1, 1), 5000)
        kinds = driver.CUlaunchAttributeID
        given = {attribute.id: attribute.value for attribute in launch.attrs}
        serial = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        dimension = kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        assert len(given) == launch.numAttrs == overlap + (cluster > 1)
        if overlap:
            assert given[serial].programmaticStreamSerializationAllowed == 1
        if cluster > 1:
            dim = given[dimension].clusterDim
            assert (dim.x, dim.y, dim.z) == (cluster, 1, 1)

    def test_answers(self):
        from cuda.bindings import driver

        fine = driver.CUresult.CUDA_SUCCESS
        assert checked((fine, 5)) == 5
        assert checked((fine,)) is None
        with pytest.raises(CandidateError, match="says CUDA_ERROR_INVALID_VALUE"):
            checked((driver.CUresult.CUDA_ERROR_INVALID_VALUE, 5))
