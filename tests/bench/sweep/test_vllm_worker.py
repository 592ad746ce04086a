"""Real vLLM models, built on the CPU and filled through vLLM's loader; presets as it reads them."""

from __future__ import annotations

from typing import Any

import pytest
from vllm_scripts import require_vllm, run_script, write_config

from slidesparse.models import load_model

require_vllm()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PRESETS = (
    "llama3.1-8b",
    "llama3.2-1b",
    "llama3.2-3b",
    "qwen2.5-14b",
    "qwen2.5-7b",
    "qwen3-14b",
    "qwen3-30b-a3b",
    "qwen3-8b",
)
PER_TENSOR = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
STATIC = {
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**PER_TENSOR, "dynamic": False},
            "input_activations": {**PER_TENSOR, "dynamic": False},
        }
    },
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}
STOCK, OURS, SEEDED, INT8, PER_TENSOR_FP8, MOE_FP8, MOE_INT8 = range(7)
EXPERTS = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 120,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
TOP = {"torch.float8_e4m3fn": 448.0, "torch.int8": 127.0}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process for everything: importing vLLM takes longer than all the rest."""
    models = tmp_path_factory.mktemp("model")
    folder = str(write_config(models / "tiny"))
    experts = str(write_config(models / "experts", **EXPERTS))
    case = {"folder": folder, "dtype": "fp8", "pattern": "6:8", "system": "stock", "seed": 1}
    cases = [
        case,
        {**case, "system": "ours"},
        {**case, "seed": 2},
        {**case, "dtype": "int8", "pattern": "8:10"},
        {**case, "quantization": STATIC},
        {**case, "folder": experts},
        {**case, "folder": experts, "dtype": "int8", "pattern": "dense"},
    ]
    settings = {"presets": PRESETS, "cases": cases}
    return run_script("vllm_load_on_cpu.py", tmp_path_factory.mktemp("cache"), settings)


def parameters(found: dict[str, Any], case: int) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = found["cases"][case]["parameters"]
    return made


@pytest.mark.parametrize("name", PRESETS)
def test_vllm_reads_a_preset_as_it_is_meant(found: dict[str, Any], name: str) -> None:
    spec, read = load_model(name), found["presets"][name]
    assert {key: read[key] for key in ("hidden", "heads", "kv_heads", "layers", "vocab")} == {
        "hidden": spec.hidden,
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "layers": spec.layers,
        "vocab": spec.vocab,
    }
    assert read["head_dim"] == spec.head_dim
    assert read["dtype"] == "torch.bfloat16"
    assert read["quantization"] == "compressed-tensors"
    assert read["max_batched"] == 65536
    assert read["max_model_len"] == 2048
    assert read["prefix_caching"] is False
    family = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe"}
    assert read["architecture"] == f"{family[spec.architecture]}ForCausalLM"
    theta = "500000.0" if spec.architecture == "llama" else "1000000.0"
    assert theta in read["rope"]
    assert ("llama3" in read["rope"]) == (spec.architecture == "llama")


@pytest.mark.parametrize(("case", "pattern"), [(STOCK, "6:8"), (INT8, "8:10")])
def test_every_w8a8_linear_is_pruned_and_fills_its_dtype(
    found: dict[str, Any], case: int, pattern: str
) -> None:
    made = parameters(found, case)
    weights = [name for name in made if made[name]["dtype"] in TOP]
    assert sorted(name.split(".")[-2] for name in weights) == [
        "down_proj",
        "gate_up_proj",
        "o_proj",
        "qkv_proj",
    ]
    for name in weights:
        said = made[name]
        assert said["pattern"] == pattern
        assert said["row_top"] == [TOP[said["dtype"]]] * 2
        assert abs(said["mean"]) < 0.02 * said["std"]
        # vLLM's dummy weights have a deviation of 0.0006.
        assert said["std"] > 0.2 * TOP[said["dtype"]]
        scale = made[f"{name}_scale"]
        assert scale["shape"] == [said["shape"][0], 1]
        assert scale["least"] > 0


@pytest.mark.parametrize(("case", "pattern"), [(MOE_FP8, "6:8"), (MOE_INT8, "dense")])
def test_experts_are_pruned_and_scaled_per_channel_and_their_router_is_not(
    found: dict[str, Any], case: int, pattern: str
) -> None:
    made = parameters(found, case)
    parts = {name.rpartition(".")[2]: said for name, said in made.items() if ".experts." in name}
    # Two projections beside each other, [experts, 2 x 120, hidden], and the one behind them.
    for name, shape in (("w13_weight", [4, 240, 256]), ("w2_weight", [4, 256, 120])):
        said, scale = parts[name], parts[f"{name}_scale"]
        assert said["shape"] == shape
        assert said["dtype"] == ("torch.float8_e4m3fn" if case == MOE_FP8 else "torch.int8")
        # Every row of every expert reaches to the top of the dtype.
        assert said["row_top"] == [TOP[said["dtype"]]] * 2
        assert said["pattern"] == pattern
        assert scale["shape"] == [*shape[:2], 1]
        assert scale["least"] > 0
        assert scale["std"] > 0
    (router,) = (said for name, said in made.items() if name.endswith("mlp.gate.weight"))
    assert router["dtype"] == "torch.bfloat16"
    assert router["shape"] == [4, 256]
    assert router["std"] == pytest.approx(0.02, rel=0.1)
    method = "Fp8" if case == MOE_FP8 else "Int8"
    said = found["cases"][case]["said"]
    assert said["experts"].startswith(f"CompressedTensorsW8A8{method}MoEMethod")
    assert said["experts"].endswith(" x1")


def test_nothing_is_left_as_vllm_allocated_it(found: dict[str, Any]) -> None:
    made = parameters(found, STOCK)
    for name, said in made.items():
        if name.endswith("norm.weight"):
            assert said["mean"] == pytest.approx(1.0, abs=0.02)
        elif name.endswith(("embed_tokens.weight", "lm_head.weight", ".bias")):
            assert said["std"] == pytest.approx(0.02, rel=0.1)
        elif name.endswith(("k_scale", "v_scale", "q_scale")):
            assert said["mean"] == 1.0
        elif name.endswith("zero_point"):
            assert said["mean"] == 0.0
        else:
            assert name.endswith(("proj.weight", "proj.weight_scale"))


def test_stock_and_ours_load_the_same_model(found: dict[str, Any]) -> None:
    stock, ours, other = (parameters(found, case) for case in (STOCK, OURS, SEEDED))
    digests = {name: said["digest"] for name, said in stock.items()}
    assert digests == {name: said["digest"] for name, said in ours.items()}
    weights = [name for name in stock if name.endswith("proj.weight")]
    assert weights
    assert not any(stock[name]["digest"] == other[name]["digest"] for name in weights)


def test_static_scales_are_filled_as_well(found: dict[str, Any]) -> None:
    made = parameters(found, PER_TENSOR_FP8)
    scales = [said for name, said in made.items() if name.endswith("input_scale")]
    assert len(scales) == 4
    for said in scales:
        assert said["mean"] == pytest.approx(10 / 448)
        assert said["std"] == 0
    for name, said in made.items():
        if name.endswith("proj.weight"):
            assert said["pattern"] == "6:8"
            assert made[f"{name}_scale"]["std"] == 0
            assert 224 < said["row_top"][1] < 448


def test_the_worker_says_what_runs(found: dict[str, Any]) -> None:
    said = found["cases"][STOCK]["said"]
    assert said["linears"].endswith("ScaledMMLinearKernel x4")
    assert said["attention"] == "CPU_ATTN x1"
    assert "experts" not in said
    # Nothing of ours runs on a CPU, and stock has it off.
    assert "slidesparse" not in said
