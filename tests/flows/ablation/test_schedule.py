"""Order of a grid's units and the time they still take, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from flows.ablation.schedule import Board, Kind, Unit, seconds_left

TAKES: dict[Kind, float] = {"start": 300.0, "variant": 60.0}


def simulate(board: Board, takes: Mapping[Kind, float] = TAKES) -> tuple[float, list[tuple[float, Unit, int]]]:
    """Run the board with exact times; returns the end, and when each unit started in which lane."""
    clock, ends, started = 0.0, dict[Unit, float](), list[tuple[float, Unit, int]]()
    while not board.finished:
        for unit, lane in board.startable():
            ends[unit] = clock + takes[unit.kind]
            started.append((clock, unit, lane))
        unit = min(ends, key=lambda unit: ends[unit])
        clock = ends.pop(unit)
        board.end(unit)
    return clock, started


@pytest.mark.parametrize("jobs", [1, 2, 3, 16])
@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_everything_runs_once_after_its_start_and_no_lane_twice_at_a_time(seeds: int, jobs: int) -> None:
    board = Board(range(seeds), "cold-start", tuple("abcdefg"), jobs=jobs)
    running: dict[tuple[int, int], float] = {}
    _, started = simulate(board)
    assert len({unit for _, unit, _ in started}) == len(started) == seeds * 8
    begun = {unit.seed: at for at, unit, _ in started if unit.kind == "start"}
    for at, unit, lane in started:
        if unit.kind == "variant":
            assert at >= begun[unit.seed] + TAKES["start"]
        assert at >= running.get((unit.seed, lane), 0.0)
        running[unit.seed, lane] = at + TAKES[unit.kind]
    assert board.failed == {}


def test_seeds_run_side_by_side_before_trainings_of_one_seed_do() -> None:
    _, started = simulate(Board(range(6), "cold-start", tuple("abcdefghi"), jobs=2))
    assert {unit.seed for _, unit, lane in started if lane > 1} == {5}, "when no other seed is left"
    end, started = simulate(Board([7], "cold-start", tuple("abcdefgh"), jobs=4))
    assert end == 300 + 2 * 60
    assert {lane for _, _, lane in started} == {1, 2, 3, 4}


def test_no_job_waits_for_the_start_of_an_odd_last_seed() -> None:
    end, _ = simulate(Board(range(5), "cold-start", tuple("abcdefghi"), jobs=2))
    work = 5 * (300 + 9 * 60)
    assert end <= work / 2 + TAKES["variant"]


def test_one_at_a_time_a_seed_ends_before_the_next_begins() -> None:
    _, started = simulate(Board([3, 1], "cold-start", ("a", "b"), jobs=1))
    assert [str(unit) for _, unit, _ in started] == [
        f"seed {seed}: {name}" for seed in (3, 1) for name in ("cold-start", "a", "b")
    ]


def test_what_is_done_is_left_out_with_the_start_of_a_whole_seed() -> None:
    board = Board([1, 2], "cold-start", ("a", "b"), done={(1, "a"), (1, "b"), (2, "a")})
    _, started = simulate(board)
    assert [str(unit) for _, unit, _ in started] == ["seed 2: cold-start", "seed 2: b"]
    assert Board([1], "base", ("a",), done={(1, "a")}).finished


def test_a_failure_takes_only_what_depends_on_it() -> None:
    board = Board([1, 2], "cold-start", ("a", "b"), jobs=2)
    first, second = (unit for unit, _ in board.startable())
    board.fail(first, ValueError("of the start"))
    board.end(second)
    assert [str(unit) for unit in board.skipped] == ["seed 1: a", "seed 1: b"]
    left = [unit for unit, _ in board.startable()]
    assert [str(unit) for unit in left] == ["seed 2: a", "seed 2: b"]
    board.fail(left[0], ValueError("of the variant"))
    board.end(left[1])
    assert board.finished
    assert list(board.failed) == [first, left[0]]
    assert board.ended == [second, left[1]]


def test_time_left_is_that_of_the_work_or_of_the_longest_chain() -> None:
    waiting = {1: [Unit(1, "variant", name) for name in "abc"], 2: [Unit(2, "start", "s"), Unit(2, "variant", "a")]}
    assert seconds_left(waiting, {}, 1, TAKES) == 3 * 60 + 300 + 60
    assert seconds_left(waiting, {}, 2, TAKES) == 300 + 60, "two halves would be 270"
    assert seconds_left({}, {Unit(1, "variant", "a"): 20.0}, 2, TAKES) == 40
    assert seconds_left({}, {Unit(1, "variant", "a"): 90.0}, 2, TAKES) == 0, "longer than it was thought to take"
    assert seconds_left(waiting, {}, 2, {"start": 300.0}) is None
    assert seconds_left({}, {}, 2, {}) == 0
