"""Causal LMs of a few kilobytes with the structure of the real ones, random but not uniform."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 97

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# Sliding windows shorter than the text: blocks are called with different masks.
GEMMA3 = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}

KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 8},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma2": {"sliding_window": 8},
    "Gemma3Text": GEMMA3 | {"num_hidden_layers": 4},
}


def tiny_model(kind: str = "Llama", seed: int = 1, **changes: Any) -> Any:
    """A model in evaluation mode, float32, whose channels differ in strength."""
    config = getattr(transformers, f"{kind}Config")(**(SIZES | KINDS[kind] | changes))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    strengthen(model, seed)
    return model


def strengthen(model: torch.nn.Module, seed: int) -> None:
    """Give every weight channels of uneven strength, so that methods differ in what they drop."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.rand(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.add_(noise - 0.5 if name.endswith("bias") else noise)
            else:
                channels = torch.rand(weight.shape[1], generator=generator)
                weight.copy_((noise - 0.5) * (0.2 + channels) * 0.5)


def tiny_tokens(sequences: int = 4, length: int = 24, seed: int = 5) -> torch.Tensor:
    """[S, L] int64 token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (sequences, length), generator=generator)
