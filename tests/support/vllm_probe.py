"""What a checkpoint gives in vLLM: `vllm_probe.py OUT FOLDER OPTIONS`, a process of its own.

OPTIONS is JSON: "additional" for vLLM's additional_config, and anything else for its LLM. OUT gets
JSON: the log probability of every token of the prompts, greedy continuations, what the plug-in
says of itself, and what ran in front of its linears.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

LENGTHS = (1, 7, 16, 64, 129, 300)
MOST_TOKENS = 12


def prompts(vocabulary: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(7)
    return [
        {"prompt_token_ids": torch.randint(3, vocabulary, (length,), generator=generator).tolist()}
        for length in LENGTHS
    ]


def plugin() -> dict[str, Any]:
    """The plug-in's side of the model that was loaded last; nothing where it was off."""
    from slidesparse.layers.prepared import prepared
    from slidesparse.vllm import session

    found = next((each for ref, each in session._sessions if ref() is not None), None)
    if found is None or not found.taken:
        return {"summary": found.summary() if found else "", "producers": [], "backends": []}
    index = torch.cuda.current_device()
    ready = [prepared(taken.plan.to_text(), "cuda", index) for taken in found.taken]
    return {
        "summary": found.summary(),
        "producers": sorted({kind[0] for each in ready for kind in each._ran}),
        "backends": sorted({way.backend for each in ready for way, _, _ in each.steps}),
    }


def main(out: Path, folder: str, options: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        skip_tokenizer_init=True,
        max_model_len=512,
        gpu_memory_utilization=0.3,
        seed=0,
        additional_config=options.pop("additional", {}),
        **options,
    )
    vocabulary = llm.llm_engine.vllm_config.model_config.get_vocab_size()
    sampling = SamplingParams(
        temperature=0, max_tokens=MOST_TOKENS, ignore_eos=True, detokenize=False, prompt_logprobs=0
    )
    given = prompts(vocabulary)
    answers = llm.generate(given, sampling, use_tqdm=False)
    scores = []
    for prompt, answer in zip(given, answers, strict=True):
        ids = prompt["prompt_token_ids"]
        scores.append([answer.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))])
    found = {
        "scores": scores,
        "tokens": [list(answer.outputs[0].token_ids) for answer in answers],
        "kernel": llm.apply_model(kernels)[0],
        **plugin(),
    }
    out.write_text(json.dumps(found))


def kernels(model: torch.nn.Module) -> list[str]:
    """The classes of the model's linear kernels."""
    found = set()
    for module in model.modules():
        scheme = getattr(module, "scheme", None)
        kernel = getattr(scheme, "fp8_linear", None) or getattr(scheme, "kernel", None)
        if kernel is not None:
            found.add(type(kernel).__name__)
    return sorted(found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
