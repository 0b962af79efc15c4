"""Order of the stages of a plan: run in threads, side by side within slots, each retried as its
``meta`` says.

A stage is submitted when all that it depends on has ended and a slot is free, so that
``evaluate@bridge`` runs beside ``grpo@general``. Training stages exclude each other.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Cancelled

from flows.errors import StageCancelled, StageFailed, UsageError
from flows.repro import reproduce
from flows.repro.reproduce import StageResult
from flows.repro.scratch import release_scratch
from flows.repro.steps import Plan, PlanStep
from flows.repro.unchanged import Watch
from stages.tracking.lineage.uri import PARENT_VARIABLE

#: Exit status of a stage that needs a person, not another attempt.
USAGE_STATUS = 2
#: Time that tasks have to end after Ctrl-C.
_TASK_END_S = 20.0

Name = TypeVar("Name")


def stage_slots() -> int:
    """Number of stages that run side by side, ``VIDBRIDGE_STAGE_SLOTS`` (2: one trains, one
    evaluates).
    """
    text = os.environ.get("VIDBRIDGE_STAGE_SLOTS", "2")
    if not text.isdigit() or int(text) < 1:
        raise UsageError("VIDBRIDGE_STAGE_SLOTS", f"{text!r} is not a number of stages", "set a whole number >= 1")
    return int(text)


class Board:
    """Stages that wait, run and have ended; :attr:`ended` holds the result of each started step by
    its name.
    """

    def __init__(self, steps: tuple[PlanStep, ...], slots: int) -> None:
        self.waiting = {step.name: step for step in steps}
        self.running: dict[str, PlanStep] = {}
        self.done: dict[str, StageResult] = {}
        self.failed: dict[str, BaseException] = {}
        self.skipped: list[str] = []
        self.ended: queue.Queue[str] = queue.Queue()
        self._slots = slots
        self._weight = {step.name: _downstream(step.name, steps) for step in steps}

    def startable(self) -> Iterator[PlanStep]:
        """Yield the steps that may start now, first those that most others wait for: training
        before evaluation.
        """
        for step in sorted(self.waiting.values(), key=lambda step: -self._weight[step.name]):
            if len(self.running) >= self._slots:
                return
            if any(name in self.waiting or name in self.running for name in step.upstream):
                continue
            if step.meta.kind == "train" and any(other.meta.kind == "train" for other in self.running.values()):
                continue
            self.running[step.name] = self.waiting.pop(step.name)
            yield step

    def fail(self, name: str, error: BaseException) -> None:
        self.failed[name] = error
        lost = {name}
        # Steps are in topological order, so one pass finds all that depend on the failed one.
        for step in list(self.waiting.values()):
            if lost & set(step.upstream):
                lost.add(step.name)
                self.skipped.append(step.name)
                del self.waiting[step.name]


def _downstream(name: str, steps: tuple[PlanStep, ...]) -> int:
    reached = {name}
    for step in steps:
        if reached & set(step.upstream):
            reached.add(step.name)
    return len(reached) - 1


def _try_again(_task: object, _run: object, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, StageFailed) and error.exit_code == USAGE_STATUS)


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_try_again)
def run_stage(root: Path, step: PlanStep, env: dict[str, str], cancelled: threading.Event) -> StageResult | State[Any]:
    """Run one DVC stage; its lines go into the log of this task's run. A cancelled stage ends as
    cancelled, and is not retried.
    """
    if cancelled.is_set():
        return _cancelled(
            StageCancelled(f"stage {step.name}", "was cancelled before it started", "type: vidbridge run")
        )
    logger = get_run_logger()
    try:
        result = reproduce.reproduce(
            root,
            step.name,
            logger.info,
            env,
            timeout_s=step.meta.timeout_s,
            cancelled=cancelled,
            forced=step.forced,
        )
    except StageCancelled as error:
        return _cancelled(error)
    if step.meta.kind == "train" and (released := release_scratch(root, step.name, env[PARENT_VARIABLE])):
        logger.info("committed by DVC, so the state to resume from is deleted: %s", released)
    return result


@contextmanager
def ending_tasks(
    futures: Mapping[Name, PrefectFuture[Any]], running: Collection[Name], cancelled: threading.Event
) -> Iterator[None]:
    """Where this block ends by an error, or by Ctrl-C, tell its running tasks that they are
    cancelled, and wait for their end.
    """
    try:
        yield
    except BaseException:
        cancelled.set()
        for name in running:
            # Ctrl-C may have come between a task's place on the board and its submission.
            if name in futures:
                futures[name].wait(timeout=_TASK_END_S)
        raise


def run_stages(
    root: Path, plan: Plan, env: dict[str, str], cancelled: threading.Event, watch: Watch | None = None
) -> Board:
    """Run every stage of the plan that must run; stages that do not depend on a failed one still
    run. ``watch`` notes what each locks.
    """
    board = Board(plan.to_run, stage_slots())
    futures: dict[str, PrefectFuture[Any]] = {}

    def tell(name: str) -> Callable[[object], None]:
        return lambda _future: board.ended.put(name)

    with ending_tasks(futures, board.running, cancelled):
        while board.waiting or board.running:
            for step in board.startable():
                prepared = run_stage.with_options(
                    name=step.name,
                    task_run_name=step.name,
                    retries=step.meta.retries,
                    retry_delay_seconds=step.meta.retry_delay_s,
                    tags=[step.meta.kind],
                )
                before = [futures[name] for name in step.upstream if name in futures]
                future = prepared.submit(root, step, env, cancelled, wait_for=before, return_state=False)
                futures[step.name] = future
                future.add_done_callback(tell(step.name))
            name = board.ended.get()
            del board.running[name]
            outcome = futures[name].result(raise_on_failure=False)
            if isinstance(outcome, BaseException):
                board.fail(name, outcome)
            else:
                board.done[name] = outcome
                if watch is not None:
                    watch.note(name)
    return board


def _cancelled(error: StageCancelled) -> State[Any]:
    """Build a cancelled state with its reason as the result: for a state without one Prefect
    returns None, which would pass for a stage that has run.
    """
    return Cancelled(message=str(error), data=error)
