"""PartialModel: a causal LM that runs from one of its decoder blocks on, or only one of them.

Masks, position embeddings, the final norm and the head stay the model's own business: its forward
runs as always, only that the blocks before the first wanted one hand on hidden states that are
already known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from slidesparse.errors import CalibrationError
from slidesparse.prune.inputs import blocks_of, evaluating

LOGIT_BYTES = {"cuda": 2 << 30, "cpu": 128 << 20}
"""What the logits of one batch may take, in float32; a few times that is in use at the peak."""

ROWS = 4096
"""Tokens whose logits are turned into losses at once."""


class _Stop(Exception):
    """Ends a forward pass whose remainder nobody needs."""


class PartialModel:
    """Runs a transformers causal LM in pieces.

    Args:
        model: on one device; stays as it is between calls.

    Raises:
        ModelError: its decoder blocks cannot be found.
    """

    def __init__(self, model: nn.Module) -> None:
        """Find the blocks; nothing runs."""
        self.model = model
        self.blocks: Sequence[nn.Module] = list(blocks_of(model))
        self.device = next(model.parameters()).device
        self._tuples: bool | None = None

    def batches(self, windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split windows [S, L] into batches on the device whose logits fit LOGIT_BYTES."""
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        per_window = windows.shape[1] * int(head.weight.shape[0]) * 4
        size = max(1, LOGIT_BYTES.get(self.device.type, 1 << 30) // per_window)
        return torch.split(windows.to(self.device), size) if len(windows) else ()

    @torch.no_grad()
    def before_blocks(self, batch: torch.Tensor) -> torch.Tensor:
        """The input [B, L, H] of the first block for tokens `batch` [B, L]."""
        found: list[torch.Tensor] = []

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])
            raise _Stop

        self._run_until(batch, self.blocks[0].register_forward_pre_hook(note, with_kwargs=True))
        return found[0]

    @torch.no_grad()
    def through(self, batch: torch.Tensor, block: int, hidden: torch.Tensor) -> torch.Tensor:
        """The output [B, L, H] of one block for its input `hidden` [B, L, H].

        Args:
            batch: the tokens [B, L] that `hidden` comes from.
            block: index of the block.
            hidden: its input.
        """
        found: list[torch.Tensor] = []

        def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Releases of transformers differ in whether a block returns a tuple.
            self._tuples = isinstance(output, tuple)
            found.append(output[0] if isinstance(output, tuple) else output)
            raise _Stop

        with self._given(block, hidden):
            self._run_until(batch, self.blocks[block].register_forward_hook(note))
        return found[0]

    @torch.no_grad()
    def logits_from(self, batch: torch.Tensor, block: int, hidden: torch.Tensor) -> torch.Tensor:
        """The logits [B, L, V] of a batch, run from one block on.

        Args:
            batch: the tokens [B, L].
            block: index of the first block that runs; as many as there are for the head alone.
            hidden: its input [B, L, H].
        """
        with self._given(block, hidden), _fast_products(self.device):
            return self._forward(batch)

    @torch.no_grad()
    def losses(self, windows: torch.Tensor) -> tuple[float, ...]:
        """Mean negative log-likelihood in nats per token of each window, the whole model run.

        Args:
            windows: [S, L] int64.

        Raises:
            CalibrationError: one is NaN or infinite, or there is no token to predict.
        """
        with _fast_products(self.device):
            sums = [_summed_losses(self._forward(batch), batch) for batch in self.batches(windows)]
        return _means_of(sums, windows)

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        with evaluating(self.model):
            return self.model(input_ids=batch, use_cache=False).logits  # type: ignore[no-any-return]

    def _run_until(self, batch: torch.Tensor, hook: Any) -> None:
        """Run the model until the hook stops it."""
        try:
            self._forward(batch)
        except _Stop:
            pass
        finally:
            hook.remove()

    @contextmanager
    def _given(self, block: int, hidden: torch.Tensor) -> Iterator[None]:
        """Let the blocks before `block` pass on `hidden` instead of running."""
        if block == 0:
            with _replaced_input(self.blocks[0], hidden):
                yield
            return
        with ExitStack() as stack:
            made = (hidden,) if self._returns_tuples() else hidden
            for skipped in self.blocks[:block]:
                stack.enter_context(_forwarding(skipped, lambda *_, **__: made))
            yield

    def _returns_tuples(self) -> bool:
        """Whether blocks return tuples, as they did before transformers 4.54."""
        if self._tuples is None:
            batch = torch.zeros((1, 1), dtype=torch.int64, device=self.device)
            self.through(batch, 0, self.before_blocks(batch))
        return bool(self._tuples)


def _means_of(sums: Sequence[torch.Tensor], windows: torch.Tensor) -> tuple[float, ...]:
    """Losses in nats per token from summed ones, [B] per batch, of windows [S, L]."""
    if not windows.shape[0] or windows.shape[1] < 2:
        raise CalibrationError(
            f"{windows.shape[0]} windows of {windows.shape[1]} tokens leave no token to predict; "
            "use windows of two or more"
        )
    means = (torch.cat(list(sums)) / (windows.shape[1] - 1)).tolist()
    wrong = [mean for mean in means if not math.isfinite(mean)]
    if wrong:
        raise CalibrationError(
            f"the loss of the model is {wrong[0]} on this text; run it in bfloat16 or float32"
        )
    return tuple(means)


def _summed_losses(logits: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    rows = logits[:, :-1].reshape(-1, logits.shape[-1])
    targets = batch[:, 1:].reshape(-1)
    losses = [
        functional.cross_entropy(part.float(), wanted, reduction="none")
        for part, wanted in zip(torch.split(rows, ROWS), torch.split(targets, ROWS), strict=True)
    ]
    return torch.cat(losses).view(batch.shape[0], -1).sum(dim=1, dtype=torch.float64)


@contextmanager
def _fast_products(device: torch.device) -> Iterator[None]:
    """Inside, a GPU multiplies float32 matrices in TF32: losses only, never statistics.

    Every loss is compared with others that were computed the same way.
    """
    held = torch.get_float32_matmul_precision()
    try:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        torch.set_float32_matmul_precision(held)


@contextmanager
def _forwarding(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module's forward be another function; attributes that the model reads stay."""
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]


@contextmanager
def _replaced_input(module: nn.Module, hidden: torch.Tensor) -> Iterator[None]:
    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    hook = module.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
