"""Greedy tokens of a checkpoint in vLLM: `vllm_generate.py OUT FOLDER [ADDITIONAL_CONFIG]`.

A script, since what an LLM holds of a GPU is free again only when its process ends. OUT gets JSON:
tokens and the sum of their log probabilities for each prompt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tiny_models import tiny_tokens

MOST_TOKENS = 24


def main(out: Path, folder: str, additional: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams

    from slidesparse.vllm import sparse24

    assert sparse24.install()
    llm = LLM(
        folder,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=128,
        gpu_memory_utilization=0.3,
        seed=0,
        additional_config=additional,
    )
    prompts = [{"prompt_token_ids": ids} for ids in tiny_tokens().tolist()]
    sampling = SamplingParams(
        temperature=0, max_tokens=MOST_TOKENS, ignore_eos=True, detokenize=False, logprobs=1
    )
    answers = [done.outputs[0] for done in llm.generate(prompts, sampling, use_tqdm=False)]
    found = [(list(answer.token_ids), answer.cumulative_logprob) for answer in answers]
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]) if sys.argv[3:] else {})
