"""A real vLLM whose model is a clock: requests, scheduler and engine are vLLM's, tokens are not.

Run as a script, since which platform vLLM sees is decided once per process:
    python vllm_on_cpu.py FOLDER < a JSON object of settings
It measures cells as the engine of the sweep does and prints what came of them as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

SECONDS_PER_STEP = 0.004
SECONDS_PER_TOKEN = 0.0001
BLOCK = 16


def choose_platform(ahead: bool) -> None:
    """Have vLLM see a CPU, with asynchronous scheduling as it has on a GPU or without."""
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    class Platform(CpuPlatform):  # type: ignore[misc]
        @classmethod
        def check_and_update_config(cls, vllm_config: Any) -> None:
            super().check_and_update_config(vllm_config)
            vllm_config.scheduler_config.async_scheduling = ahead

    vllm.platforms._current_platform = Platform()


def clock_executor(blocks: int) -> type:
    """An executor whose step takes a time that depends on its tokens alone."""
    import torch
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.kv_cache_interface import FullAttentionSpec
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.worker.worker_base import CompilationTimes

    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)

    class ClockExecutor(Executor):  # type: ignore[misc]
        def _init_executor(self) -> None:
            self._gpu = ThreadPoolExecutor(1)  # Steps run one after the other, as on a stream.
            self._lengths: dict[str, int] = {}
            self._scheduled: Any = None

        @classmethod
        def supports_async_scheduling(cls) -> bool:
            return True

        def collective_rpc(
            self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None, **_: Any
        ) -> Any:
            answers: dict[str, Any] = {
                "get_kv_cache_spec": {"layer": spec},
                "determine_available_memory": blocks * spec.page_size_bytes,
                "compile_or_warm_up_model": CompilationTimes(0.0, 0.0),
                "get_supported_tasks": ("generate",),
                "slidesparse_describe": {"linears": "none", "attention": "none"},
                "slidesparse_stop": {"nvjet_tst": 3.0, "triton_poi_fused_0": 1.0},
            }
            return [answers.get(method)]

        def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
            self._scheduled = scheduler_output
            done: Future[Any] = Future()
            # vLLM asks for no tokens of a step that has none.
            some = scheduler_output.total_num_scheduled_tokens > 0
            done.set_result(None if some else ModelRunnerOutput([], {}))
            return done if non_block else done.result()

        def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
            ran = self._gpu.submit(self._run, self._scheduled)
            return ran if non_block else ran.result()

        def _run(self, scheduled: Any) -> Any:
            began = {}
            for request in scheduled.scheduled_new_reqs:
                self._lengths[request.req_id] = len(request.prompt_token_ids)
                began[request.req_id] = request.num_computed_tokens
            cached = scheduled.scheduled_cached_reqs
            began |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
            tokens = scheduled.total_num_scheduled_tokens
            time.sleep(SECONDS_PER_STEP + SECONDS_PER_TOKEN * tokens)
            names = list(scheduled.num_scheduled_tokens)
            ends = {name: began[name] + scheduled.num_scheduled_tokens[name] for name in names}
            sampled = [[7] if ends[name] >= self._lengths[name] else [] for name in names]
            order = {name: index for index, name in enumerate(names)}
            return ModelRunnerOutput(names, order, sampled)

        def check_health(self) -> None:
            pass

    return ClockExecutor


def main(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Build the engine of a sweep and measure each cell; errors are results, too."""
    from slidesparse.bench.sweep.job import Job, Mode, Stage, System, Variant
    from slidesparse.bench.sweep.vllm import VllmEngine
    from slidesparse.bench.sweep.vllm_compat import LiveEngine, prepare
    from slidesparse.bench.sweep.vllm_steps import StepError
    from slidesparse.devices import CPU
    from slidesparse.problem import DType

    prepare()
    choose_platform(settings["ahead"])

    class ClockEngine(VllmEngine):
        """All of it but the GPU."""

        def _check_device(self) -> None:
            pass

        def _start(self, arguments: dict[str, Any]) -> LiveEngine:
            arguments |= settings.get("more", {})
            arguments["distributed_executor_backend"] = clock_executor(settings["blocks"])
            # It asks no worker and loads no weights.
            del arguments["worker_extension_cls"]
            return super()._start(arguments)

    names = ("ms", "prompt", "outputs", "repeats")
    sizes = {name: settings[name] for name in names} | {"ms": tuple(settings["ms"])}
    chosen = {"dtype": DType.FP8, "variant": Variant(System.STOCK), "mode": Mode.EAGER}
    stage = Stage(settings["stage"])
    engine = ClockEngine(CPU, Job(stage, str(folder), tp=1, seed=1, **chosen, **sizes))
    found: dict[str, Any] = {"said": dict(engine.build())}
    live = engine.live
    assert live is not None
    for m in settings.get("cells", settings["ms"]):
        try:
            made = asdict(engine.run(m))
        except StepError as error:
            made = {"error": str(error)}
        steps = [(step.tokens, step.sequences) for step in live.log.steps]
        found[str(m)] = {**made, "steps": steps, "unfinished": live.unfinished}
    return {**found, "in_flight": live.in_flight}


def step_us(tokens: int) -> float:
    """What a step of so many tokens takes."""
    return 1e6 * (SECONDS_PER_STEP + SECONDS_PER_TOKEN * tokens)


def run(arguments: Sequence[str]) -> None:
    """As a script."""
    print("\n" + json.dumps(main(Path(arguments[0]), json.load(sys.stdin))))


if __name__ == "__main__":
    run(sys.argv[1:])
