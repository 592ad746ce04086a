"""On a GPU slide gives the CPU's bytes, and a layer of Qwen2.5-7B takes milliseconds."""

import pytest
import torch

from slidesparse.pattern import Pattern
from slidesparse.slide import detect_pattern, prune_magnitude, slide, unslide

LARGE = (37888, 3584)
FAMILY = [Pattern(2 * n - 2, 2 * n) for n in range(2, 10)]
MOST_MS = 50.0
MOST_EXTRA = 256 * 2**20


def pruned(pattern, shape, dtype, seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    w = torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
    return (30 * prune_magnitude(w, pattern)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", FAMILY, ids=str)
def test_the_bytes_are_those_of_the_cpu(pattern, dtype, seed):
    w = pruned(pattern, (130, 1234), dtype, seed)
    slid = slide(w, pattern)
    wanted = slide(w.cpu(), pattern)
    assert torch.equal(slid.cpu().view(torch.uint8), wanted.view(torch.uint8))
    assert torch.equal(unslide(slid, pattern, 1234).float(), w.float())
    assert detect_pattern(w) == detect_pattern(w.cpu())


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(6, 8), Pattern(8, 10)], ids=str)
def test_a_large_weight_is_quick_and_takes_little_memory(pattern, seed):
    w = pruned(pattern, LARGE, torch.float8_e4m3fn, seed)
    slid = slide(w, pattern)
    ways = {
        "slide": lambda: slide(w, pattern),
        "unslide": lambda: unslide(slid, pattern, LARGE[1]),
    }
    for name, function in ways.items():
        function()  # Loads its kernels, and the allocator asks the driver for memory.
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        made = function()
        stop.record()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before - made.numel()
        taken = start.elapsed_time(stop)
        assert taken <= MOST_MS, f"{name} took {taken:.1f} ms, more than {MOST_MS}"
        assert extra <= MOST_EXTRA, f"{name} held {extra} bytes more, {MOST_EXTRA} are allowed"
        del made
    assert detect_pattern(w) == pattern
