"""The plug-in for vLLM: `pip install slidesparse[vllm]`, and vLLM's W8A8 linears run ours.

register       what the entry point `vllm.general_plugins` calls
compat         the differences between versions of vLLM
options        what `--additional-config '{"slidesparse": {...}}'` may say
session        models that share a compilation: their options, what was taken, the summary
taken          one linear layer: its pattern, plan and packed weight
kernel         the classes that vLLM asks for its FP8 and INT8 linear layers
fusion         joins norms and activations with the linears behind them, in a graph
graph_pass     that as a pass of Inductor, in the key of caches of compiled graphs
sparse24       checkpoints in the form sparse-24-bitmask

Importing this module imports nothing else.
"""

from __future__ import annotations

import logging

log = logging.getLogger("vllm.slidesparse")  # Where vLLM shows it like its own lines.


def register() -> None:
    """Register with the vLLM that calls this; idempotent, and never raises.

    vLLM calls it in each of its processes. A vLLM that is not supported, or anything that breaks
    here, costs one warning: vLLM then serves models as if this package were not installed.
    """
    try:
        from slidesparse.vllm import compat

        reason = compat.unsupported()
        if reason:
            log.warning("slidesparse leaves vLLM alone: %s", reason)
            return
        from slidesparse.vllm import kernel, sparse24

        kernel.install()
        sparse24.install()
    except Exception as error:
        log.warning("slidesparse leaves vLLM alone: %s: %s", type(error).__name__, error)
