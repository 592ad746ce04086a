"""What compute-sanitizer runs for test_native_run.py: small native GEMMs, checked as well.

With --traced every lane releases a stage: racecheck follows barriers lane by lane and would report
what the other lanes of a converged warp read.

Weights are packed on the CPU, so that next to nothing but the kernel itself is instrumented.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from slidesparse.kernels.native import NativeConfig, NativeGemm, PackedWeight, gemm, pack

FP8, INT8 = torch.float8_e4m3fn, torch.int8
BF16, INT32 = torch.bfloat16, torch.int32
N, K = 136, 512
"""Three slabs, the last one ragged; of 64 columns there are eight blocks."""

TINY = NativeConfig(slabs=1, tokens=8, stages=3, box=8, boxes=2, group=2)
SMALL = NativeConfig(slabs=2, tokens=32, stages=3, box=16, boxes=2, group=1)
CASES = [
    # Configuration, output, tokens; None for more tiles than multiprocessors.
    ("plain", SMALL, BF16, 50),
    ("more tiles than blocks", TINY, BF16, None),
    ("raw sums", SMALL, INT32, 50),
    (
        "cluster 2x1",
        NativeConfig(slabs=1, tokens=32, stages=3, cluster_w=2, box=16, boxes=2),
        BF16,
        50,
    ),
    (
        "cluster 1x2",
        NativeConfig(slabs=1, tokens=32, stages=3, cluster_x=2, box=16, boxes=2),
        BF16,
        50,
    ),
    ("K in 2", NativeConfig(slabs=1, tokens=32, stages=3, cluster_k=2, box=16, boxes=2), BF16, 50),
    (
        "K in 2, raw sums",
        NativeConfig(slabs=1, tokens=16, stages=2, cluster_k=2, box=8, boxes=2),
        INT32,
        20,
    ),
]


def weight(dtype: torch.dtype) -> tuple[torch.Tensor, PackedWeight]:
    """A 2:4 weight of small whole numbers on the CPU, and packed on the GPU."""
    w = torch.randint(-4, 5, (N, K))
    w.view(N, K // 4, 4)[:, :, ::3] = 0
    packed = pack(w.to(dtype))
    return w, PackedWeight(packed.data.cuda(), packed.n, packed.k, packed.dtype)


def check(name: str, config: NativeConfig, out: torch.dtype, m: int) -> None:
    """Sums of whole numbers this small are exact, and rounded once: every bit is known."""
    dtype = INT8 if out is INT32 else FP8
    w, packed = weight(dtype)
    x = torch.randint(-4, 5, (m, K))
    made = torch.full((m, N), -1, dtype=out, device="cuda")
    scales = (None, None) if out is INT32 else (torch.ones(N).cuda(), torch.ones(m).cuda())
    on_gpu = x.to(dtype).cuda()
    torch.cuda.synchronize()
    launch = NativeGemm(packed, config, out).bind(on_gpu, made, *scales)
    for _ in range(2):
        launch(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    want = (x.double() @ w.double().T).to(out)
    if not torch.equal(made.cpu(), want):
        raise SystemExit(f"{name}: the result is wrong")
    print(f"{name}: right")


def main() -> None:
    if sys.argv[1:] == ["--traced"]:
        plain = gemm.variant_of
        gemm.variant_of = lambda *arguments: replace(plain(*arguments), traced=True)
    torch.manual_seed(0)
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    for name, config, out, m in CASES:
        check(name, config, out, m or config.tokens * (sms // 2))


if __name__ == "__main__":
    main()
