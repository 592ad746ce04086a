"""TuningCache between real processes: rivals lose nothing, the killed leave a readable file."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slidesparse.cache import TuningCache
from slidesparse.errors import CacheError

WRITERS = 4
ENTRIES = 12
KILLS = 8

WRITER = """
import resource, signal, sys
from dataclasses import replace
from pathlib import Path
from slidesparse.cache import TuningCache
from slidesparse.cache_file import GEMM, KERNELS, read_document

seed, root, first, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
document = read_document(seed)
section = GEMM if document.of(GEMM) else KERNELS
(result,) = document.of(section).values()
cache = TuningCache(root, document.fingerprint)
print("ready", flush=True)
sys.stdin.readline()
if len(sys.argv) > 5:
    # The kernel kills this process in the middle of a write, when a file reaches that size.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]),) * 2)
for n in range(first, first + count):
    if section is GEMM:
        cache.put(replace(result, problem=replace(result.problem, n=n)))
    else:
        cache.put_kernels([replace(result, problem=replace(result.problem, k=64 << n))])
    print(n, flush=True)
"""

HOLDER = """
import sys, time, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def start(children: list[subprocess.Popen[str]], code: str, *arguments: object) -> Any:
    """Start a child that runs `code` and wait for its first line."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    children.append(child)
    assert child.stdout is not None
    if not child.stdout.readline():
        pytest.fail(child.communicate()[1])
    return child


@pytest.fixture
def seed_file(cache: TuningCache, tmp_path: Path, make_result: Any) -> Path:
    """A cache file with one result, from which children make theirs."""
    donor = TuningCache(tmp_path / "donor", cache.fingerprint)
    donor.put(make_result())
    return donor.path


def test_writers_at_the_same_time_lose_nothing(
    cache: TuningCache, seed_file: Path, children: list[subprocess.Popen[str]]
) -> None:
    for number in range(WRITERS):
        start(children, WRITER, seed_file, cache.root, 1 + number * ENTRIES, ENTRIES)
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert (child.returncode, errors) == (0, "")
    sizes = sorted(result.problem.n for result in cache.user_entries().values())
    assert sizes == list(range(1, WRITERS * ENTRIES + 1))
    assert sorted(path.name for path in cache.directory.iterdir()) == [
        "fingerprint.json",
        "gemm.json",
    ]


def test_writers_of_both_kinds_at_the_same_time_lose_nothing(
    cache: TuningCache,
    seed_file: Path,
    children: list[subprocess.Popen[str]],
    tmp_path: Path,
    make_kernel: Any,
) -> None:
    donor = TuningCache(tmp_path / "kernel donor", cache.fingerprint)
    donor.put_kernels([make_kernel()])
    for file in (seed_file, donor.kernels_path):
        for number in range(WRITERS // 2):
            start(children, WRITER, file, cache.root, 1 + number * ENTRIES, ENTRIES)
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert (child.returncode, errors) == (0, "")
    numbers = list(range(1, WRITERS // 2 * ENTRIES + 1))
    assert sorted(result.problem.n for result in cache.user_entries().values()) == numbers
    widths = sorted(result.problem.k for result in cache.user_kernels().values())
    assert widths == [64 << number for number in numbers]
    assert sorted(path.name for path in cache.directory.iterdir()) == [
        "fingerprint.json",
        "gemm.json",
        "kernels.json",
    ]


def test_killed_writer_leaves_a_readable_cache(
    cache: TuningCache,
    seed_file: Path,
    children: list[subprocess.Popen[str]],
    caplog: pytest.LogCaptureFixture,
    make_result: Any,
    seed: int,
) -> None:
    chance = random.Random(seed)
    first = 1
    for _ in range(KILLS):
        child = start(children, WRITER, seed_file, cache.root, first, 10**6)
        child.stdin.write("go\n")
        child.stdin.flush()
        child.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.1))
        child.kill()
        reported = [int(line) for line in child.communicate()[0].split() if line]
        last = reported[-1] if reported else first
        cache.refresh()
        sizes = sorted(result.problem.n for result in cache.user_entries().values())
        # All that was reported is there; the one that was being written may be.
        assert sizes in (list(range(1, last + 1)), list(range(1, last + 2)))
        first = sizes[-1] + 1
    assert not caplog.messages
    cache.put(make_result())
    assert not list(cache.directory.glob("*.tmp-*"))


@pytest.mark.parametrize("written", [0.01, 0.5, 0.99])
def test_writer_killed_in_the_middle_of_a_write(
    cache: TuningCache,
    seed_file: Path,
    children: list[subprocess.Popen[str]],
    caplog: pytest.LogCaptureFixture,
    make_result: Any,
    written: float,
) -> None:
    cache.put_many([make_result(n=n) for n in (101, 102, 103)])
    before = cache.path.read_bytes()
    limit = max(1, int(len(before) * written))
    child = start(children, WRITER, seed_file, cache.root, 1, 1, limit)
    child.communicate("go\n", timeout=60)
    assert child.returncode == -signal.SIGXFSZ
    assert cache.path.read_bytes() == before
    (left,) = cache.directory.glob("*.tmp-*")
    assert left.stat().st_size == limit
    cache.put(make_result(n=104))
    assert not left.exists()
    assert len(cache.user_entries()) == 4
    assert not caplog.messages


def test_lock_of_a_dead_process_does_not_block(
    cache: TuningCache, children: list[subprocess.Popen[str]], make_result: Any
) -> None:
    cache.root.mkdir()
    lock = cache.root / f"{cache.fingerprint.slug}.lock"
    child = start(children, HOLDER, lock)
    child.kill()
    child.communicate()
    lock.touch()
    cache = TuningCache(cache.root, cache.fingerprint, lock_timeout=5.0)
    cache.put(make_result())
    assert len(cache.user_entries()) == 1


def test_lock_of_a_living_process_is_an_error_in_time(
    cache: TuningCache, children: list[subprocess.Popen[str]], make_result: Any
) -> None:
    cache.root.mkdir()
    lock = cache.root / f"{cache.fingerprint.slug}.lock"
    start(children, HOLDER, lock)
    cache = TuningCache(cache.root, cache.fingerprint, lock_timeout=0.3)
    with pytest.raises(CacheError) as caught:
        cache.put(make_result())
    assert str(caught.value) == (
        f"another process has held {lock} for 0.3 s; wait for it to end, "
        "or choose another place with --cache-dir or SLIDESPARSE_CACHE_DIR"
    )
    assert not cache.user_entries()
