"""One safetensors file: what the library wrote is read back, damage is one clear line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_checkpoints import write_raw

from slidesparse.checkpoint import safetensors_file
from slidesparse.checkpoint.safetensors_file import (
    header_dtype,
    pieces,
    read_header,
    read_tensor,
    torch_dtype,
)
from slidesparse.errors import CheckpointError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
BYTES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool]
INTS = [torch.int64, torch.int32, torch.int16, torch.uint64, torch.uint32, torch.uint16]
ONE = {"a": {"dtype": "U8", "shape": [2, 2], "data_offsets": [0, 4]}}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", FLOATS + BYTES + INTS, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (7, 129), (3, 2, 5)])
def test_reads_what_the_library_wrote(
    tmp_path: Path, seed: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    # Odd sizes before and after: the tensor does not start where its elements are aligned.
    made = (torch.rand(shape) * 50).to(dtype)
    odd = torch.arange(3, dtype=torch.uint8)
    path = tmp_path / "a.safetensors"
    save_file({"a": odd, "made": made, "z": odd.clone()}, path)
    stored = read_header(path)["made"]
    assert (stored.shape, torch_dtype(stored.dtype)) == (shape, dtype)
    assert header_dtype(dtype) == stored.dtype
    read = read_tensor(stored)
    assert (read.dtype, read.shape) == (dtype, made.shape)
    assert torch.equal(bits(read), bits(made))
    assert b"".join(pieces(stored)) == bits(made).numpy().tobytes()


def test_rows_are_those_of_the_whole(tmp_path: Path, seed: int) -> None:
    made = torch.randn(13, 3, 5)
    save_file({"made": made}, tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")["made"]
    for rows in (slice(0, 13), slice(4, 5), slice(12, 99), slice(3, 3), slice(-2, None)):
        assert torch.equal(read_tensor(stored, rows), made[rows])


def test_pieces_are_small(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "PIECE_BYTES", 64)
    made = torch.randn(50)
    save_file({"made": made}, tmp_path / "a.safetensors")
    found = list(pieces(read_header(tmp_path / "a.safetensors")["made"]))
    assert [len(piece) for piece in found] == [64, 64, 64, 8]
    assert b"".join(found) == made.numpy().tobytes()


def test_one_tensor_of_a_huge_file_reads_only_that(tmp_path: Path) -> None:
    # A hole of 1 TB: whoever reads it all does not come back.
    huge, small = 1 << 40, b"\1\2\3\4"
    header = {
        "huge": {"dtype": "I8", "shape": [1 << 20, 1 << 20], "data_offsets": [0, huge]},
        "small": {"dtype": "I8", "shape": [4], "data_offsets": [huge, huge + 4]},
    }
    path = write_raw(tmp_path / "a.safetensors", header)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size + huge)
        file.write(small)
    tensors = read_header(path)
    assert read_tensor(tensors["small"]).tolist() == [1, 2, 3, 4]
    assert read_tensor(tensors["huge"], slice(77, 79)).shape == (2, 1 << 20)


def entry(
    start: int, end: int, shape: list[int] | None = None, dtype: str = "U8"
) -> dict[str, object]:
    shape = [end - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


DAMAGED = {
    "not JSON": (b"{'a': 1}", b"", "its header is not JSON"),
    "not text": (b"\xff\xfe\xfd", b"", "its header is not JSON"),
    "too deep": (b"[" * 100_000, b"", "recursion"),
    "a list": ([1, 2], b"", "its header is not a JSON object"),
    "a name twice": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"1",
        "its header names 'a' twice",
    ),
    "no offsets": ({"a": {"dtype": "U8", "shape": [1]}}, b"1", "entry of a is not dtype, shape"),
    "an entry that is none": ({"a": 5}, b"", "entry of a is not dtype, shape"),
    "a negative size": ({"a": entry(0, 1, [-1])}, b"1", "entry of a is malformed"),
    "a size that is none": ({"a": entry(0, 1, ["1"])}, b"1", "entry of a is malformed"),  # type: ignore[list-item]
    "three offsets": (
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}},
        b"1",
        "the byte range [0, 1, 2] of a is none",
    ),
    "a range backwards": ({"a": entry(4, 0, [0])}, b"1234", "the byte range [4, 0] of a is none"),
    "too few bytes": (
        {"a": entry(0, 4, [3], "F32")},
        b"1234",
        "a is F32 [3], which is 12 bytes, and its byte range holds 4",
    ),
    "an overlap": ({"a": entry(0, 4), "b": entry(2, 6)}, b"123456", "b overlaps a"),
    "a hole": ({"a": entry(0, 2), "b": entry(4, 6)}, b"123456", "2 bytes before b belong to"),
    "too little data": (ONE, b"123", "it is truncated: its tensors need"),
    "too much data": (ONE, b"12345", "1 bytes after the last tensor"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    header, data, reason = DAMAGED[case]
    path = write_raw(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged: ")
    assert message.endswith("; download or copy it again")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has 0 bytes, too few for a header"),
        (b"1234567", "it has 7 bytes, too few for a header"),
        (b"\xff" * 20, "its header claims 18446744073709551615 bytes; it is no safetensors file"),
        ((500).to_bytes(8, "little") + b"{}", "the header needs 508 bytes and the file has 10"),
    ],
)
def test_a_file_without_a_whole_header(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        read_header(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*gone.safetensors: No such file"):
        read_header(tmp_path / "gone.safetensors")


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    stored = read_header(path)["a"]
    os.truncate(path, path.stat().st_size - 40)
    for read in (read_tensor, lambda it: list(pieces(it))):
        with pytest.raises(CheckpointError, match="ends inside a: it was changed or truncated"):
            read(stored)  # type: ignore[operator]
    path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*a.safetensors: No such file"):
        read_tensor(stored)


def test_dtypes_that_are_not_read(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", {"a": entry(0, 3, [6], "F4")}, b"123")
    stored = read_header(path)["a"]
    with pytest.raises(CheckpointError, match="dtype F4 is not one of F64"):
        read_tensor(stored)
    with pytest.raises(CheckpointError, match=r"cannot hold dtype torch\.complex64"):
        header_dtype(torch.complex64)


@settings(max_examples=150)
@given(data=st.data())
def test_any_damage_is_an_error_of_ours_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    header = {"a": entry(0, 8, [2, 2], "F16"), "b": entry(8, 9, [], "U8")}
    content = bytearray(write_raw(path, header, b"123456789").read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        tensors = read_header(path)
        for stored in tensors.values():
            read_tensor(stored)
    except CheckpointError:
        return
    # What was accepted holds together by an independent count.
    assert sum(stored.bytes for stored in tensors.values()) == path.stat().st_size - 8 - len(
        json.dumps(header)
    )
