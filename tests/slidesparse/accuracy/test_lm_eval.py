"""Handing over to lm-evaluation-harness, with a stand-in for it."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn

from slidesparse.accuracy.lm_eval import Tasks
from slidesparse.errors import CalibrationError, ModelError, UsageError


class Harness:
    """What of lm_eval is used, noting how."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None
        package: Any = ModuleType("lm_eval")
        package.simple_evaluate = self.simple_evaluate
        models: Any = ModuleType("lm_eval.models.huggingface")
        models.HFLM = lambda **named: SimpleNamespace(**named)
        tasks: Any = ModuleType("lm_eval.tasks")
        tasks.TaskManager = lambda: SimpleNamespace(all_tasks=["arc_easy", "hellaswag"])
        for module in (package, models, tasks, ModuleType("lm_eval.models")):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def simple_evaluate(self, **named: Any) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        self.calls.append(named)
        found = {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": float("nan"), "n": None}
        return {"results": {"arc_easy": found}, "samples": ["a lot"]}


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    return Harness(monkeypatch)


def test_a_model_is_handed_over(harness: Harness) -> None:
    model, tokenizer = nn.Linear(2, 2), object()
    found = Tasks(["arc_easy"], tokenizer, limit=5)(model)
    assert found == {"arc_easy": {"alias": "arc", "acc,none": 0.25}}, "no NaN in a result file"
    (call,) = harness.calls
    assert call["model"].pretrained is model
    assert call["model"].tokenizer is tokenizer
    assert (call["tasks"], call["limit"]) == (["arc_easy"], 5)


def test_an_unknown_task_is_found_before_the_run(harness: Harness) -> None:
    with pytest.raises(UsageError, match="knows no task 'arc_easier'; lm_eval ls tasks lists them"):
        Tasks(["arc_easy", "arc_easier"], None)
    assert not harness.calls


def test_a_task_that_fails(harness: Harness) -> None:
    harness.error = ConnectionError("no data set\nand more")
    with pytest.raises(CalibrationError, match=r"failed on arc_easy: no data set$"):
        Tasks(["arc_easy"], None)(nn.Linear(2, 2))


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ModelError, match=r"pip install 'lm_eval\[hf\]'"):
        Tasks(["arc_easy"], None)
