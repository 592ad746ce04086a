"""2:4 checkpoints in vLLM: its own config classes, loader and model, on the CPU."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: its classes are what is tested")

import torch
from safetensors.torch import save_file
from tiny_checkpoints import save_tensors
from two_four_models import (
    SPARSITY,
    model_config,
    packed,
    quantisation,
    save_both,
    two_four_tensors,
)
from vllm.config import DeviceConfig, LoadConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers import quantization
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
)
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from slidesparse.errors import CheckpointError
from slidesparse.vllm import sparse24
from slidesparse.vllm.sparse24 import Sparse24Config

FP8, INT8 = torch.float8_e4m3fn, torch.int8
DTYPES = [FP8, INT8, None]
SECONDS_TO_LOAD = 300
REFUSED = "Sparsity support has been removed"
OFF = {"slidesparse": {"off": True}}


@pytest.fixture(autouse=True)
def _own_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from stock vLLM, whatever ran before, and take back what a test installs."""
    monkeypatch.setattr(quantization, "_CUSTOMIZED_METHOD_TO_QUANT_CONFIG", {})
    stock = inspect.unwrap(DefaultModelLoader.get_all_weights)
    monkeypatch.setattr(DefaultModelLoader, "get_all_weights", stock)


@pytest.fixture
def _installed() -> None:
    assert sparse24.install()


def vllm_config(folder: Path, **more: Any) -> VllmConfig:
    return VllmConfig(
        model_config=ModelConfig(model=str(folder), dtype="bfloat16", skip_tokenizer_init=True),
        device_config=DeviceConfig("cpu"),
        **more,
    )


def method(config: VllmConfig) -> Any:
    """What a model asks for each of its layers while vLLM builds it."""
    return config.quant_config.get_quant_method(torch.nn.Linear(64, 32), "model.layers.0.x")


def stream(
    folder: Path, load: LoadConfig | None = None, model: torch.nn.Module | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """What vLLM's loader hands to a model."""
    config = ModelConfig(model=str(folder), dtype="bfloat16", skip_tokenizer_init=True)
    loader = DefaultModelLoader(load or LoadConfig())
    weights: Iterator[tuple[str, torch.Tensor]] = loader.get_all_weights(
        config, model or torch.nn.Linear(1, 1)
    )
    return weights


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit, signs of zeros included."""
    raw = (it.contiguous().view(torch.uint8) for it in (a, b))
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*raw)


def fields(config: CompressedTensorsConfig) -> dict[str, Any]:
    return {key: it for key, it in vars(config).items() if key not in ("config", "checkpoint")}


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("format", ["sparse-24-bitmask", "dense"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_configs_of_published_models_are_read(dtype: torch.dtype | None, format: str) -> None:
    section = quantisation(dtype, SPARSITY | {"format": format})
    with pytest.raises(DeprecationWarning, match=REFUSED):
        CompressedTensorsConfig.from_config(dict(section))
    made = quantization.get_quantization_config("compressed-tensors").from_config(section)
    stock = CompressedTensorsConfig.from_config(quantisation(dtype, sparsity=None))
    assert type(made) is Sparse24Config
    assert fields(made) == fields(stock)
    assert made.get_name() == stock.get_name() == "compressed-tensors"
    assert made.checkpoint["sparsity_config"] == SPARSITY | {"format": format}
    assert len(made.target_scheme_map) == (0 if dtype is None else 1)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("sparsity", [None, {}, {"format": "dense", "targets": []}])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_configs_are_vllms(
    dtype: torch.dtype | None, sparsity: dict[str, Any] | None
) -> None:
    made = Sparse24Config.from_config(quantisation(dtype, sparsity))
    stock = CompressedTensorsConfig.from_config(quantisation(dtype, sparsity))
    assert type(made) is CompressedTensorsConfig
    assert vars(made) == vars(stock)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    "other",
    [
        {"format": "sparse-bitmask", "sparsity_structure": "unstructured"},
        {"format": "dense", "sparsity_structure": "unstructured"},
    ],
)
def test_other_sparse_checkpoints_stay_refused(other: dict[str, str]) -> None:
    with pytest.raises(DeprecationWarning, match=REFUSED):
        Sparse24Config.from_config(quantisation(FP8, SPARSITY | other))


def test_installing_twice_changes_nothing() -> None:
    stock = DefaultModelLoader.get_all_weights
    assert quantization.get_quantization_config("compressed-tensors") is CompressedTensorsConfig
    assert sparse24.install()
    once = DefaultModelLoader.get_all_weights
    assert once is not stock
    assert sparse24.install()
    assert DefaultModelLoader.get_all_weights is once
    assert quantization.get_quantization_config("compressed-tensors") is Sparse24Config


def test_a_config_of_someone_else_stays(caplog: pytest.LogCaptureFixture) -> None:
    class Theirs(CompressedTensorsConfig):  # type: ignore[misc]
        pass

    quantization.register_quantization_config("compressed-tensors")(Theirs)
    stock = DefaultModelLoader.get_all_weights
    with caplog.at_level(logging.WARNING):
        assert not sparse24.install()
    assert [record.name for record in caplog.records] == ["vllm.slidesparse"]
    assert "Theirs is registered for compressed-tensors" in caplog.text
    assert quantization.get_quantization_config("compressed-tensors") is Theirs
    assert DefaultModelLoader.get_all_weights is stock


def _without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(DefaultModelLoader, "get_all_weights")


def _with_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_all_weights(self: Any, model_config: Any, model: Any, filter: Any) -> None: ...

    monkeypatch.setattr(DefaultModelLoader, "get_all_weights", get_all_weights)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without, "DefaultModelLoader has no get_all_weights"),
        (_with_more, "get_all_weights takes self, model_config, model, filter"),
    ],
)
def test_a_loader_that_is_different_stays(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    change(monkeypatch)
    before = vars(DefaultModelLoader).get("get_all_weights")
    assert not sparse24.install()
    assert reason in caplog.text
    assert len(caplog.records) == 1
    assert vars(DefaultModelLoader).get("get_all_weights") is before
    assert quantization.get_quantization_config("compressed-tensors") is CompressedTensorsConfig


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vllm_reads_the_config_of_a_checkpoint(tmp_path: Path, dtype: torch.dtype | None) -> None:
    sparse, dense = save_both(tmp_path, dtype)
    config = vllm_config(sparse)
    assert config.model_config.quantization == "compressed-tensors"
    made = config.quant_config
    assert type(made) is Sparse24Config
    # Engines and workers are other processes.
    assert fields(pickle.loads(pickle.dumps(made))) == fields(made)
    plain = vllm_config(dense).quant_config
    assert type(plain) is (CompressedTensorsConfig if dtype else type(None))


LOADS = {
    "lazy": {},
    "eager": {"safetensors_load_strategy": "eager"},
    "threads": {"model_loader_extra_config": {"enable_multithread_load": True, "num_threads": 2}},
}


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_stream_dense(tmp_path: Path, dtype: torch.dtype | None, load: str) -> None:
    sparse, _ = save_both(tmp_path, dtype)
    wanted = two_four_tensors(dtype)
    got = list(stream(sparse, LoadConfig(**LOADS[load])))
    assert sorted(name for name, _ in got) == sorted(wanted)
    assert all(same(tensor, wanted[name]) for name, tensor in got)


@pytest.mark.usefixtures("_installed")
def test_parts_of_weights_in_different_files(tmp_path: Path) -> None:
    tensors = two_four_tensors(INT8)
    stored = packed(tensors)
    folder = save_tensors(tmp_path, {}, model_config(quantisation(INT8)))
    (folder / "model.safetensors").unlink()
    kinds = (".compressed", ".bitmask", ".shape")
    for number, kind in enumerate(kinds):
        some = {name: it for name, it in stored.items() if name.endswith(kind)}
        if not number:
            some |= {name: it for name, it in stored.items() if not name.endswith(kinds)}
        file = f"model-{number + 1:05}-of-00003.safetensors"
        save_file({name: it.contiguous() for name, it in some.items()}, folder / file)
    got = dict(stream(folder))
    assert got.keys() == tensors.keys()
    assert all(same(tensor, tensors[name]) for name, tensor in got.items())


DOWN = "model.layers.1.mlp.down_proj"


def _no_bitmask(stored: dict[str, torch.Tensor]) -> None:
    del stored[f"{DOWN}.bitmask"]


def _three_of_four(stored: dict[str, torch.Tensor]) -> None:
    stored[f"{DOWN}.bitmask"][2, 1] = 0x37


def _short(stored: dict[str, torch.Tensor]) -> None:
    stored[f"{DOWN}.compressed"] = stored[f"{DOWN}.compressed"][:, :-2]


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_no_bitmask, rf"{DOWN} lacks {DOWN}.bitmask; the checkpoint is incomplete"),
        (_three_of_four, rf"{DOWN}.bitmask is not 2:4: it marks 3 of columns 8 to 11 of row 2"),
        (_short, rf"{DOWN}.compressed is \[64, 46\] for a 2:4 weight \[64, 96\]"),
    ],
)
def test_damaged_checkpoints(
    tmp_path: Path, damage: Callable[[dict[str, torch.Tensor]], None], reason: str
) -> None:
    stored = packed(two_four_tensors(FP8))
    damage(stored)
    folder = save_tensors(tmp_path, stored, model_config(quantisation(FP8)))
    with pytest.raises(CheckpointError, match=reason):
        list(stream(folder))


@pytest.mark.usefixtures("_installed")
def test_other_checkpoints_stream_as_they_are(tmp_path: Path) -> None:
    # Names alone mean nothing: without the section in config.json these are someone else's.
    stored = packed(two_four_tensors(FP8))
    folder = save_tensors(tmp_path, stored, model_config(quantisation(FP8, sparsity=None)))
    got = dict(stream(folder))
    assert got.keys() == stored.keys()
    assert all(same(tensor, stored[name]) for name, tensor in got.items())


@pytest.mark.usefixtures("_installed")
def test_switched_off_it_is_refused_as_by_vllm(tmp_path: Path) -> None:
    sparse, _ = save_both(tmp_path, None)
    # vLLM reads the section before anyone can see the option.
    config = vllm_config(sparse, additional_config=OFF)
    with set_current_vllm_config(config):
        with pytest.raises(DeprecationWarning, match=REFUSED):
            Sparse24Config.from_config(quantisation(None))
        with pytest.raises(DeprecationWarning, match=REFUSED):
            method(config)
        names = {name for name, _ in stream(sparse)}
        assert "model.layers.0.self_attn.q_proj.bitmask" in names
    with set_current_vllm_config(vllm_config(sparse)):
        assert method(config) is None


@pytest.mark.usefixtures("_installed")
def test_a_loader_that_does_not_unpack_is_named(tmp_path: Path) -> None:
    sparse, _ = save_both(tmp_path, None)
    config = vllm_config(sparse, load_config=LoadConfig(load_format="runai_streamer"))
    with (
        set_current_vllm_config(config),
        pytest.raises(CheckpointError, match="load_format runai_streamer does not unpack"),
    ):
        method(config)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_vllms_llama_is_loaded_as_from_the_dense_form(
    root: Path, tmp_path: Path, world: int
) -> None:
    """Merged layers, and with two ranks their shards along N and K, in processes of their own."""
    folders = [
        str(folder)
        for number, dtype in enumerate(DTYPES)
        for folder in save_both(tmp_path / str(number), dtype)
    ]
    script = root / "tests" / "support" / "vllm_load_ranks.py"
    outs = [tmp_path / f"rank{rank}.pt" for rank in range(world)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "VLLM_CACHE_ROOT": str(tmp_path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world), str(out), *folders],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        said = [process.communicate(timeout=SECONDS_TO_LOAD)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, text in zip(ranks, said, strict=True):
        assert process.returncode == 0, text
    for out in outs:
        loaded = torch.load(out)
        for sparse, dense in zip(loaded[::2], loaded[1::2], strict=True):
            # Only the model without quantisation has no scales of a KV cache in its dense form.
            assert {name for name in sparse if "attn.attn." not in name} <= dense.keys()
            assert not [name for name in dense if not same(sparse[name], dense[name])]
        assert loaded[0][f"{DOWN}.weight"].shape == (64, 96 // world)
