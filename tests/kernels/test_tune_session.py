"""The worker's side of tuning: which configurations are kept for the race. Nothing runs here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tune_fakes import GPU, problem

from slidesparse.kernels import tune_session as module
from slidesparse.kernels.config import Config
from slidesparse.kernels.tune_session import KernelSession

FAST, SLOW, SLOWER = Config(512, 4), Config(1024, 4), Config(2048, 4)
TIMES = {FAST: 10.0, SLOW: 100.0, SLOWER: 1000.0}


class Timed:
    """Takes as long as TIMES says."""

    sets, launches = 2, 8

    def __init__(self, us):
        self._us, self._queued = us, 0

    @classmethod
    def make(cls, runner, sets, stream, patience):
        us = TIMES[runner()]
        return cls(us), us

    def enqueue(self):
        self._queued += 1

    def collect(self):
        samples, self._queued = [self._us] * self._queued, 0
        return samples


@pytest.fixture
def session(monkeypatch, seed):
    """On a GPU that nobody touches; every configuration is right."""
    case = SimpleNamespace(sets=[0, 1], problem=problem(), wrong=lambda config: None)
    case.run = lambda config, index: config
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(module, "l2_bytes", lambda device: 1)
    monkeypatch.setattr(module, "Case", lambda *arguments: case)
    monkeypatch.setattr(module, "Runner", lambda run: lambda: run(0, None))
    monkeypatch.setattr(module, "GpuTimed", Timed)
    return KernelSession(GPU, seed)


def race(session, *configs):
    made = session.race(problem(), tuple(config.candidate for config in configs), 9)
    return [(Config.of(m.candidate), m.median_us, m.samples) for m in made]


def test_a_slow_one_is_timed_once(session):
    screened = [session.screen(problem(), config.candidate) for config in (FAST, SLOW)]
    assert [m.samples for m in screened] == [module.SCREEN_SAMPLES, 1]


def test_a_slow_one_races_nevertheless(session):
    """As the default does: it is screened again, with patience."""
    for config in (FAST, SLOW):
        session.screen(problem(), config.candidate)
    assert race(session, FAST, SLOW) == [(FAST, 10.0, 9), (SLOW, 100.0, 9)]


def test_after_a_restart_all_are_screened_with_patience(session):
    made = race(session, FAST, SLOW, SLOWER)
    assert made == [(config, TIMES[config], 9) for config in (FAST, SLOW, SLOWER)]
