"""Conversion on a GPU: the bytes of the CPU by magnitude, and the same again after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

transformers = pytest.importorskip("transformers")

from tiny_checkpoints import all_tensors, save_tiny, zeros_per_block  # noqa: E402
from tiny_models import tiny_tokens  # noqa: E402

from slidesparse.checkpoint.convert import convert  # noqa: E402


class StoppedError(Exception):
    """Stands for anything that ends a conversion."""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8, None], ids=str)
def test_magnitude_gives_the_bytes_of_the_cpu(tmp_path: Path, dtype: DType | None) -> None:
    save_tiny(tmp_path / "src")
    recipe = Recipe(Pattern(6, 8), Method.MAGNITUDE, dtype)
    for device in ("cpu", "cuda"):
        convert(tmp_path / "src", tmp_path / device, recipe, device=device)
    assert contents(tmp_path / "cpu") == contents(tmp_path / "cuda")


@pytest.mark.parametrize("method", [Method.WANDA, Method.SPARSEGPT], ids=str)
def test_a_calibrated_conversion_goes_on_to_the_same_bytes(tmp_path: Path, method: Method) -> None:
    save_tiny(tmp_path / "src")
    recipe = Recipe(Pattern(4, 6), method, DType.INT8)

    def stop(done: int, total: int, name: str) -> None:
        if done == 2:
            raise StoppedError

    def run(out: str, **rest: object) -> None:
        convert(
            tmp_path / "src", tmp_path / out, recipe, tokens=tiny_tokens(), device="cuda", **rest
        )  # type: ignore[arg-type]

    run("whole")
    with pytest.raises(StoppedError):
        run("out", progress=stop)
    run("out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    for name, tensor in all_tensors(tmp_path / "out").items():
        if name.endswith("_proj.weight"):
            assert zeros_per_block(tensor, 6) >= 2, name
