"""A model directory with a tokenizer of words, a text for it, and a model that learned the text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{index}" for index in range(90)]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def make_tokenizer(bos: bool = False) -> Any:
    """One token per word of WORDS; 94 in all."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_text(words: int, seed: int = 3) -> str:
    """Words of which each mostly follows from the one before it."""
    rng = random.Random(seed)
    at, made = 0, []
    for _ in range(words):
        at = (7 * at + 11) % len(WORDS) if rng.random() < 0.8 else rng.randrange(len(WORDS))
        made.append(WORDS[at])
    return " ".join(made)


def learned_model(steps: int = 60) -> Any:
    """A tiny Llama that has seen such text for a few seconds."""
    model = tiny_model(num_hidden_layers=2).train()
    ids = torch.tensor(make_tokenizer()(make_text(16 * 33 * steps, seed=1))["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in ids[: 16 * 33 * steps].view(steps, 16, 33):
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def save(model: Any, folder: Path, bos: bool = False) -> Path:
    """Write a model directory."""
    model.save_pretrained(folder)
    make_tokenizer(bos).save_pretrained(folder)
    return folder
