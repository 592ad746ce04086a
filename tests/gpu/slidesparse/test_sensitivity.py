"""On a GPU sensitivities are those of the CPU, and a 135M model's take about two minutes."""

import time

import pytest
import torch

transformers = pytest.importorskip("transformers")

import tiny_models  # noqa: E402

from slidesparse.accuracy.groups import group_linears  # noqa: E402
from slidesparse.accuracy.sensitivity import measure_sensitivity  # noqa: E402
from slidesparse.pattern import parse_patterns  # noqa: E402
from slidesparse.prune.model import linears_of  # noqa: E402
from slidesparse.recipe import Method, Recipe  # noqa: E402

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
MOST_SECONDS = 150.0
"""Of all 480 evaluations of SmolLM2-135M with SparseGPT, at the defaults of the command."""


def measure(model, groups, method, calibration, probe, patterns="2:4,6:8"):
    every = parse_patterns(patterns)
    return measure_sensitivity(model, linears_of(model), groups, method, calibration, probe, every)


def groups_of(model):
    return group_linears(linears_of(model), Recipe()).groups


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text"])
def test_effects_are_those_of_the_cpu(method, kind):
    calibration, probe = tiny_models.tiny_tokens(6, 20, 31), tiny_models.tiny_tokens(3, 15, 32)
    model = tiny_models.tiny_model(kind)
    groups = groups_of(model)
    wanted = measure(model, groups, method, calibration, probe)
    on_gpu = model.cuda()
    before = {name: value.clone() for name, value in on_gpu.state_dict().items()}
    precision = torch.get_float32_matmul_precision()
    found = measure(on_gpu, groups, method, calibration, probe)
    assert torch.get_float32_matmul_precision() == precision
    assert all(torch.equal(before[name], value) for name, value in on_gpu.state_dict().items())
    assert found.dense == pytest.approx(wanted.dense, rel=1e-3)
    for key, effect in wanted.effects.items():
        # TF32 rounds logits; a weight more or less may be kept where two are nearly equal.
        assert found.effects[key].kl == pytest.approx(effect.kl, rel=0.1, abs=1e-4)


@pytest.mark.timeout(300)
def test_a_model_of_135m_takes_about_two_minutes(seed):
    config = transformers.LlamaConfig(**SMOLLM2)
    model = transformers.AutoModelForCausalLM.from_config(config).float().cuda().eval()
    calibration = torch.randint(0, 49152, (128, 2048))
    probe = torch.randint(0, 49152, (8, 2048))
    groups = [group for group in groups_of(model) if group.block == 15]
    measure(model, groups[:1], Method.MAGNITUDE, calibration, probe, "6:8")
    torch.cuda.synchronize()
    seconds = []
    # All of the walk through the blocks is in both, and half of the blocks run on average.
    for some in (groups[:1], groups):
        start = time.perf_counter()
        measure(model, some, Method.SPARSEGPT, calibration, probe, "2:4,4:6,6:8,8:10")
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    walk, evaluations = seconds[0], (seconds[1] - seconds[0]) / 12
    total = 2 * walk + 480 * evaluations
    print(f"walk to the middle {walk:.1f} s, evaluation {evaluations * 1e3:.0f} ms, {total:.0f} s")
    assert total < MOST_SECONDS
