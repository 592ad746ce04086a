"""A closed loop in a real vLLM whose model is a clock (see vllm_on_cpu), for a test to look at.

Run as a script, since which platform vLLM sees is decided once per process:
    python vllm_closed_loop.py FOLDER < a JSON object of settings
"engines" is a list of settings, one engine each. It measures each cell of their "ms" as
`slidesparse bench decode --counters` does and prints what came of them as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_on_cpu import choose_platform, clock_executor


def main(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Build each engine and measure its cells."""
    from slidesparse.bench.sweep.vllm_compat import prepare

    prepare()
    choose_platform(settings["ahead"])
    return {"engines": [measure(folder, each) for each in settings["engines"]]}


def measure(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Build one engine and measure each cell; errors are results, too."""
    from slidesparse.bench.counters.compat import LoopEngine
    from slidesparse.bench.counters.job import Load
    from slidesparse.bench.counters.record import LoadFigures
    from slidesparse.bench.counters.sampler import Source
    from slidesparse.bench.counters.vllm import LoadEngine
    from slidesparse.bench.sweep.job import Mode
    from slidesparse.bench.sweep.vllm_steps import StepError
    from slidesparse.devices import CPU
    from slidesparse.problem import DType

    class ClockEngine(LoadEngine):
        """All of it but the GPU."""

        def _check_device(self) -> None:
            pass

        def _start(self, arguments: dict[str, Any]) -> LoopEngine:
            arguments["distributed_executor_backend"] = clock_executor(settings["blocks"])
            # It asks no worker and loads no weights.
            del arguments["worker_extension_cls"]
            return super()._start(arguments)

    load = Load(
        models=(str(folder),),
        dtypes=(DType.FP8,),
        concurrencies=tuple(settings["ms"]),
        modes=(Mode.EAGER,),
        tp=1,
        prompt=settings["prompt"],
        outputs=settings["outputs"],
        seconds=settings["seconds"],
        settle=settings["settle"],
        sample_ms=10,
        source=Source.AUTO,
        seed=3,
    )
    engine = ClockEngine(CPU, load.turns()[0].job)
    found: dict[str, Any] = {"said": dict(engine.build())}
    live = engine.live
    assert live is not None
    for m in settings["ms"]:
        try:
            made = asdict(LoadFigures.of(engine.run(m)))
        except StepError as error:
            made = {"error": str(error)}
        flow = [tuple(step) for step in live.flow]
        found[str(m)] = {**made, "flow": flow, "unfinished": live.unfinished}
    return found


def run(arguments: Sequence[str]) -> None:
    """As a script."""
    print("\n" + json.dumps(main(Path(arguments[0]), json.load(sys.stdin))))


if __name__ == "__main__":
    run(sys.argv[1:])
