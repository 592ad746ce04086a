"""Convert a synthetic checkpoint and say how much memory that took at most.

    python scripts/convert_memory.py --gb 4

The layers have the sizes of Qwen2.5-7B, so that the largest tensor is what a real one would be.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HIDDEN, INTERMEDIATE, VALUES, VOCABULARY = 3584, 18944, 512, 32768
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (VALUES, HIDDEN),
    "self_attn.v_proj": (VALUES, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
CONFIG = {"model_type": "qwen2", "dtype": "bfloat16", "tie_word_embeddings": False}


def write_source(folder: Path, gigabytes: float) -> None:
    """One BF16 file of whole decoder blocks, at least `gigabytes` of 1e9 bytes."""
    import torch

    from slidesparse.checkpoint.writer import ShardWriter, TensorSpec

    specs = [
        TensorSpec(f"{name}.weight", "BF16", (VOCABULARY, HIDDEN))
        for name in ("model.embed_tokens", "lm_head")
    ]
    block = 0
    while sum(spec.bytes for spec in specs) < gigabytes * 1e9:
        prefix = f"model.layers.{block}"
        specs += [TensorSpec(f"{prefix}.{it}.weight", "BF16", SHAPES[it]) for it in SHAPES]
        block += 1
    # The same random megabytes over and over: what they are makes no difference to memory.
    noise = torch.randn(4 << 20, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    piece = noise.view(torch.uint8).numpy().data
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with ShardWriter(folder / "model.safetensors", specs) as writer:
        for spec in specs:
            for start in range(0, spec.bytes, len(piece)):
                writer.write_bytes(spec.name, piece[: spec.bytes - start])


def convert_here(source: Path, target: Path) -> None:
    """Convert in this process and print its seconds and megabytes as JSON."""
    from slidesparse.checkpoint.convert import convert
    from slidesparse.pattern import Pattern
    from slidesparse.problem import DType
    from slidesparse.recipe import Method, Recipe

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    convert(source, target, Recipe(Pattern(6, 8), Method.MAGNITUDE, DType.FP8))
    made = {
        "seconds": round(time.monotonic() - start, 1),
        "source_mb": (source / "model.safetensors").stat().st_size // 1_000_000,
        "imports_mb": before * 1024 // 1_000_000,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000,
    }
    print(json.dumps(made))


def main() -> None:
    """Write the source, convert it in a process of its own, remove both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=4.0, help="size of the source")
    parser.add_argument("--folder", type=Path, help="where to work; needs 1.6 times --gb")
    parser.add_argument("--convert", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        convert_here(*arguments.convert)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_source(folder / "source", arguments.gb)
        # The peak of this process holds what the writing took.
        command = [
            sys.executable,
            __file__,
            "--convert",
            *map(str, (folder / "source", folder / "o")),
        ]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
