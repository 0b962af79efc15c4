"""The only module that talks to DVC: what is out of date and why, and running one stage of it.

The plan is made in this process (a second for the whole graph); a stage runs as ``dvc repro --single-item`` under a guard, so that
nothing of it outlives the flow. DVC is imported inside functions: ``vidbridge --help`` must not wait for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from flows.errors import DvcError, StageCancelled, StageFailed, StageTimedOut, UsageError
from flows.processes import verbosity
from flows.processes.environment import stage_environment
from flows.processes.stream import Cancelled, TimedOut, stream
from flows.repro import acceptance, checkouts, lockfile, package_code
from flows.repro import fetch as fetching
from flows.repro import plan as planning
from flows.repro import remote as remotes
from flows.repro.names import unstorable_names
from flows.repro.steps import Plan, PlanStep, StageMeta, held
from stages.params import ParamsError, load_params
from stages.runtime import paths
from stages.runtime.bounded_yaml import MOST_BYTES, MOST_LOCK_BYTES, MergeConflict, YamlError, read_yaml
from stages.runtime.plain import one_line, redacted
from stages.tracking.lineage.cache import ContentStore, open_content
from stages.tracking.lineage.lockfile import read_lock

__all__ = [
    "ANSWER",
    "ASK_S",
    "GLANCE_S",
    "TARGET",
    "Plan",
    "PlanStep",
    "StageMeta",
    "StageResult",
    "accept",
    "accept_all",
    "bring",
    "fetch",
    "graph",
    "insist_on_answer",
    "plan",
    "plan_asking",
    "reproduce",
    "restore",
]

#: Seconds that the remote may take to say what it holds: before a run, and where a person only looks. A plan without its answer says so.
ASK_S, GLANCE_S = 180.0, 10.0
#: Asks the remote and fetches from it. A file and no module, as `checkouts.COMMAND`.
REMOTE_COMMAND = str(Path(__file__).with_name("remote_process.py"))
#: Begins the line with which it answers.
ANSWER = "vidbridge-answer: "
TARGET = "summary"
_TAIL_LINES = 15
_PATH_CHARACTERS = 300
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
    """``cached``: DVC had run the very same stage before and took its outputs; ``unchanged``: there was nothing to do after all."""

    stage: str
    outcome: Literal["ran", "cached", "unchanged"]
    seconds: float


@contextlib.contextmanager
def _opened(root: Path) -> Iterator[ContentStore]:
    from dvc.exceptions import DvcException

    # DVC warns of every frozen stage and every slow status; a plan is for a person to read.
    logging.getLogger("dvc").setLevel(logging.DEBUG if verbosity.is_verbose() else logging.ERROR)
    try:
        with open_content(root) as content:
            yield content
    except DvcException as error:
        chain = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
        raise DvcError(f"dvc.yaml: {': '.join(chain)}; `dvc status` in {root} shows more") from error
    except UnicodeEncodeError as error:
        source = _source(root)
        told = next(unstorable_names(source), None) if source is not None else None
        name = one_line(error.object)[:_PATH_CHARACTERS]
        raise DvcError(told or f"a path that DVC is to store is not UTF-8: {name}; rename it") from error
    except OSError as error:
        # DVC follows links when it hashes a folder, and ends at one that leads nowhere.
        if error.filename is None or not Path(error.filename).is_symlink():
            raise
        raise DvcError(
            f"ingest.source: {error.filename!r} is a link that leads nowhere ({error.strerror}), and DVC cannot hash it; remove such"
            f" links: find {Path(error.filename).parent} -xtype l -delete"
        ) from error


def _source(root: Path) -> Path | None:
    """The folder of videos that ``params.yaml`` names."""
    try:
        return root / Path(load_params(root / paths.PARAMS_FILE).ingest.source).expanduser()
    except ParamsError:
        return None


def _selected(stages: list[Any], target: str) -> list[Any]:
    """The stage of that name.

    Raises:
        UsageError: there is none; of a group such as ``sft``, one has to be named.
    """
    if found := [stage for stage in stages if stage.name == target]:
        return found
    if group := sorted(stage.name for stage in stages if stage.name.split("@")[0] == target):
        raise UsageError(f"stage: {target!r} is a group of {len(group)}; name one of them: {', '.join(group)}")
    names = ", ".join(sorted(stage.name for stage in stages))
    raise UsageError(f"stage: {target!r} is no stage of dvc.yaml; choose one of {names}")


def _closure(graph: Any, wanted: list[Any]) -> list[Any]:
    """The stages that ``wanted`` need, itself included, in an order that is the same on every machine."""
    import networkx as nx  # type: ignore[import-untyped]

    needed = set(wanted).union(*(nx.descendants(graph, stage) for stage in wanted))
    # DVC's edges point from a stage to what it depends on.
    # A folder that `dvc add` tracks is a stage too, without a name.
    order = nx.lexicographical_topological_sort(
        graph.subgraph(needed).reverse(), key=lambda stage: getattr(stage, "name", None) or ""
    )
    return list(order)


def graph(root: Path, target: str = TARGET) -> dict[str, tuple[str, ...]]:
    """The stages that ``target`` needs, each with those it depends on directly, in a valid order."""
    with _opened(root) as content:
        repo = content.repo
        stages = [stage for stage in repo.index.stages if stage.cmd]
        order = _closure(repo.index.graph, _selected(stages, target))
        return {
            stage.name: tuple(sorted(up.name for up in repo.index.graph.successors(stage) if up.cmd))
            for stage in order
            if stage.cmd
        }


def plan(root: Path, target: str = TARGET, *, lost: frozenset[str] = frozenset(), ask_s: float = ASK_S) -> Plan:
    """What running ``target`` would do, and why. Nothing is started; what is written are lists of files that came from the remote, into
    the cache, what the remote was seen to hold, and the digests of the installed package's code, where the project has none itself.

    The remote is asked only where something would run, and for ``ask_s`` seconds at most. ``lost``: objects that it could not give.

    Raises:
        DvcError: ``dvc.yaml`` cannot be read, or breaks one of DVC's rules.
        MergeConflict: a file of DVC's holds both sides of a merge.
        UnsafeContent: an out, or a list of files behind one, would write elsewhere.
        UsageError: ``target`` is no stage.
    """
    _check_readable(root)
    package_code.refresh(root)
    with _opened(root) as content:
        made = _planned(content, target, None, lost)
        if not made.to_run or content.remote_name() is None:
            return made
        name = remotes.name_of(content)
        if not remotes.is_folder(content):
            why = None
        else:
            try:
                return _planned(content, target, remotes.opened(content), lost)
            except Exception as error:
                if not remotes.failed(error):
                    raise
                why = one_line(error)
    if why is None:
        answer = _asked(root, target, lost, ask_s)
        if isinstance(answer, Plan):
            return answer
        why = answer
    with _opened(root) as content:
        alone = _planned(content, target, None, lost, asked=True)
    return replace(alone, notes=(*alone.notes, f"remote {name}: {why}; it may hold what is planned to run here"))


def plan_asking(root: Path, target: str, lost: frozenset[str]) -> Plan:
    """The plan with the remote's answers, however long they take. :func:`plan` calls it in a process of its own."""
    with _opened(root) as content:
        try:
            return _planned(content, target, remotes.opened(content), lost)
        except Exception as error:
            if not remotes.failed(error):
                raise
            raise DvcError(one_line(error)) from error


def _planned(content: ContentStore, target: str, remote: remotes.Remote | None, lost: frozenset[str], asked: bool = False) -> Plan:
    # A fresh one: a walk fills what it finds into the stages.
    content.repo._reset()
    whole = content.repo.index.graph
    stages = [stage for stage in content.repo.index.stages if stage.cmd]
    wanted = _closure(whole, _selected(stages, target))
    checkouts.check(content.repo, wanted)
    return planning.walk(content, target, wanted, whole, remote, lost, asked)


def _asked(root: Path, target: str, lost: frozenset[str], ask_s: float) -> Plan | str:
    """The plan with the remote's answers, or why there are none."""
    question = json.dumps({"do": "plan", "target": target, "lost": sorted(lost)})
    said: list[str] = []
    try:
        answer = _in_own_process(root, question, said.append, timeout_s=ask_s)
    except TimedOut:
        return f"no answer within {ask_s:g} s"
    if answer is None:
        return said[-1] if said else "it said nothing"
    return TypeAdapter(Plan).validate_json(answer)


def _in_own_process(
    root: Path,
    question: str,
    log: Callable[[str], None],
    *,
    timeout_s: float | None = None,
    cancelled: threading.Event | None = None,
) -> str | None:
    """Have :mod:`flows.repro.remote_process` do something; returns its answer, None where it failed, with its error as the last line for ``log``.

    Raises:
        Cancelled, TimedOut: as :func:`flows.processes.stream.stream`.
    """
    answers: list[str] = []

    def take(line: str) -> None:
        if line.startswith(ANSWER):
            answers.append(line.removeprefix(ANSWER))
        else:
            log(one_line(redacted(line)))

    command = [sys.executable, REMOTE_COMMAND, str(root), question]
    status = stream(command, root, stage_environment(root), take, cancelled=cancelled, timeout_s=timeout_s)
    return answers[-1] if answers and status == 0 else None


def _check_readable(root: Path) -> None:
    """DVC's own reader of YAML follows aliases without a bound.

    Raises:
        DvcError: a file of DVC's breaks a bound of :mod:`stages.runtime.bounded_yaml`.
        MergeConflict: it holds both sides of a merge. No lock of an earlier run is taken instead.
    """
    for name, most_bytes in ((paths.PIPELINE_FILE, MOST_BYTES), (paths.LOCK_FILE, MOST_LOCK_BYTES)):
        try:
            read_yaml(root / name, most_bytes)
        except FileNotFoundError:
            continue
        except MergeConflict:
            raise
        except YamlError as error:
            raise DvcError(str(error)) from error


def insist_on_answer(made: Plan) -> None:
    """
    Raises:
        DvcError: stages would run, hours of training among them, only because a remote did not answer. They would also be pushed there.
    """
    if made.unasked:
        raise DvcError(
            f"{made.notes[-1]}: {', '.join(made.unasked)}; start it, correct its address or keys, or, to run them again, take another"
            " remote (dvc remote default NAME)"
        )


def bring(root: Path, made: Plan, log: Callable[[str], None], cancelled: threading.Event | None = None) -> Plan:
    """Fetch and check out what the plan says, take over what the run cache knows, and return the plan of what is left to do.

    What the remote turns out not to have, or only damaged, is told, and its stages run. What has come stays when this is broken off.

    Raises:
        DvcError: the remote stopped answering, or an object is not in the cache after all.
        StageCancelled: ``cancelled`` was set.
        UnsafeContent: an out, or a list of files behind one, would write elsewhere; nothing was checked out.
    """
    steps = tuple(step for step in made.steps if step.state in ("fetch", "restore") or step.entry is not None)
    if not steps:
        return made
    lost: frozenset[str] = frozenset()
    if made.to_fetch or any(step.entry for step in steps):
        if made.to_fetch:
            files, megabytes = held(made.to_fetch)
            log(f"fetching {files:,} files, {megabytes:,.1f} MB from the remote")
        question = json.dumps({"do": "bring", "steps": TypeAdapter(tuple[PlanStep, ...]).dump_python(steps, mode="json")})
        said: deque[str] = deque(maxlen=_TAIL_LINES)

        def take(line: str) -> None:
            said.append(line)
            log(line)

        try:
            answer = _in_own_process(root, question, take, cancelled=cancelled)
        except Cancelled as error:
            raise StageCancelled(
                "fetching was cancelled; what has come stays in the cache, and the next run goes on from there"
            ) from error
        if answer is None:
            raise DvcError(
                f"{said[-1] if said else 'fetching failed'}; what has come stays in the cache: vidbridge run goes on from there"
            )
        lost = frozenset(json.loads(answer))
    else:
        restore(root, steps)
    lockfile.keep(root)
    return plan(root, made.target, lost=lost)


def restore(root: Path, steps: tuple[PlanStep, ...]) -> None:
    """Check out the outputs of unchanged stages from DVC's cache.

    Raises:
        DvcError: an object is not in the cache after all.
        UnsafeContent: an out, or a list of files behind one, would write elsewhere; nothing was checked out.
    """
    names = {step.name for step in steps}
    with _opened(root) as content:
        found = [stage for stage in content.repo.index.stages if planning.name_of(stage) in names]
        checkouts.check(content.repo, found)
        # Whole paths: DVC counts others from the working directory, which for a clone is another project's.
        content.repo.checkout(targets=[out.fs_path for stage in found for out in stage.outs])


def fetch(root: Path, steps: tuple[PlanStep, ...], say: Callable[[str], None]) -> set[str]:
    """Do what :func:`bring` does, in this process; returns the objects that the remote did not have, or only damaged.

    Raises:
        DvcError, TrackingError: the remote stopped answering.
        UnsafeContent: as :func:`restore`.
    """
    lost: dict[str, set[str]] = {}
    with _opened(root) as content:
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
) -> StageResult:
    """Run one stage through DVC, its output line by line into ``log``. DVC's lock is waited for; its dependencies are not run.

    ``env`` is added to the environment of the stage. Returns when DVC has committed the stage's outputs to its cache.

    Raises:
        StageFailed: the command, or DVC, ended with a non-zero status.
        StageTimedOut: it ran longer than ``timeout_s`` seconds.
        StageCancelled: ``cancelled`` was set. In each case no process of the stage is left.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    said: dict[str, Any] = {"outcome": "ran"}

    def take(line: str) -> None:
        if line.startswith(_ADVICE) and not verbosity.is_verbose():
            return
        if line == f"Stage '{stage}' didn't change, skipping":
            said["outcome"] = "unchanged"
        elif line.startswith(f"Stage '{stage}' is cached"):
            said["outcome"] = "cached"
        if found := re.search(r"failed to run: .*, exited with (-?\d+)$", line):
            said["exit"] = int(found.group(1))
        # What a stage prints may quote a file's name, a reply, or the address of a server.
        shown = one_line(redacted(line))
        tail.append(shown)
        log(shown)

    told = ["--verbose"] if verbosity.is_verbose() else []
    command = [sys.executable, checkouts.COMMAND, "--wait-for-lock", "repro", *told, "--single-item", stage]
    started = time.monotonic()
    try:
        status = stream(command, root, stage_environment(root, env), take, cancelled=cancelled, timeout_s=timeout_s)
    except Cancelled as error:
        raise StageCancelled(f"stage {stage} was cancelled; the next run takes it up at its last checkpoint") from error
    except TimedOut as error:
        raise StageTimedOut(
            f"stage {stage} ran longer than meta.timeout_s {timeout_s:g}; raise it in dvc.yaml, or do less work"
        ) from error
    if status != 0:
        raise StageFailed(stage, said.get("exit", status), tuple(tail))
    lockfile.keep(root)
    return StageResult(stage, said["outcome"], time.monotonic() - started)


def accept(root: Path, stage: str) -> None:
    """Record the present dependencies and parameters of ``stage`` as those its outputs were made from (``dvc commit --force``).

    Raises:
        DvcError: an output is missing.
        UsageError: there is no such stage.
    """
    with _opened(root) as content:
        _selected([found for found in content.repo.index.stages if found.cmd], stage)
        content.repo.commit(target=stage, force=True)


def accept_all(root: Path) -> dict[str, tuple[str, ...]]:
    """Record for every stage the present command and code as those its outputs were made from, where nothing else differs.

    Returns what changed about each stage that was recorded, in the order of the graph; stages that did not change are left out.

    Raises:
        UsageError: something else differs about a stage: an out, a parameter, data. Every such stage is named; nothing was written.
    """
    package_code.refresh(root)
    locked = read_lock(root)
    with _opened(root) as content:
        repo = content.repo
        stages = [stage for stage in repo.index.stages if stage.cmd]
        order = [stage for stage in _closure(repo.index.graph, stages) if stage.cmd]
        made = {out: name for name, record in locked.items() for out in record.outs} | {
            str(out): stage.name for stage in order for out in stage.outs
        }
        changes, refused = {}, []
        for stage in order:
            now = acceptance.present(stage)
            faults = acceptance.faults(stage, locked.get(stage.name), now, made)
            refused += [f"{stage.name}: {fault}" for fault in faults]
            if not faults and (found := acceptance.changes(locked[stage.name], now)):
                changes[stage.name] = found
        if refused:
            listed = "\n  ".join(refused)
            raise UsageError(
                f"accept --all: nothing was accepted, since more than code changed:\n  {listed}\nrun these (vidbridge run), or undo what"
                " changed; vidbridge accept STAGE accepts one of them whatever changed"
            )
        for name in changes:
            repo.commit(target=name, force=True)
    lockfile.keep(root)
    return changes
