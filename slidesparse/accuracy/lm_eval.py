"""Hand a model over to lm-evaluation-harness, where that is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from slidesparse.errors import CalibrationError, ModelError, UsageError


class Tasks:
    """Tasks of lm-evaluation-harness, to run on several variants of one model.

    Args:
        names: of the tasks, "hellaswag", "arc_easy".
        tokenizer: of the model.
        limit: examples per task; None for all.

    Raises:
        ModelError: the harness is not installed.
        UsageError: it does not know a task.
    """

    def __init__(self, names: Sequence[str], tokenizer: Any, limit: int | None = None) -> None:
        """Find the harness and the tasks; nothing runs."""
        self.names, self.tokenizer, self.limit = tuple(names), tokenizer, limit
        try:
            import lm_eval
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise ModelError(
                f"--lm-eval needs lm-evaluation-harness ({error}): pip install 'lm_eval[hf]'"
            ) from error
        self._lm_eval, self._wrap = lm_eval, HFLM
        self._manager = TaskManager()
        unknown = [name for name in self.names if name not in self._manager.all_tasks]
        if unknown:
            raise UsageError(
                f"lm-evaluation-harness knows no task {unknown[0]!r}; lm_eval ls tasks lists them"
            )

    def __call__(self, model: nn.Module) -> Mapping[str, Any]:
        """Run all tasks on a model as it is now.

        Returns:
            By task, what the harness reports: "acc,none" and the like.

        Raises:
            CalibrationError: a task could not run, for example for want of its data.
        """
        try:
            made = self._lm_eval.simple_evaluate(
                model=self._wrap(pretrained=model, tokenizer=self.tokenizer),
                tasks=list(self.names),
                task_manager=self._manager,
                limit=self.limit,
            )
        except Exception as error:
            # Tasks load data sets and run code of their own: anything can come out of them.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise CalibrationError(
                f"lm-evaluation-harness failed on {', '.join(self.names)}: {lines[0]}"
            ) from error
        results = made["results"]
        return {name: _plain(results[name]) for name in sorted(results)}


def _plain(result: Mapping[str, Any]) -> dict[str, float | str]:
    """What a result file holds of one task: numbers, and the alias."""
    kept: dict[str, float | str] = {}
    for key, value in result.items():
        if isinstance(value, str):
            kept[key] = value
        elif hasattr(value, "__float__") and float(value) == float(value):
            kept[key] = float(value)
    return kept
