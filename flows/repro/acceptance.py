"""Rules for accepting changes of every stage at once: commands and code may change. Any other
difference is a fault, which is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flows.repro.walk import differing_leaves, overlapping
from stages.tracking.lineage.lockfile import StageRecord, is_code, record_of


def present(stage: Any) -> StageRecord:
    """Record of a stage with its current command, inputs, parameters and outs; a missing file has
    the hash "".
    """
    before = [(dep, dep.hash_info, dep.meta) for dep in stage.deps]
    try:
        stage.save_deps(allow_missing=True)
        return record_of(stage)
    finally:
        for dep, hash_info, meta in before:
            dep.hash_info, dep.meta = hash_info, meta


def faults(stage: Any, locked: StageRecord | None, now: StageRecord, made: Mapping[str, str]) -> list[str]:
    """Yield everything but code that differs between a stage's entry in ``dvc.lock`` and its
    current state. ``made``: outs of all stages.
    """
    if locked is None or not locked.outs:
        return ["never ran"]
    return [*_outs(stage, locked), *_params(stage, locked, now), *_data(locked, now, made)]


def changes(locked: StageRecord, now: StageRecord) -> tuple[str, ...]:
    """Describe how code and command of a stage differ from its entry; empty if they do not."""
    listed = [] if locked.cmd == now.cmd else [f"command changed: {locked.cmd} -> {now.cmd}"]
    listed += [
        f"dep {dep} changed" for dep, value in now.deps.items() if dep in locked.deps and locked.deps[dep] != value
    ]
    listed += [f"dep {dep} is new" for dep in now.deps if dep not in locked.deps]
    listed += [f"dep {dep} is gone" for dep in locked.deps if dep not in now.deps]
    return tuple(listed)


def _outs(stage: Any, locked: StageRecord) -> Iterator[str]:
    for out in stage.outs:
        was = locked.outs.get(str(out))
        if not was:
            yield f"out {out} is not in its entry of dvc.lock"
        elif not out.exists:
            yield f"out {out} is missing (dvc checkout {out} brings it back from the cache)"
        elif (now := str(out.get_hash().value)) != was:
            yield f"out {out} is not what dvc.lock names ({now[:8]}… instead of {was[:8]}…)"
    for path in locked.outs.keys() - {str(out) for out in stage.outs}:
        yield f"out {path} of dvc.lock is not an out in dvc.yaml"


def _params(stage: Any, locked: StageRecord, now: StageRecord) -> Iterator[str]:
    from dvc.dependency import ParamsDependency

    read = {str(dep): dep.read_params() for dep in stage.deps if isinstance(dep, ParamsDependency)}
    for file in locked.params.keys() | now.params.keys():
        old, new = locked.params.get(file, {}), now.params.get(file, {})
        for name in new:
            if name not in old:
                yield f"param {name} is not in its entry of dvc.lock: which value it ran with is not known"
        for name, was in old.items():
            if name in new and new[name] != was:
                yield from (f"param {leaf}" for leaf in differing_leaves(name, was, new[name]))
            elif name not in new and read.get(file, {}).get(name) != was:
                yield f"param {name} is not a dependency any more"


def _data(locked: StageRecord, now: StageRecord, made: Mapping[str, str]) -> Iterator[str]:
    for dep in locked.deps.keys() | now.deps.keys():
        if is_code(dep) and overlapping(dep, made) is None:
            continue
        if dep not in now.deps:
            yield f"data {dep} is not a dependency any more"
        elif dep not in locked.deps:
            yield f"data {dep} is a new dependency"
        elif now.deps[dep] != locked.deps[dep]:
            yield f"data {dep} {'changed' if now.deps[dep] else 'is missing'}"
