"""What the load benchmark knows of vLLM's inside beyond what sweeps know. Read from vLLM 0.25.1.

The engine core runs in this process, so its scheduler is looked at directly: what it says is what
vLLM's own metrics say (SchedulerStats: num_running_reqs, num_waiting_reqs, kv_cache_usage), without
its statistics being switched on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from slidesparse.bench.counters.samples import EngineLoad
from slidesparse.bench.counters.window import FlowStep
from slidesparse.bench.sweep.vllm_compat import LiveEngine, greedy


class LoopEngine(LiveEngine):
    """A built vLLM that also counts what its steps give.

    Args:
        llm: a vllm.LLM with its engine core in this process.

    Attributes:
        flow: what each step gave, from now on; steps that gave nothing are left out.
    """

    def __init__(self, llm: Any) -> None:
        """Count from now on."""
        super().__init__(llm)
        self.flow: list[FlowStep] = []
        update = self._scheduler.update_from_output

        def counted(scheduled: Any, output: Any) -> Any:
            now = time.perf_counter()
            given = update(scheduled, output)
            self._count(now, scheduled, given)
            return given

        self._scheduler.update_from_output = counted

    def enqueue_each(self, prompts: Sequence[Sequence[int]], outputs: Sequence[int]) -> None:
        """Add prompts of token ids, each with the number of tokens that it generates."""
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        self._llm.enqueue(given, [greedy(count) for count in outputs], use_tqdm=False)

    @property
    def outstanding(self) -> int:
        """Requests that were added and have not ended."""
        return int(self._llm.llm_engine.get_num_unfinished_requests())

    def load(self) -> EngineLoad:
        """What the scheduler has in hand; it may be asked from another thread."""
        it = self._scheduler
        # Requests that wait for something other than memory lie in a queue of their own.
        skipped = getattr(it, "skipped_waiting", ())
        return EngineLoad(
            running=len(it.running),
            waiting=len(it.waiting) + len(skipped),
            # 1 - free / total may be a rounding error below nothing.
            kv_used=max(0.0, float(it.kv_cache_manager.usage)),
        )

    def _count(self, now: float, scheduled: Any, given: Any) -> None:
        outputs = [output for each in given.values() for output in each.outputs]
        generated = sum(len(output.new_token_ids) for output in outputs)
        finished = sum(output.finish_reason is not None for output in outputs)
        preempted = len(scheduled.preempted_req_ids or ())
        if generated or preempted:
            self.flow.append(FlowStep(now, generated, finished, preempted))
