"""The engine `linear` of a sweep: a model's linears and fused kernels alone, without vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from slidesparse._version import __version__
from slidesparse.bench.linear.ahead import compile_native
from slidesparse.bench.sweep.chain import Chain, MakeMember, OurMember
from slidesparse.bench.sweep.job import CellTime, Engine, Job, Mode, System
from slidesparse.bench.sweep.timing import kernel_shares, prepare, sample
from slidesparse.bench.sweep.torch_model import TorchFunctions, TorchMember
from slidesparse.cache import TuningCache
from slidesparse.devices import Device, detect, l2_bytes
from slidesparse.errors import UsageError
from slidesparse.models import load_model


class LinearEngine(Engine):
    """Runs every linear of a model with what is fused to it, layer by layer.

    Args:
        device: a GPU, or the CPU for the reference implementations.
        job: what it measures.
    """

    def __init__(self, device: Device, job: Job) -> None:
        """Note the job."""
        super().__init__(device, job)
        self._where = torch.device(str(device))
        self._stream: torch.cuda.Stream | None = None
        if device.is_gpu:
            torch.cuda.set_device(device.index)
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def build(self) -> Mapping[str, str]:
        """Draw, prune, quantise and pack the weights.

        Raises:
            UsageError: graphs were asked of a CPU, or the model has no linears of this kind.
        """
        job, gpu = self.job, self.device.is_gpu
        if job.mode is Mode.GRAPHS and not gpu:
            raise UsageError("CUDA graphs need a GPU; use --modes eager")
        spec = load_model(job.model)
        layers = [layer for layer in spec.linears(job.tp) if layer.kind != "expert"]
        pattern = job.variant.pattern
        if job.variant.system is System.OURS and gpu:
            cache = TuningCache(None, detect(self.device))
            # What cannot be compiled is said by the layer that wants it; other processes find the
            # rest on disk.
            compile_native(layers, [job.dtype], [pattern], cache)
        self._chain = Chain(
            *(spec, layers, pattern, self._maker(), self._where, job.seed),
            l2_bytes(self.device) if gpu else 0,
            whole=gpu,
        )
        left_out = [it.name for it in spec.linears(job.tp) if it not in layers]
        left_out += [layer.name for layer in self._chain.left_out]
        return self._ran(left_out)

    def run(self, m: int) -> CellTime:
        """Measure one cell; see `Engine.run`."""
        chain = self._chain
        try:
            step = chain.inputs(m)
            timed = prepare(step, self.job.mode, self._stream)
            found = sample(timed, self.job.repeats, self.device)
            shares = kernel_shares(step, self._stream)
        finally:
            timed = step = None  # type: ignore[assignment]
            if self._stream is not None:
                torch.cuda.empty_cache()
        joules = found.watched.joules
        return CellTime(
            m=m,
            step_us=tuple(chain.scale * us for us in found.step_us),
            shares=shares,
            clock_mhz=found.watched.clock_mhz,
            power_w=found.watched.power_w,
            joules_per_token=None if joules is None else chain.scale * joules / found.steps / m,
            largest=chain.largest(m),
        )

    def _maker(self) -> MakeMember:
        job = self.job
        if job.variant.system is System.OURS:
            return partial(OurMember, pattern=job.variant.pattern, dtype=job.dtype)
        return partial(
            TorchMember, functions=TorchFunctions(job.dtype, compiles=self.device.is_gpu)
        )

    def _ran(self, left_out: list[str]) -> Mapping[str, str]:
        """What was built, by name."""
        chain, job = self._chain, self.job
        parts = ", ".join(
            f"{part.count // chain.scale} of {part.count} x ({' '.join(part.names)}) with the "
            f"weights of {held} in turn"
            for part, held in zip(chain.parts, chain.held, strict=True)
        )
        found = {"slidesparse": __version__, "torch": torch.__version__, "step": parts}
        if chain.scale > 1:
            found["scaled"] = f"times and joules are multiplied by {chain.scale} for all layers"
        if left_out:
            found["left out"] = ", ".join(left_out)
        if job.tp > 1:
            found["tensor parallel"] = f"one rank of {job.tp}, without communication"
        return {**found, **chain.describe(job.ms)}
