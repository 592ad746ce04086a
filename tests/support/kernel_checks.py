"""What the tests of the kernels share: operands, poisoned outputs, and how results are compared."""

from __future__ import annotations

import kernel_oracle
import numpy as np
import torch

from slidesparse.pattern import Pattern

PATTERNS = [
    Pattern.parse(text)
    for text in ("dense", "2:4", "4:6", "6:8", "8:10", "10:12", "12:14", "14:16", "16:18")
]
QUANTISED = [torch.float8_e4m3fn, torch.int8]
FLOATS = [torch.bfloat16, torch.float16, torch.float32]
ACCUMULATORS = [torch.int32, *FLOATS]
EPS = 1e-6

MOST_STEPS = 1
MOST_DIFFERENT = 0.01
MOST_SCALE_ERROR = 1e-5
POISON = {1: 0xA5, 2: 0xFF, 4: 0xFF}
"""By element size; NaN in every floating dtype."""


def short(value: object) -> str:
    """A name for pytest, without "torch."."""
    return str(value).removeprefix("torch.")


def draw(
    m: int, k: int, dtype: torch.dtype, seed: int, device: str = "cpu", gap: int = 0
) -> torch.Tensor:
    """Normal rows [m, k], each of another magnitude, `gap` elements apart; int32: whole numbers."""
    generator = torch.Generator(device).manual_seed(seed + 7919 * m + k)
    out = torch.empty((m, k + gap), dtype=dtype, device=device)
    step = max(1, 2**26 // (k + gap))
    for start in range(0, m, step):
        part = out[start : start + step]
        values = torch.randn(part.shape, generator=generator, device=device)
        values *= 0.5 + torch.rand((part.shape[0], 1), generator=generator, device=device)
        part.copy_(values * 2**17 if dtype is torch.int32 else values)
    return out[:, :k]


def positive(size: int, seed: int, device: str = "cpu") -> torch.Tensor:
    """Scales [size] float32 between 0.005 and 0.015."""
    generator = torch.Generator(device).manual_seed(seed + size)
    return 0.005 + 0.01 * torch.rand(size, generator=generator, device=device)


class Poisoned:
    """An output amid memory that nobody may write to.

    Attributes:
        view: the output: `shape`, rows `gap` elements apart, filled with poison.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", gap: int = 0
    ) -> None:
        self._byte = POISON[dtype.itemsize]
        rows, columns = shape if len(shape) == 2 else (1, shape[0])
        size = (64 + rows * (columns + gap)) * dtype.itemsize + 64
        self._memory = torch.full((size,), self._byte, dtype=torch.uint8, device=device)
        self.view = self._cut(self._memory, shape, dtype, gap)
        self._shape, self._dtype, self._gap = shape, dtype, gap

    @staticmethod
    def _cut(
        memory: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, gap: int
    ) -> torch.Tensor:
        values = memory[: memory.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        start = 64
        if len(shape) == 1:
            return values[start : start + shape[0]]
        _, columns = shape
        return torch.as_strided(values, shape, (columns + gap, 1), start)

    def surroundings_are_intact(self) -> bool:
        """Whether every byte outside of the view still is poison."""
        memory = self._memory.clone()
        view = self._cut(memory, self._shape, self._dtype, self._gap)
        bytes_of(view).fill_(self._byte)
        return bool((memory == self._byte).all())


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    """The memory of x [..., n] as uint8 [..., n * itemsize]."""
    return x.view(torch.uint8)


def codes(q: torch.Tensor) -> torch.Tensor:
    """FP8 or INT8 values as integers of the same order, one apart where values are neighbours."""
    if q.dtype is torch.int8:
        return q.int()
    bits = bytes_of(q).int()
    return torch.where(bits >= 128, 128 - bits, bits)


def is_nan(q: torch.Tensor) -> torch.Tensor:
    """Which values of q are NaN, FP8 too."""
    if q.dtype is torch.float8_e4m3fn:
        return (bytes_of(q) & 0x7F) == kernel_oracle.FP8_NAN
    return q.isnan() if q.is_floating_point() else torch.zeros_like(q, dtype=torch.bool)


def undone(q: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    """q * scale in float64, as NumPy."""
    return (q.double() * scale.double()[:, None]).cpu().numpy()


def assert_same_bits(got: torch.Tensor, want: torch.Tensor) -> None:
    """Both are the same in every bit; NaN equals NaN whatever its sign and payload."""
    assert got.dtype is want.dtype
    assert got.shape == want.shape
    nan = is_nan(got)
    assert torch.equal(nan, is_nan(want)), "NaN is elsewhere"
    size = got.element_size()
    same = (bytes_of(got) == bytes_of(want)).reshape(*got.shape, size).all(dim=-1) | nan
    wrong = (~same).nonzero()
    assert not len(wrong), (
        f"{len(wrong)} of {same.numel()} differ, the first at {wrong[0].tolist()}"
    )


def assert_close_codes(got: torch.Tensor, want: torch.Tensor) -> None:
    """At most one code of difference, in less than one value of a hundred; NaN where NaN is."""
    assert got.dtype is want.dtype
    assert got.shape == want.shape
    assert torch.equal(is_nan(got), is_nan(want)), "NaN is elsewhere"
    steps = (codes(got) - codes(want)).abs().masked_fill(is_nan(got), 0)
    different = int((steps > 0).sum())
    if steps.numel():
        assert int(steps.max()) <= MOST_STEPS
    assert different <= max(1, MOST_DIFFERENT * steps.numel()), f"{different} of {steps.numel()}"


def assert_close_scales(got: torch.Tensor, want: torch.Tensor) -> None:
    """Within 1e-5 relative; NaN and infinity where they are."""
    torch.testing.assert_close(got, want, rtol=MOST_SCALE_ERROR, atol=0, equal_nan=True)


def assert_rounded_once(got: torch.Tensor, want: torch.Tensor) -> None:
    """Values rounded once: the last place may differ in one of a hundred; NaN where NaN is."""
    assert got.dtype is want.dtype
    assert torch.equal(got.isnan(), want.isnan()), "NaN is elsewhere"
    different = int(((got != want) & ~got.isnan()).sum())
    assert different <= max(1, MOST_DIFFERENT * got.numel()), f"{different} of {got.numel()}"
    limit = 2 * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got, want, rtol=limit, atol=1e-3 * limit, equal_nan=True)


def assert_as_good_as_torch(got: np.ndarray, plain: np.ndarray, truth: np.ndarray) -> None:
    """Quack's rule: our largest error is at most twice that of plain torch in the same dtype."""
    ours, theirs = float(np.abs(got - truth).max()), float(np.abs(plain - truth).max())
    slack = 1e-6 * float(np.abs(truth).max())
    assert ours <= 2 * theirs + slack, f"error {ours:.3e}, and plain torch has {theirs:.3e}"
