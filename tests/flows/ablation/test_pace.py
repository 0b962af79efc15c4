"""How many trainings run at a time, and how long a grid takes by earlier runs and by its own."""

from __future__ import annotations

import pytest

from flows.ablation import capacity as capacities
from flows.ablation.capacity import capacity
from flows.ablation.pace import Pace, Progress, first_estimate
from flows.ablation.schedule import Board
from stages.params import load_params
from stages.tracking.runs.history import Cost
from tests.support.checkout import ROOT

SMOKE = load_params(ROOT / "infra/recipes/smoke.yaml")


def cost(wall_s: float) -> Cost:
    return Cost(wall_s, 1.0, 1.5, 0.0)


def test_as_many_run_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacities, "cores", lambda: 16)
    monkeypatch.setattr(capacities, "free_memory_gb", lambda: 10.0)
    assert capacity(SMOKE, None, None).jobs == 5
    assert capacity(SMOKE, None, 0.5).jobs == 16
    assert capacity(SMOKE, None, 4.0).why == "16 cores, 10 GB of memory free, 4.0 GB a training"
    assert capacity(SMOKE, None, 100.0).jobs == 1, "one is always tried"
    assert capacity(SMOKE, 7, 100.0).jobs == 7
    assert capacity(load_params(ROOT / "infra/recipes/vidbridge-r1.yaml"), None, None).jobs == 1


def test_the_first_estimate_is_that_of_earlier_runs() -> None:
    assert first_estimate(SMOKE, {}, {}) == {}
    runs = {"corpus": 10.0, "ingest": 5.0, "base": 1.0, "sft@cold-start": 50.0, "evaluate@cold-start": 4.0}
    runs |= {"grpo@general": 60.0, "evaluate@general": 4.0, "grpo@bridge": 999.0, "summary": 999.0}
    general, qa = SMOKE.grpo["general"], SMOKE.variants["qa"]
    share = qa.steps / general.steps
    found = first_estimate(SMOKE, {}, {stage: cost(wall_s) for stage, wall_s in runs.items()})
    assert found["start"] == 70
    assert found["variant"] == pytest.approx(60 * share + 4)
    grids = {"corpus": [cost(20), cost(10)], "evaluate@cold-start": [cost(4)], "grpo@qa": [cost(7)]}
    assert first_estimate(SMOKE, grids, {}) == {"start": 19}
    grids |= {"evaluate@qa": [cost(3)]}
    assert first_estimate(SMOKE, grids, {"base": cost(999)}) == {"start": 19, "variant": 10}


def test_progress_counts_trainings_and_learns_from_them() -> None:
    board = Board([1, 2], "cold-start", ("a", "b", "c"), done={(1, "a")}, jobs=2)
    progress = Progress(6, 1, 2, Pace({"start": 600.0, "variant": 1200.0}))
    units = [unit for unit, _ in board.startable()]
    for unit in units:
        progress.started(board, unit)
    assert str(progress) == "1 of 6, 2 running, about 60 min left"
    for unit in units:
        board.end(unit)
        progress.ended(board, unit, worked=False)
    unit, _ = next(iter(board.startable()))
    progress.started(board, unit)
    assert str(progress) == "1 of 6, 1 running, about 50 min left"
    board.end(unit)
    progress.ended(board, unit, worked=True)
    assert str(progress) == "2 of 6, about 1 min left", "it took no time"
    while not board.finished:
        for unit, _ in list(board.startable()):
            progress.started(board, unit)
            board.end(unit)
            progress.ended(board, unit, worked=True)
    assert str(progress) == "6 of 6"
    unknown = Board([1], "cold-start", ("a",))
    untold = Progress(1, 0, 1, Pace({}))
    unit, _ = next(unknown.startable())
    untold.started(unknown, unit)
    assert str(untold) == "0 of 1, 1 running"
