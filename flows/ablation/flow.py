"""``vidbridge ablate`` as a Prefect flow: every seed's start and variants, several at a time, in
clones of the committed state below ``.vidbridge/ablation``.

A seed's data, base and start are made once. All clones share the project's DVC cache, so a grid
that was interrupted, or run again after a change elsewhere, makes only what is missing. A unit that
fails takes nothing with it but the variants of a start that failed.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.ablation.capacity import MOST_JOBS, Capacity, capacity
from flows.ablation.lanes import IN_DVC, Lanes, ablation_folder
from flows.ablation.pace import Pace, Progress, first_estimate
from flows.ablation.results import check, publish
from flows.ablation.schedule import Board, Kind, Unit
from flows.ablation.unit import GridRun, run_unit
from flows.console.ablation import shown_in_place
from flows.errors import FlowError, RunFailed
from flows.execution.prefect_runs import watching_for_cancel
from flows.execution.scheduler import ending_tasks
from flows.processes.environment import exported
from flows.processes.lost import at_work
from flows.processes.warm_pool import warmed
from stages.params import Params, load_params
from stages.runtime import paths
from stages.runtime.machine import cores
from stages.tools.ablation.grid import Grid, NothingRunError
from stages.tools.ablation.table import markdown
from stages.tools.ablation.variants import start_of
from stages.tracking.lineage.uri import PARENT_VARIABLE, patience_s, patiently
from stages.tracking.runs.history import grid_costs, latest_costs
from stages.tracking.runs.run import ablation_run
from stages.tracking.runs.store import is_away, open_client

#: Stages that use a warm process: at least training and evaluation of one variant.
_WARM_STAGES = 2


@flow(
    name="vidbridge-ablation",
    flow_run_name="ablation",
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_JOBS),  # type: ignore[arg-type]
    persist_result=False,
    validate_parameters=False,
)
def ablation(root: Path, jobs: int | None, command: str) -> Grid | State[Any]:
    """Run the missing part of the grid, ``jobs`` units at a time (None: as many as the machine
    takes), and write the results.
    """
    root = Path(root)
    params = load_params(root / paths.PARAMS_FILE)
    commit = check(root, params)
    grid = params.ablation
    assert grid is not None
    lanes, cancelled = Lanes(root, ablation_folder(root, params), commit), threading.Event()
    with at_work(), watching_for_cancel(cancelled), ablation_run(params, root, commit) as run:
        assert run.run_id is not None
        first, peak_gb = _from_history(root, params)
        most = capacity(params, jobs, peak_gb)
        with exported(PARENT_VARIABLE, run.run_id):
            board = _run_units(params, lanes, most, Pace(first), cancelled)
        if cancelled.is_set():
            return Cancelled(message="cancelled; every stage has been ended, the next run goes on where it stopped")
        try:
            found = publish(root, params, command, run)
        except NothingRunError:
            if not board.failed:
                raise
            return _failure(board, lanes)
        create_markdown_artifact(key="ablation", markdown=markdown(found), description="What the grid came to")
        if board.failed:
            return _failure(board, lanes)
    return found


def _from_history(root: Path, params: Params) -> tuple[dict[Kind, float], float | None]:
    """Seconds of a unit of each kind, and peak memory in GB of the largest training, as far as
    MLflow has earlier runs.
    """

    def ask() -> tuple[dict[Kind, float], float | None]:
        client = open_client(root)
        grids = grid_costs(client, root, params.recipe)
        runs = {} if grids else latest_costs(client, root)
        known = grids or {stage: [cost] for stage, cost in runs.items()}
        trained = [cost.peak_gb for stage in known if stage.startswith(("sft@", "grpo@")) for cost in known[stage]]
        return first_estimate(params, grids, runs), max(trained, default=None)

    return patiently(ask, patience_s(), is_away)


def _run_units(params: Params, lanes: Lanes, most: Capacity, pace: Pace, cancelled: threading.Event) -> Board:
    logger, start = get_run_logger(), start_of(params)
    assert params.ablation is not None
    seeds, variants = params.ablation.seeds, params.ablation.variants
    run, total = GridRun(params, lanes, {}), len(seeds) * len(variants)
    done = {(seed, name) for seed in seeds for name in variants if run.is_done(Unit(seed, "variant", name))}
    # More could not run side by side, and would only divide the cores.
    jobs = max(1, min(most.jobs, total - len(done)))
    board = Board(seeds, start, tuple(variants), done, jobs)
    progress = Progress(total, len(done), jobs, pace)
    before = f", {len(done)} of them done before" if done else ""
    logger.info("%d trainings%s; %d at a time (%s)", total, before, jobs, most.why)
    if board.finished:
        return board
    with IN_DVC:
        # Not in the project: its code may be edited while the grid runs.
        first = lanes.prepare(next(iter(board.waiting)), 1)
    with warmed(first, params, _WARM_STAGES) as warm, shown_in_place(lambda: str(progress)):
        _drain(replace(run, env={**_environment(jobs), **warm}), board, progress, cancelled)
    return board


def _environment(jobs: int) -> dict[str, str]:
    """Environment of every stage: the cores are divided among the units, unless the user said how
    many processes read videos, or train."""
    shares = {"VIDBRIDGE_WORKERS": str(max(1, cores() // jobs))}
    if jobs > 1:
        shares["VIDBRIDGE_RANKS"] = "1"
    return {name: value for name, value in shares.items() if not os.environ.get(name)}


def _drain(run: GridRun, board: Board, progress: Progress, cancelled: threading.Event) -> None:
    """Run all units of the board, until they have ended or ``cancelled`` is set."""
    logger = get_run_logger()
    futures: dict[Unit, PrefectFuture[Any]] = {}
    ended: queue.Queue[Unit] = queue.Queue()

    def tell(unit: Unit) -> Callable[[object], None]:
        return lambda _future: ended.put(unit)

    note = ""
    with ending_tasks(futures, board.running, cancelled):
        while True:
            for unit, lane in board.startable() if not cancelled.is_set() else ():
                named = run_unit.with_options(name=unit.name, task_run_name=str(unit))
                futures[unit] = named.submit(run, unit, lane, cancelled, return_state=False)
                progress.started(board, unit)
                futures[unit].add_done_callback(tell(unit))
            if note:
                logger.info("%s; %s", note, progress)
            if not board.running:
                return  # all have ended, or the rest was cancelled before it started
            unit = ended.get()
            futures[unit].wait()  # until then its state is that of a running task
            ran = _outcome(unit, futures[unit].state)
            if isinstance(ran, BaseException):
                board.fail(unit, ran)
                note = f"{unit}: cancelled" if cancelled.is_set() else f"{unit}: failed, see {run.log(unit)}"
            else:
                board.end(unit)
                note = f"{unit}: {ran} stages ran"
            progress.ended(board, unit, worked=not isinstance(ran, BaseException) and ran > 0)


def _outcome(unit: Unit, state: State[Any]) -> int | BaseException:
    """Number of stages that ran, or the error of the unit's task."""
    outcome = state.result(raise_on_failure=False)
    if isinstance(outcome, BaseException):
        return outcome
    if not state.is_completed():
        return FlowError(str(unit), state.message or str(state.name), "see its log on the run's page")
    return int(outcome)


def _failure(board: Board, lanes: Lanes) -> State[Any]:
    lines = [f"{unit}: {error}" for unit, error in board.failed.items()]
    if board.skipped:
        lines.append(f"not run because of that: {', '.join(map(str, board.skipped))}")
    done = sum(unit.kind == "variant" for unit in board.ended)
    error = RunFailed(
        lines,
        f"logs: {lanes.grid / 'logs'}; what was done stays done ({done} trainings in this run); mend the cause and"
        " type: vidbridge ablate",
    )
    return Failed(message=str(error), data=error)
