"""The only module that talks to DVC: what is out of date and why, and running one stage of it.

The plan is made in this process (a second for the whole graph); a stage runs as ``dvc repro --single-item`` under a guard, so that
nothing of it outlives the flow. DVC is imported inside functions: ``vidbridge --help`` must not wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows import checkouts, lockfile
from flows.errors import DvcError, StageCancelled, StageFailed, StageTimedOut, UsageError
from flows.names import unstorable_names
from flows.processes import Cancelled, TimedOut, stream
from flows.project import stage_environment
from stages.bounded_yaml import MOST_BYTES, MOST_LOCK_BYTES, YamlError, read_yaml
from stages.params import ParamsError, load_params
from stages.plain import one_line, redacted

State = Literal["up to date", "will run", "restore"]
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


class StageMeta(BaseModel):
    """``meta:`` of a stage in ``dvc.yaml``. It does not enter the stage's hash; a stage without it gets these values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["data", "train", "evaluate"] = "data"
    #: How often a failed stage is tried again. A cancelled one never is, nor one that exits with 2.
    retries: int = Field(default=0, ge=0)
    retry_delay_s: float = Field(default=2, ge=0)
    timeout_s: float | None = Field(default=None, gt=0)
    #: GPUs the stage wants; told to the reader, not enforced.
    gpu: int = Field(default=0, ge=0)
    #: It imports torch, which a warm process could have done for it (:mod:`stages.warm`).
    warm: bool = False


@dataclass(frozen=True)
class PlanStep:
    """One stage and what is to be done about it. ``restore``: unchanged, but its outputs have to be checked out from the cache."""

    name: str
    state: State
    why: tuple[str, ...]
    upstream: tuple[str, ...]
    outs: tuple[str, ...]
    meta: StageMeta
    #: What it depends on of ``params.yaml``, as ``dvc.yaml`` names it: tables and values.
    params: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Every stage that ``target`` needs, each after those it depends on."""

    target: str
    steps: tuple[PlanStep, ...]

    @property
    def to_run(self) -> tuple[PlanStep, ...]:
        return tuple(step for step in self.steps if step.state == "will run")

    @property
    def to_restore(self) -> tuple[PlanStep, ...]:
        return tuple(step for step in self.steps if step.state == "restore")

    @property
    def empty(self) -> bool:
        return all(step.state == "up to date" for step in self.steps)


@dataclass(frozen=True)
class StageResult:
    """``cached``: DVC had run the very same stage before and took its outputs; ``unchanged``: there was nothing to do after all."""

    stage: str
    outcome: Literal["ran", "cached", "unchanged"]
    seconds: float


@contextlib.contextmanager
def _opened(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    # DVC warns of every frozen stage and every slow status; a plan is for a person to read.
    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with contextlib.closing(Repo(str(root))) as repo:
            yield repo
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
        return root / Path(load_params(root / "params.yaml").ingest.source).expanduser()
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
    with _opened(root) as repo:
        stages = [stage for stage in repo.index.stages if stage.cmd]
        order = _closure(repo.index.graph, _selected(stages, target))
        return {
            stage.name: tuple(sorted(up.name for up in repo.index.graph.successors(stage) if up.cmd))
            for stage in order
            if stage.cmd
        }


def plan(root: Path, target: str = TARGET) -> Plan:
    """What running ``target`` would do, and why. Nothing is started and nothing is written.

    Raises:
        DvcError: ``dvc.yaml`` cannot be read, or breaks one of DVC's rules.
        UnsafeContent: an out, or a list of files behind one, would write elsewhere.
        UsageError: ``target`` is no stage.
    """
    _check_readable(root)
    with _opened(root) as repo:
        whole = repo.index.graph
        stages = [stage for stage in repo.index.stages if stage.cmd]
        steps: dict[str, PlanStep] = {}
        wanted = _closure(whole, _selected(stages, target))
        checkouts.check(repo, wanted)
        for stage in wanted:
            if not stage.cmd:
                continue
            upstream = [steps[up.name] for up in whole.successors(stage) if up.cmd]
            steps[stage.name] = _step(stage, upstream, _meta(stage))
        return Plan(target, tuple(steps.values()))


def _check_readable(root: Path) -> None:
    """DVC's own reader of YAML follows aliases without a bound.

    Raises:
        DvcError: a file of DVC's breaks a bound of :mod:`stages.bounded_yaml`.
    """
    for name, most_bytes in (("dvc.yaml", MOST_BYTES), (lockfile.LOCK, MOST_LOCK_BYTES)):
        try:
            read_yaml(root / name, most_bytes)
        except FileNotFoundError:
            continue
        except YamlError as error:
            raise DvcError(str(error)) from error


def _meta(stage: Any) -> StageMeta:
    try:
        return StageMeta.model_validate(dict(stage.meta or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DvcError(f"dvc.yaml: stages.{stage.name}.meta.{where}: {first['msg']} (value {first['input']!r})") from error


def _step(stage: Any, upstream: list[PlanStep], meta: StageMeta) -> PlanStep:
    names = tuple(sorted(step.name for step in upstream))
    outs = tuple(str(out) for out in stage.outs)
    running = {path: step.name for step in upstream if step.state == "will run" for path in step.outs}
    restored = {path for step in upstream if step.state == "restore" for path in step.outs}

    params = tuple(sorted(name for dep in stage.deps for name in getattr(dep, "params", ())))

    def step(state: State, *why: str) -> PlanStep:
        return PlanStep(stage.name, state, why, names, outs, meta, params)

    if stage.outs and not any(out.hash_info for out in stage.outs):
        return step("will run", "never ran")
    why = ["command changed"] if stage.changed_stage() else []
    if stage.is_callback or stage.always_changed:
        why.append("is always run")
    for dep in stage.deps:
        path = str(dep)
        if over := _overlapping(path, running):
            why.append(f"{path} will change ({running[over]})")
        elif not _overlapping(path, restored):
            why.extend(_changes(dep))
    missing, spoilt = [], []
    for out in stage.outs:
        verdict = out.status().get(str(out))
        if verdict == "deleted" and out.use_cache and not out.changed_cache():
            missing.append(f"{out} is missing, the cache has it")
        elif verdict == "not in cache":
            spoilt.append(f"{out} is not in the cache (`dvc fetch` may bring it)")
        elif verdict == "modified":
            spoilt.append(f"{out} was changed by hand")
        elif verdict:
            spoilt.append(f"{out} is {'missing' if verdict == 'deleted' else verdict}")
    why.extend(spoilt)
    if why:
        return step("will run", *why)
    return step("restore", *missing) if missing else step("up to date")


def _overlapping(path: str, paths: Mapping[str, str] | set[str]) -> str | None:
    for other in paths:
        if path == other or path.startswith(other + "/") or other.startswith(path + "/"):
            return other
    return None


def _changes(dep: Any) -> list[str]:
    from dvc.dependency import ParamsDependency

    status = dep.status()
    if not status:
        return []
    verdict = status[str(dep)]
    if isinstance(dep, ParamsDependency) and isinstance(verdict, dict):
        old, new = dep.hash_info.value or {}, dep.read_params()
        leaves = [leaf for name in verdict for leaf in _leaves(name, old.get(name), new.get(name))]
        shown = [f"params {leaf}" for leaf in leaves[:3]]
        return shown + ([f"and {len(leaves) - 3} more parameters"] if len(leaves) > 3 else [])
    words = {"modified": "changed", "deleted": "is missing", "new": "is a new dependency"}
    return [f"dep {dep} {words.get(str(verdict), str(verdict))}"]


def _leaves(name: str, old: object, new: object) -> Iterator[str]:
    """Each parameter that differs, by its full name, as ``name: old -> new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*new, *(key for key in old if key not in new)]:
            if old.get(key) != new.get(key):
                yield from _leaves(f"{name}.{key}", old.get(key), new.get(key))
    else:
        yield f"{name}: {_short(old)} -> {_short(new)}"


def _short(value: object) -> str:
    if value is None:
        return "(not set)"
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def restore(root: Path, steps: tuple[PlanStep, ...]) -> None:
    """Check out the outputs of unchanged stages from DVC's cache.

    Raises:
        DvcError: an object is not in the cache after all.
        UnsafeContent: an out, or a list of files behind one, would write elsewhere; nothing was checked out.
    """
    names = {step.name for step in steps}
    with _opened(root) as repo:
        checkouts.check(repo, [stage for stage in repo.index.stages if stage.cmd and stage.name in names])
        repo.checkout(targets=[path for step in steps for path in step.outs])


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
        if line.startswith(_ADVICE):
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

    command = [sys.executable, checkouts.COMMAND, "--wait-for-lock", "repro", "--single-item", stage]
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
    with _opened(root) as repo:
        _selected([found for found in repo.index.stages if found.cmd], stage)
        repo.commit(target=stage, force=True)
