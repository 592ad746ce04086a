"""The engine of `slidesparse bench decode --counters`: stock vLLM under a steady load, watched.

The model is served as `slidesparse bench decode` serves it (see bench.sweep.vllm): random realistic
weights unless the folder has some, prefix caching off, greedy, no text made of tokens, the engine
core in the process that adds the requests. max_num_seqs is no smaller than the largest concurrency.
With graphs the captured sizes reach beyond that (see job.capture_sizes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slidesparse.bench.counters.compat import LoopEngine
from slidesparse.bench.counters.job import LoadFound, LoadJob, capture_sizes
from slidesparse.bench.counters.loop import ClosedLoop, Request, Window
from slidesparse.bench.counters.sampler import LoadSampler, Source
from slidesparse.bench.counters.samples import EngineLoad, Sample, summarize, within
from slidesparse.bench.counters.window import sampling_cost
from slidesparse.bench.sweep.job import Job, Mode
from slidesparse.bench.sweep.vllm import check_system, engine_arguments
from slidesparse.bench.sweep.vllm_compat import facts, prepare, start_llm
from slidesparse.bench.sweep.vllm_model import Served, serve
from slidesparse.bench.sweep.vllm_steps import StepError
from slidesparse.devices import Device
from slidesparse.errors import UsageError


class LoadEngine:
    """Serves a model in vLLM and measures it under load. Made in a worker process of its own.

    Args:
        device: on which the model runs.
        job: what it measures; a LoadJob.

    Attributes:
        live: the engine, once it is built.
    """

    def __init__(self, device: Device, job: Job) -> None:
        """Note the job; nothing of vLLM is imported yet."""
        assert isinstance(job, LoadJob)
        self.device, self.job = device, job
        self.live: LoopEngine | None = None
        self._served: Served | None = None

    def build(self) -> Mapping[str, str]:
        """Load the model into vLLM.

        Returns:
            What runs, by name, one line each.

        Raises:
            UsageError: vLLM or the GPU is missing, the model cannot be had or does not take
                sequences as long as the job's.
            torch.OutOfMemoryError: the GPU's memory does not suffice.
        """
        self._check_device()
        prepare()
        self._served = served = serve(self.job)
        self.live = live = self._start(load_arguments(self.job, served))
        said = live.ask("slidesparse_describe")
        check_system(self.job.variant.system, said)
        blocks, size = live.kv_blocks
        captured = live.config.compilation_config.cudagraph_capture_sizes or ()
        return {
            **facts(live.config),
            **said,
            "graphs of": ", ".join(map(str, sorted(captured))) or "nothing",
            "weights": f"random, seed {self.job.seed}" if served.random else str(served.folder),
            "kv cache": f"{blocks * size} tokens in blocks of {size}",
        }

    def run(self, m: int) -> LoadFound:
        """Measure one cell.

        Args:
            m: its concurrency.

        Raises:
            StepError: the engine stopped, or the window is too short.
        """
        live, job = self.live, self.job
        if live is None or self._served is None:
            raise UsageError("the model is not built; call build first")
        blocks, size = live.kv_blocks
        request = Request(job.prompt, job.outputs)
        loop = ClosedLoop(live, m, request, self._served.spec.vocab, job.seed)
        compare = m in job.compare_at
        try:
            with self._sampler(live) as sampler:
                window = loop.measure(sampler, job.seconds, job.settle, compare)
                limit = sampler.power_limit_w
        finally:
            live.abort()
            live.log.clear()
        samples = chosen(sampler.samples, window)
        return LoadFound(
            concurrency=m,
            window=window,
            summaries=summarize(samples),
            samples=len(samples),
            source=sampler.source,
            why=sampler.why,
            power_limit_w=limit,
            kv_tokens=blocks * size,
            cost=sampling_cost(window.stretches) if compare else None,
        )

    def _sampler(self, live: LoopEngine) -> LoadSampler:
        devices = [Device(self.device.kind, index) for index in range(self.job.tp)]
        return LoadSampler(devices, live.load, self.job.sample_ms / 1000, self.job.source)

    def _start(self, arguments: dict[str, Any]) -> LoopEngine:
        return LoopEngine(start_llm(arguments))

    def _check_device(self) -> None:
        if not self.device.is_gpu:
            raise UsageError("vLLM's engine needs an NVIDIA GPU")
        if self.job.source in (Source.GPM, Source.DCGM):
            self._check_source(self.job.source)

    def _check_source(self, asked: Source) -> None:
        """Refuse a run whose counters were asked for by name and are not there."""
        with LoadSampler([self.device], lambda: EngineLoad(0, 0, 0.0), 1.0, asked) as found:
            if found.source is not asked:
                raise UsageError(f"--counter-source {asked}: {found.why}; use auto")


def load_arguments(job: LoadJob, served: Served) -> dict[str, Any]:
    """What vllm.LLM is called with.

    Raises:
        UsageError: the model does not take sequences as long as the job's.
    """
    arguments = engine_arguments(job, served)
    if job.mode is Mode.GRAPHS:
        sizes = capture_sizes(job.ms, job.prompt, job.outputs)
        arguments["compilation_config"] = {"cudagraph_capture_sizes": sizes}
    return arguments


def chosen(samples: list[Sample], window: Window) -> list[Sample]:
    """The samples that lie in the sampled stretches of a window.

    Raises:
        StepError: there is none.
    """
    found = within(samples, [(it.begin, it.end) for it in window.sampled])
    if not found:
        raise StepError(
            f"none of {len(samples)} samples lies in the window of "
            f"{sum(it.seconds for it in window.sampled):.2f} s; raise --seconds or lower "
            "--sample-ms"
        )
    return found
