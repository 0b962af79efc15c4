"""The plan of a run: which stages are out of date, and why.

It is made in this process (a second for the whole graph); only a remote that is not a folder is
queried in another one.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from flows.content import checkouts
from flows.content import remote as remotes
from flows.content.opened import opened_content
from flows.errors import DvcError, UsageError
from flows.processes.stream import TimedOut
from flows.repro import package_code
from flows.repro.outside import INGEST, changed_videos
from flows.repro.remote_process import ask_in_own_process
from flows.repro.steps import Plan
from flows.repro.walk import walk
from stages.errors import VidbridgeError
from stages.runtime import paths
from stages.runtime.bounded_yaml import MOST_BYTES, MOST_LOCK_BYTES, MergeConflict, YamlError, read_yaml
from stages.runtime.plain import one_line
from stages.tracking.lineage.cache import ContentStore

#: Seconds that the remote may take to say what it holds: before a run, and where a person only
#: looks. A plan without its answer says so.
ASK_S, GLANCE_S = 180.0, 10.0
TARGET = "summary"


def stage_graph(root: Path, target: str = TARGET) -> dict[str, tuple[str, ...]]:
    """Stages that ``target`` needs, each with its direct dependencies, in a valid order."""
    with opened_content(root) as content:
        repo = content.repo
        stages = [stage for stage in repo.index.stages if stage.cmd]
        order = closure(repo.index.graph, selected(stages, target))
        return {
            stage.name: tuple(sorted(up.name for up in repo.index.graph.successors(stage) if up.cmd))
            for stage in order
            if stage.cmd
        }


def make_plan(root: Path, target: str = TARGET, *, lost: frozenset[str] = frozenset(), ask_s: float = ASK_S) -> Plan:
    """Plan a run of ``target``, with the reason why each stage runs. Starts nothing. Writes lists
    of files that came from the remote into the cache, the objects that the remote was seen to hold,
    and the digests of the installed package's code if the project has no code itself.

    Queries the remote only if something would run, and for ``ask_s`` seconds at most. ``lost``:
    objects that it could not deliver.

    Raises:
        DvcError: ``dvc.yaml`` cannot be read, or breaks one of DVC's rules.
        MergeConflict: a file of DVC's holds both sides of a merge.
        UnsafeContent: an out, or a list of files behind one, would write elsewhere.
        UsageError: ``target`` is not a stage.
    """
    _check_readable(root)
    package_code.refresh(root)
    with opened_content(root) as content:
        plan = _planned(content, target, None, lost)
        if not plan.to_run or content.remote_name() is None:
            return plan
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
        answer = _plan_in_own_process(root, target, lost, ask_s)
        if isinstance(answer, Plan):
            return answer
        why = answer
    with opened_content(root) as content:
        alone = _planned(content, target, None, lost, final=True)
    return replace(alone, notes=(*alone.notes, f"remote {name}: {why}; it may hold what is planned to run here"))


def plan_with_answers(root: Path, target: str, lost: frozenset[str]) -> Plan:
    """The plan with the remote's answers, however long they take. :func:`make_plan` calls it in a
    process of its own.
    """
    with opened_content(root) as content:
        try:
            return _planned(content, target, remotes.opened(content), lost)
        except Exception as error:
            if not remotes.failed(error):
                raise
            if isinstance(error, VidbridgeError):
                raise DvcError.from_error(error) from error
            raise DvcError("DVC remote", one_line(error), "see that it can be reached, then plan again") from error


def _planned(
    content: ContentStore, target: str, remote: remotes.Remote | None, lost: frozenset[str], final: bool = False
) -> Plan:
    # A fresh one: a walk fills what it finds into the stages.
    content.repo._reset()
    whole = content.repo.index.graph
    stages = [stage for stage in content.repo.index.stages if stage.cmd]
    wanted = closure(whole, selected(stages, target))
    checkouts.check(content.repo, wanted)
    ingests = any(stage.cmd and stage.name == INGEST for stage in wanted)
    why = changed_videos(Path(content.repo.root_dir)) if ingests else None
    forced = {} if why is None else {INGEST: why}
    return walk(content, target, wanted, whole, remote, lost, final, forced)


def _plan_in_own_process(root: Path, target: str, lost: frozenset[str], ask_s: float) -> Plan | str:
    """Plan with the remote's answers, or the reason why there are none."""
    question = json.dumps({"do": "plan", "target": target, "lost": sorted(lost)})
    try:
        answer = ask_in_own_process(root, question, lambda _: None, timeout_s=ask_s)
    except TimedOut:
        return f"no answer within {ask_s:g} s"
    except DvcError as error:
        return str(error)
    return TypeAdapter(Plan).validate_json(answer)


def selected(stages: list[Any], target: str) -> list[Any]:
    """Return the stage of that name.

    Raises:
        UsageError: there is none; of a group such as ``sft``, one has to be named.
    """
    if found := [stage for stage in stages if stage.name == target]:
        return found
    if group := sorted(stage.name for stage in stages if stage.name.split("@")[0] == target):
        raise UsageError("stage", f"{target!r} is a group of {len(group)}", f"name one of them: {', '.join(group)}")
    names = ", ".join(sorted(stage.name for stage in stages))
    raise UsageError("stage", f"{target!r} is not a stage of dvc.yaml", f"choose one of {names}")


def closure(graph: Any, wanted: list[Any]) -> list[Any]:
    """The stages that ``wanted`` need, itself included, in an order that is the same on every
    machine.
    """
    import networkx as nx  # type: ignore[import-untyped]

    needed = set(wanted).union(*(nx.descendants(graph, stage) for stage in wanted))
    # DVC's edges point from a stage to what it depends on.
    # A folder that `dvc add` tracks is a stage too, without a name.
    order = nx.lexicographical_topological_sort(
        graph.subgraph(needed).reverse(), key=lambda stage: getattr(stage, "name", None) or ""
    )
    return list(order)


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
            raise DvcError.from_error(error) from error
