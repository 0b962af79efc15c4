"""Execution of a plan: run one stage, fetch and check out what need not run; accept what stands.

A stage runs as ``dvc repro --single-item`` under a guard, so that nothing of it outlives the flow.
DVC is imported inside functions: ``vidbridge --help`` must not wait for it.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from flows.content import checkouts
from flows.content.opened import opened_content
from flows.errors import DvcError, StageCancelled, StageFailed, StageTimedOut, UsageError
from flows.processes import verbosity
from flows.processes.environment import stage_environment
from flows.processes.stream import Cancelled, TimedOut, stream
from flows.repro import acceptance, lockfile, package_code
from flows.repro import fetch as fetching
from flows.repro.plan import closure, make_plan, selected
from flows.repro.remote_process import ask_in_own_process
from flows.repro.steps import Plan, PlanStep, held
from flows.repro.walk import name_of
from stages.runtime.plain import one_line, redacted
from stages.tracking.lineage.lockfile import read_lock

_TAIL_LINES = 15
#: Advice that DVC prints after every stage; the flow pushes and commits by itself.
_ADVICE = (
    "To track the changes with git, run:",
    "\tgit add ",
    "To enable auto staging, run:",
    "\tdvc config core.autostage",
    "Use `dvc push`",
)


@dataclass(frozen=True)
class StageResult:
    """Result of a stage. ``cached``: DVC had run the very same stage before and took its outputs;
    ``unchanged``: there was nothing to do after all.
    """

    stage: str
    outcome: Literal["ran", "cached", "unchanged"]
    seconds: float


def bring(root: Path, plan: Plan, log: Callable[[str], None], cancelled: threading.Event | None = None) -> Plan:
    """Fetch and check out as planned, take over what the run cache knows, and return the plan of
    what is left to do.

    Logs what the remote turns out to lack, or holds damaged, and the stages of it run. Fetched
    files stay if this is interrupted.

    Raises:
        DvcError: the remote stopped answering, or an object is not in the cache after all.
        StageCancelled: ``cancelled`` was set.
        UnsafeContent: an out, or a list of files behind one, would write elsewhere; nothing was
            checked out.
    """
    steps = tuple(step for step in plan.steps if step.state in ("fetch", "restore") or step.entry is not None)
    if not steps:
        return plan
    lost: frozenset[str] = frozenset()
    if plan.to_fetch or any(step.entry for step in steps):
        if plan.to_fetch:
            files, megabytes = held(plan.to_fetch)
            log(f"fetching {files:,} files, {megabytes:,.1f} MB from the remote")
        question = json.dumps(
            {"do": "bring", "steps": TypeAdapter(tuple[PlanStep, ...]).dump_python(steps, mode="json")}
        )
        try:
            answer = ask_in_own_process(root, question, log, cancelled=cancelled)
        except Cancelled as error:
            raise StageCancelled(
                "fetch", "cancelled", "what has arrived stays in the cache, and the next run continues from there"
            ) from error
        except DvcError as error:
            remedy = f"{error.remedy}; what has arrived stays in the cache, continue with: vidbridge run"
            raise DvcError.from_error(error, remedy=remedy.removeprefix("; ")) from error
        lost = frozenset(json.loads(answer))
    else:
        restore(root, steps)
    lockfile.keep(root)
    return make_plan(root, plan.target, lost=lost)


def restore(root: Path, steps: tuple[PlanStep, ...]) -> None:
    """Check out the outputs of unchanged stages from DVC's cache.

    Raises:
        DvcError: an object is not in the cache after all.
        UnsafeContent: an out, or a list of files behind one, would write elsewhere; nothing was
            checked out.
    """
    names = {step.name for step in steps}
    with opened_content(root) as content:
        found = [stage for stage in content.repo.index.stages if name_of(stage) in names]
        checkouts.check(content.repo, found)
        # Whole paths: DVC counts others from the working directory, which for a clone is another
        # project's.
        content.repo.checkout(targets=[out.fs_path for stage in found for out in stage.outs])


def fetch(root: Path, steps: tuple[PlanStep, ...], say: Callable[[str], None]) -> set[str]:
    """Do the work of :func:`bring` in this process; returns the objects that the remote did not
    have, or only damaged.

    Raises:
        DvcError, TrackingError: the remote stopped answering.
        UnsafeContent: as :func:`restore`.
    """
    lost: dict[str, set[str]] = {}
    with opened_content(root) as content:
        total = held(tuple(step for step in steps if step.state == "fetch"))
        came = fetching.Progress(say, *total)
        for step in steps:
            if step.state == "fetch" and (missing := fetching.fetch(content, step, came)):
                lost[step.name] = missing
        fetching.take_over(content, [step for step in steps if step.entry is not None and step.name not in lost])
    ready = tuple(step for step in steps if step.state in ("fetch", "restore") and step.name not in lost)
    if ready:
        restore(root, ready)
    return set().union(*lost.values())


def reproduce(
    root: Path,
    stage: str,
    log: Callable[[str], None],
    env: Mapping[str, str] | None = None,
    *,
    timeout_s: float | None = None,
    cancelled: threading.Event | None = None,
    forced: bool = False,
) -> StageResult:
    """Run one stage through DVC, its output line by line into ``log``. DVC's lock is waited for;
    its dependencies are not run.

    ``env`` is added to the environment of the stage. ``forced``: run it although DVC sees no
    change. Returns when DVC has committed the stage's
    outputs to its cache.

    Raises:
        StageFailed: the command, or DVC, ended with a non-zero status.
        StageTimedOut: it ran longer than ``timeout_s`` seconds.
        StageCancelled: ``cancelled`` was set. In each case no process of the stage is left.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    progress: dict[str, Any] = {"outcome": "ran"}

    def take(line: str) -> None:
        if line.startswith(_ADVICE) and not verbosity.is_verbose():
            return
        if line == f"Stage '{stage}' didn't change, skipping":
            progress["outcome"] = "unchanged"
        elif line.startswith(f"Stage '{stage}' is cached"):
            progress["outcome"] = "cached"
        if found := re.search(r"failed to run: .*, exited with (-?\d+)$", line):
            progress["exit"] = int(found.group(1))
        # A stage's output may quote a file's name, a reply, or the address of a server.
        text = one_line(redacted(line))
        tail.append(text)
        log(text)

    options = [*(["--verbose"] if verbosity.is_verbose() else []), *(["--force"] if forced else [])]
    command = [sys.executable, checkouts.COMMAND, "--wait-for-lock", "repro", *options, "--single-item", stage]
    started = time.monotonic()
    try:
        status = stream(command, root, stage_environment(root, env), take, cancelled=cancelled, timeout_s=timeout_s)
    except Cancelled as error:
        raise StageCancelled(f"stage {stage}", "cancelled", "the next run resumes it at its last checkpoint") from error
    except TimedOut as error:
        raise StageTimedOut(
            f"stage {stage}", f"ran longer than meta.timeout_s {timeout_s:g}", "raise it in dvc.yaml, or do less work"
        ) from error
    if status != 0:
        raise StageFailed(stage, progress.get("exit", status), tuple(tail))
    lockfile.keep(root)
    return StageResult(stage, progress["outcome"], time.monotonic() - started)


def accept(root: Path, stage: str) -> None:
    """Record the present dependencies and parameters of ``stage`` as those of its outputs (``dvc
    commit --force``).

    Raises:
        DvcError: an output is missing.
        UsageError: there is no such stage.
    """
    with opened_content(root) as content:
        selected([found for found in content.repo.index.stages if found.cmd], stage)
        content.repo.commit(target=stage, force=True)


def accept_all(root: Path) -> dict[str, tuple[str, ...]]:
    """Record for every stage the present command and code as those of its outputs, if nothing else
    differs.

    Returns what changed about each stage that was recorded, in the order of the graph; stages that
    did not change are left out.

    Raises:
        UsageError: something else differs about a stage: an out, a parameter, data. Every such
            stage is named; nothing was written.
    """
    package_code.refresh(root)
    locked = read_lock(root)
    with opened_content(root) as content:
        repo = content.repo
        stages = [stage for stage in repo.index.stages if stage.cmd]
        order = [stage for stage in closure(repo.index.graph, stages) if stage.cmd]
        stage_of_out = {out: name for name, record in locked.items() for out in record.outs} | {
            str(out): stage.name for stage in order for out in stage.outs
        }
        changes, refused = {}, []
        for stage in order:
            now = acceptance.present(stage)
            faults = acceptance.faults(stage, locked.get(stage.name), now, stage_of_out)
            refused += [f"{stage.name}: {fault}" for fault in faults]
            if not faults and (found := acceptance.changes(locked[stage.name], now)):
                changes[stage.name] = found
        if refused:
            listed = "\n  ".join(refused)
            raise UsageError(
                "accept --all",
                f"nothing was accepted, since more than code changed:\n  {listed}\nrun these (vidbridge"
                " run), or undo what changed",
                "vidbridge accept STAGE accepts one of them whatever changed",
            )
        for name in changes:
            repo.commit(target=name, force=True)
    lockfile.keep(root)
    return changes
