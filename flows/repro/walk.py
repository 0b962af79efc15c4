"""The walk over DVC's graph that makes a plan: which inputs changed, which outs are here, which the
remote has, and which of those are needed.

A stage is *unchanged* when its command, parameters and inputs are those of its entry in
``dvc.lock``, or of an entry of DVC's run cache. The inputs need not lie here for that: the hashes
of what an unchanged stage upstream made are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.content import checkouts, run_cache
from flows.content.remote import Remote, seen_of
from flows.errors import DvcError, UnsafeContent
from flows.repro.changed_files import changed_files
from flows.repro.outside import Outside
from flows.repro.steps import InRemote, Plan, PlanStep, StageMeta, State
from stages.runtime.plain import one_line
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.listing import ListError

#: Kind of the stages that make what is displayed at the end of a run; it is small.
_SHOWN = "evaluate"


@dataclass
class _StageState:
    """State of a stage as the walk found it."""

    stage: Any
    name: str
    meta: StageMeta
    upstream: list[_StageState]
    #: Reasons why it has to run; empty: it is unchanged and its outs exist somewhere.
    why: list[str] = field(default_factory=list)
    #: Notes on it.
    notes: list[str] = field(default_factory=list)
    #: Path to hash of its outs, made here or elsewhere.
    outs: dict[str, str] = field(default_factory=dict)
    restored: bool = False
    #: True if it would not run had the remote answered.
    unanswered: bool = False
    remote: InRemote | None = None
    entry: str | None = None
    forced: bool = False


def walk(
    content: ContentStore,
    target: str,
    stages: list[Any],
    graph: Any,
    remote: Remote | None,
    lost: frozenset[str],
    final: bool,
    forced: Mapping[str, str],
) -> Plan:
    """Plan these DVC stages, which are in a valid order and end with the target.

    ``remote`` None: queries nothing, and relies on what the remote was seen to hold. ``lost``:
    objects that it does not have although it reported them. ``final``: nothing more will be
    queried, so a stage whose outs are in no cache has to run. ``forced``: stages with inputs that
    DVC does not see, so that its run cache is of no use for them; and why they have to run, if they
    do.
    """
    walk = _Walk(content, remote, lost, forced)
    found: dict[Any, _StageState] = {}
    for stage in stages:
        upstream = [found[up] for up in graph.successors(stage) if up in found]
        if stage.cmd:
            found[stage] = walk.look(stage, upstream)
        elif (tracked := walk.tracked_state(stage)) is not None:
            found[stage] = tracked
    states = list(found.values())
    needed = {one.name for one in states if one.meta.kind == _SHOWN} | {states[-1].name}
    needed |= {up.name for one in states if one.why for up in one.upstream}
    return Plan(
        target,
        tuple(_step(one, one.name in needed) for one in states),
        tuple(dict.fromkeys(walk.notes + (remote.notes if remote else []))),
        tuple(one.name for one in states if one.unanswered) if final else (),
    )


def _step(one: _StageState, needed: bool) -> PlanStep:
    state: State
    why = [*one.why, *one.notes]
    if one.why:
        state = "will run"
    elif one.remote is not None and needed:
        state = "fetch"
    elif one.restored:
        state = "restore"
    else:
        state = "up to date"
    remote = None if one.why else one.remote
    if remote is not None:
        outs = ", ".join(str(out) for out in one.stage.outs)
        size = f"{remote.files:,} files, {remote.size_bytes / 1e6:,.1f} MB"
        why.append(f"{outs}: {'is' if state == 'fetch' else 'stays'} in the remote ({size})")
    return PlanStep(
        name=one.name,
        state=state,
        why=tuple(why),
        upstream=tuple(sorted(up.name for up in one.upstream)),
        outs=tuple(str(out) for out in one.stage.outs),
        meta=one.meta,
        remote=remote,
        entry=None if one.why else one.entry,
        forced=one.forced,
        params=tuple(sorted(name for dep in one.stage.deps for name in getattr(dep, "params", ()))),
    )


class _Walk:
    def __init__(
        self, content: ContentStore, remote: Remote | None, lost: frozenset[str], forced: Mapping[str, str]
    ) -> None:
        self._content, self._remote, self._lost = content, remote, lost
        self._forced, self._outside = forced, Outside()
        # Several stages read one folder, and DVC would walk it for each.
        self._hashes: dict[str, Any] = {}
        self.notes: list[str] = []
        self._configured = content.remote_name()

    def look(self, stage: Any, upstream: list[_StageState]) -> _StageState:
        one = _StageState(stage, name_of(stage), meta_of(stage), upstream)
        running = {path: up.name for up in upstream if up.why for path in _paths(up)}
        upstream_outs = {path: md5 for up in upstream if not up.why for path, md5 in up.outs.items()}
        away = {path for up in upstream if not up.why and (up.restored or up.remote or up.entry) for path in _paths(up)}
        if stage.outs and not any(out.hash_info for out in stage.outs):
            changes = ["never ran"]
        else:
            changes = ["command changed"] if stage.changed_stage() else []
            for dep in stage.deps:
                if overlapping(str(dep), running) or not (over := overlapping(str(dep), away)):
                    continue
                now = self._hash_below(upstream_outs, over, str(dep))
                if now is not None and dep.hash_info and now != dep.hash_info.value:
                    changes.append(f"dep {dep} changed")
            for dep in stage.deps:
                if not overlapping(str(dep), running) and not overlapping(str(dep), away):
                    changes.extend(self._outside.changes(dep) if Outside.holds(dep) else _changes(dep, self._hashes))
        one.forced = one.name in self._forced
        if changes != ["never ran"] and (reason := self._forced.get(one.name)):
            changes.append(reason)
        following = [
            f"{dep} will change ({running[over]})" for dep in stage.deps if (over := overlapping(str(dep), running))
        ]
        if stage.is_callback or stage.always_changed:
            following.append("is always run")
        if following:
            one.why = changes if changes == ["never ran"] else changes + following
            one.unanswered = (
                not changes and all(up.unanswered for up in upstream if up.why) and following[-1] != "is always run"
            )
            return one
        if not changes:
            one.outs = {str(out): str(out.hash_info.value) for out in stage.outs if out.hash_info}
            one.why = self._place(one, stage.outs)
            return one
        if one.forced or not self._from_runs(one, changes, upstream_outs):
            one.why = changes
        return one

    def tracked_state(self, stage: Any) -> _StageState | None:
        """State of a ``.dvc`` file, such as ``videos.dvc``, whose folder does not lie here. None if
        it does, or is nowhere.
        """
        one = _StageState(stage, name_of(stage), StageMeta(), [])
        if (stage.frozen and stage.deps) or any(
            out.exists or not out.hash_info or not out.use_cache for out in stage.outs
        ):
            return None
        one.outs = {str(out): str(out.hash_info.value) for out in stage.outs}
        return None if self._place(one, stage.outs) or not (one.restored or one.remote) else one

    def _place(self, one: _StageState, outs: Iterable[Any]) -> list[str]:
        """Find outs that are known by their hashes; returns the reasons why they have to be made,
        empty if they exist somewhere.
        """
        why, away = [], []
        for out in outs:
            verdict = out.status().get(str(out))
            if not verdict:
                continue
            if verdict == "not in cache":
                away.append(out)
            elif verdict == "deleted" and out.use_cache:
                one.restored = True
                one.notes.append(f"{out} is missing, the cache has it")
            elif verdict == "modified" and self._known(out):
                one.restored = True
                one.notes.append(f"{out} is that of another run, the cache has this one")
            elif verdict == "modified":
                why.append(f"{out} was changed by hand")
            else:
                why.append(f"{out} is {'missing' if verdict == 'deleted' else verdict}")
        why += self._away(one, away)
        return why

    def _away(self, one: _StageState, outs: list[Any]) -> list[str]:
        if not outs:
            return []
        if self._configured is None:
            return [f"{out} is not in the cache" for out in outs]
        wanted = {str(out.hash_info.value) for out in outs}
        if spoilt := [out for out in outs if out.hash_info.value in self._lost]:
            return [f"{out} is not in the cache, and missing or damaged in the remote" for out in spoilt]
        held = wanted & seen_of(self._content).objects if self._remote is None else self._remote.holds(wanted)
        if held == wanted:
            modified = [out for out in outs if out.exists and not self._known(out) and out.workspace_status()]
            if modified:
                return [f"{out} was changed by hand" for out in modified]
            files, size = (
                sum(getattr(out.meta, name, None) or default for out in outs)
                for name, default in (("nfiles", 1), ("size", 0))
            )
            one.remote = InRemote(tuple(sorted(wanted)), files, size)
            return []
        one.unanswered = self._remote is None
        reason = (
            "is not in the cache"
            if self._remote is None
            else f"is neither in the cache nor in the remote {self._configured!r}"
        )
        return [f"{out} {reason}" for out in outs if out.hash_info.value not in held]

    def _known(self, out: Any) -> bool:
        """Return whether an out in the work tree is a state that the cache holds, not a person's
        edit.
        """
        return bool(self._content.has(str(out.get_hash().value)))

    def _hash_below(self, made: Mapping[str, str], out: str, dep: str) -> str | None:
        """Hash of a dep, as far as the outs of its stage tell it; None if that list is not here."""
        if dep == out:
            return made.get(out)
        md5 = made.get(out)
        if md5 is None or not dep.startswith(out + "/") or not (self._content.has(md5) or self._remote is not None):
            return None
        return self._content.sub_hash(md5, dep.removeprefix(out + "/"))

    def _from_runs(self, one: _StageState, changes: list[str], made: Mapping[str, str]) -> bool:
        """Look for the stage with these inputs in the run cache, here and in the remote; returns
        whether its outs are known.
        """
        key = self._key(one.stage, made)
        if key is None:
            return False
        for value, text, here in self._entries(key):
            where = (
                f"run cache: {'entry' if here else 'entry of the remote'} {key[:8]}…/{value[:8]}… of stage {one.name}"
            )
            try:
                entry = run_cache.read_entry(text, key, value, {out.def_path for out in one.stage.outs})
                outs = _outs_of(entry, one.stage)
                checkouts.check_outs(self._content.repo, outs, where)
                one.outs = {str(out): str(out.hash_info.value) for out in outs}
                if self._place(one, outs):
                    one.restored, one.remote, one.outs = False, None, {}
                    one.notes.clear()
                    continue
            except (ValueError, UnsafeContent, ListError) as error:
                self.notes.append(f"{where}: {one_line(error)}; not used")
                one.restored, one.remote, one.outs, one.unanswered = False, None, {}, False
                one.notes.clear()
                continue
            one.entry = f"{key}/{value}"
            one.notes.insert(
                0, f"ran before {'here' if here else 'elsewhere'} with just this ({'; '.join(changes[:3])})"
            )
            return True
        one.unanswered = False  # Only what dvc.lock names was certainly made.
        return False

    def _entries(self, key: str) -> Iterator[tuple[str, bytes, bool]]:
        seen = set()
        for value, text in run_cache.local_entries(self._content.repo, key):
            seen.add(value)
            yield value, text, True
        if self._remote is not None:
            yield from ((value, text, False) for value, text in self._remote.entries(key) if value not in seen)

    def _key(self, stage: Any, made: Mapping[str, str]) -> str | None:
        """Run cache's key of a stage with its current inputs; fills them into ``stage``, which is
        not read again.
        """
        from dvc.dependency import ParamsDependency
        from dvc.exceptions import DvcException
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.meta import Meta

        for dep in stage.deps:
            over = None if isinstance(dep, ParamsDependency) else overlapping(str(dep), made)
            if over is None and Outside.holds(dep):
                dep.hash_info, dep.meta = self._outside.present(dep), Meta()
            elif over is None:
                try:
                    dep.save()
                except (DvcException, OSError):
                    return None  # A dep or a parameter that is missing: running it says so.
            elif (md5 := self._hash_below(made, over, str(dep))) is None:
                return None
            else:
                dep.hash_info, dep.meta = HashInfo("md5", md5), Meta()
        return run_cache.key_of(stage)


def _outs_of(entry: Mapping[str, Any], stage: Any) -> list[Any]:
    """Outs of a stage as an entry of the run cache has them. (DVC's own function counts paths from
    the working directory.)
    """
    from dvc.stage import PipelineStage, create_stage
    from dvc.stage.loader import StageLoader

    paths = [out["path"] for out in entry["outs"]]
    copy = create_stage(PipelineStage, repo=stage.repo, path=stage.path, cmd=entry["cmd"], wdir=stage.wdir, outs=paths)
    StageLoader.fill_from_lock(copy, entry)
    return list(copy.outs)


def _paths(one: _StageState) -> list[str]:
    return [str(out) for out in one.stage.outs]


def name_of(stage: Any) -> str:
    """Name of a stage; for a ``.dvc`` file, its path."""
    return str(stage.name if stage.cmd else stage.relpath)


def meta_of(stage: Any) -> StageMeta:
    try:
        return StageMeta.model_validate(dict(stage.meta or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DvcError(
            "dvc.yaml", f"stages.{stage.name}.meta.{where}: {first['msg']} (value {first['input']!r})", "correct it"
        ) from error


def overlapping(path: str, paths: Iterable[str]) -> str | None:
    """First of the paths that is ``path``, lies in it, or holds it."""
    for other in paths:
        if path == other or path.startswith(other + "/") or other.startswith(path + "/"):
            return other
    return None


def _changes(dep: Any, hashes: dict[str, Any]) -> list[str]:
    """What changed about a dependency; ``hashes``: present ones by path, completed here."""
    from dvc.dependency import ParamsDependency

    verdict = dep.status().get(str(dep)) if isinstance(dep, ParamsDependency) else _verdict(dep, hashes)
    if not verdict:
        return []
    if isinstance(dep, ParamsDependency) and isinstance(verdict, dict):
        old, new = dep.hash_info.value or {}, dep.read_params()
        leaves = [leaf for name in verdict for leaf in differing_leaves(name, old.get(name), new.get(name))]
        shown = [f"params {leaf}" for leaf in leaves[:3]]
        return shown + ([f"and {len(leaves) - 3} more parameters"] if len(leaves) > 3 else [])
    if not dep.hash_info:
        return [f"dep {dep} is a new dependency"]
    if verdict == "modified" and (files := changed_files(Path(dep.repo.root_dir), str(dep), str(dep.hash_info.value))):
        return [f"dep {dep} changed ({files})"]
    words = {"modified": "changed", "deleted": "is missing", "new": "is a new dependency"}
    return [f"dep {dep} {words.get(str(verdict), str(verdict))}"]


def _verdict(dep: Any, hashes: dict[str, Any]) -> str | None:
    """DVC's word for the state of a file or folder; None: it is as it was."""
    if not dep.exists:
        return "deleted"
    if (path := str(dep)) not in hashes:
        hashes[path] = dep.get_hash()
    return None if hashes[path] == dep.hash_info else "modified"


def differing_leaves(name: str, old: object, new: object) -> Iterator[str]:
    """Yield each parameter that differs, by its full name, as ``name: old -> new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*new, *(key for key in old if key not in new)]:
            if old.get(key) != new.get(key):
                yield from differing_leaves(f"{name}.{key}", old.get(key), new.get(key))
    else:
        yield f"{name}: {_short(old)} -> {_short(new)}"


def _short(value: object) -> str:
    if value is None:
        return "(not set)"
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
