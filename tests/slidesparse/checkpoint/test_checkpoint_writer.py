"""ShardWriter: what it writes the library reads, and a file is there whole or not at all."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slidesparse.checkpoint.safetensors_file import read_header
from slidesparse.checkpoint.writer import ShardWriter, TensorSpec, size_text, unchanged
from slidesparse.errors import CheckpointError

SPECS = [
    TensorSpec("q", "F8_E4M3", (5, 3)),
    TensorSpec("flags", "BOOL", (3,)),
    TensorSpec("scale", "F32", (5, 1)),
    TensorSpec("one", "BF16", ()),
    TensorSpec("none", "I8", (0, 4)),
    TensorSpec("wide", "I64", (2,)),
]


def tensors() -> dict[str, torch.Tensor]:
    return {
        "q": torch.randn(5, 3).to(torch.float8_e4m3fn),
        "flags": torch.tensor([True, False, True]),
        "scale": torch.randn(5, 1),
        "one": torch.tensor(1.5, dtype=torch.bfloat16),
        "none": torch.empty(0, 4, dtype=torch.int8),
        "wide": torch.tensor([1 << 40, -1]),
    }


def write(path: Path, made: dict[str, torch.Tensor]) -> ShardWriter:
    with ShardWriter(path, SPECS) as writer:
        for name, tensor in made.items():
            writer.write(name, tensor)
    return writer


def test_the_library_reads_it(tmp_path: Path, seed: int) -> None:
    path, made = tmp_path / "a.safetensors", tensors()
    writer = write(path, made)
    read = load_file(path)
    assert read.keys() == made.keys()
    for name, tensor in made.items():
        assert read[name].dtype is tensor.dtype
        assert torch.equal(read[name].float(), tensor.float())
    assert writer.record is not None
    assert writer.record.bytes == path.stat().st_size
    for stored in read_header(path).values():
        elements = math.prod(stored.shape)
        assert stored.start % (stored.bytes // elements if elements else 1) == 0
    assert list(tmp_path.iterdir()) == [path]


def test_rows_and_bytes_come_in_any_order(tmp_path: Path, seed: int) -> None:
    whole, pieces, made = tmp_path / "a", tmp_path / "b", tensors()
    record = write(whole, made).record
    with ShardWriter(pieces, SPECS) as writer:
        for row in range(5):
            writer.write("scale", made["scale"][row])
            writer.write("q", made["q"][row : row + 1])
        for name in ("wide", "none", "flags"):
            writer.copy(read_header(whole)[name])
        writer.write_bytes("one", made["one"].view(torch.int16).numpy().tobytes())
    assert pieces.read_bytes() == whole.read_bytes()
    assert writer.record == record


def test_a_file_is_only_there_when_it_is_whole(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a"
    made = tensors()
    with pytest.raises(ValueError, match="wide was not written whole"):
        write(path, {name: it for name, it in made.items() if name != "wide"})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="q has 15 bytes, more came"):
        write(path, {**made, "q": torch.zeros(6, 3).to(torch.float8_e4m3fn)})
    with pytest.raises(TypeError, match=r"q is to be F8_E4M3, not torch.float32"):
        write(path, {**made, "q": torch.zeros(5, 3)})
    assert not list(tmp_path.iterdir())
    write(path, made)
    content = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), ShardWriter(path, SPECS):
        raise KeyboardInterrupt
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def full(code: int) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_disk_that_gives_out(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    made = tensors()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full(code))
        with pytest.raises(CheckpointError) as caught:
            write(tmp_path / "a", made)
    message = str(caught.value)
    assert message.startswith(f"cannot write {tmp_path / 'a'}")
    assert os.strerror(code) in message
    assert ("make room and run the same command again" in message) == (code != errno.EIO)
    assert not list(tmp_path.iterdir())
    write(tmp_path / "a", made)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_file_systems_that_reserve_nothing(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full(code))
    made = tensors()
    write(tmp_path / "a", made)
    assert torch.equal(load_file(tmp_path / "a")["scale"], made["scale"])


def test_a_real_limit_on_the_size_of_files(tmp_path: Path) -> None:
    program = f"""
import resource
from pathlib import Path
from slidesparse.checkpoint.writer import ShardWriter, TensorSpec
from slidesparse.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with ShardWriter(Path({str(tmp_path / "a")!r}), [TensorSpec("x", "U8", (20_000,))]) as writer:
        writer.write_bytes("x", bytes(20_000))
except CheckpointError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert "File too large; finished shards are kept: make room" in run.stdout
    assert "(20.1" in run.stdout
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write .*x/a.*: No such file or directory$"):
        write(tmp_path / "x" / "a", {})


def test_changes_are_noticed(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a"
    record = write(path, tensors()).record
    assert record is not None
    assert unchanged(path, SPECS, record)
    content = bytearray(path.read_bytes())
    for place in (len(content) - 1, 200, 8):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert not unchanged(path, SPECS, record), place
    path.write_bytes(content[:-1])
    assert not unchanged(path, SPECS, record)
    path.write_bytes(content)
    assert unchanged(path, SPECS, record)
    assert not unchanged(path, SPECS[1:], record)
    path.unlink()
    assert not unchanged(path, SPECS, record)


def test_sizes_in_words() -> None:
    sizes = (0, 999, 1000, 2_500_000, 7_620_000_000)
    assert list(map(size_text, sizes)) == ["0 bytes", "999 bytes", "1.00 kB", "2.50 MB", "7.62 GB"]
