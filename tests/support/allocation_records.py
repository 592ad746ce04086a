"""A result file of `slidesparse allocate` that nobody measured."""

from __future__ import annotations

from slidesparse.bench.allocation.record import AllocationRecord, GroupRow, OutcomeRow
from slidesparse.devices import Fingerprint


def make_record() -> AllocationRecord:
    row = GroupRow(
        block=0,
        name="o",
        linears=("model.layers.0.self_attn.o_proj",),
        n=64,
        k=48,
        us={"dense": 6.0, "6:8": 5.0},
        kl={"6:8": 0.02},
        increases={"6:8": -0.01},
        chosen="6:8",
    )
    dense = OutcomeRow("dense", 6.0, 1.0, 0.0, 0.0, 2.5, 0.0, 0.0, True)
    chosen = OutcomeRow("chosen", 5.0, 1.2, 0.25, 0.02, 2.53, 0.03, 0.004, True)
    return AllocationRecord(
        model="tiny",
        fingerprint=Fingerprint("NVIDIA H200", 90, 132, 143156, "580.1", "13.1.0", "0.8.1"),
        settings={
            **{"m": ["64"], "target_speedup": 1.15, "keep": ["lm_head"]},
            **{"method": "sparsegpt", "held_out_tokens": 2048},
        },
        seconds={"load": 1.5},
        gemm="fp8_e4m3 -> bf16, scales rowcol",
        provenance={"cached": 2},
        dense_loss=2.4,
        tokens=100,
        groups=(row,),
        left_out=("model.layers.0.mlp.experts.0.up_proj",),
        outcomes=(dense, chosen),
        verdicts=("is uniform 6:8",),
        commit="0123",
        created="2026-03-03T10:00:00+00:00",
    )
