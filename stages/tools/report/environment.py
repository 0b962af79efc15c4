"""Origin of the results: commits, machines and versions of the runs that produced them, as far as
they were recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from stages.domain.core.digest import digest
from stages.params import Params
from stages.runtime.bounded_yaml import read_yaml
from stages.runtime.machine import versions
from stages.runtime.paths import PARAMS_FILE
from stages.tracking.lineage.git import head, is_dirty, is_repository
from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.runs.history import PastRun


def environment(root: Path, params: Params, runs: Mapping[str, PastRun], now: datetime) -> dict[str, Any]:
    """Collect facts about the page and about the runs behind it.

    Returns:
        ``page``: origin of this page. ``made_on`` (commit and machine) and ``versions``: each
        different one with its stages; empty if no run recorded it. ``versions_here``: of the
        process that wrote the page.
    """
    return {
        "page": {
            "written": f"{now:%Y-%m-%d %H:%M} UTC",
            "recipe": params.recipe,
            "parameters": digest(params),
            "seed": str(params.seed),
            "commit": _commit(root),
            **_span(runs),
        },
        "versions_here": versions(),
        "made_on": _variants({name: {**_commit_of(run), **run.machine, **_gpus(run)} for name, run in runs.items()}),
        "versions": _variants({name: run.versions for name, run in runs.items()}),
    }


def other_parameters(root: Path, stages: Iterable[str]) -> dict[str, list[str]]:
    """Map stage to the parameters whose values in ``dvc.lock`` and ``params.yaml`` differ.

    After a change of recipe, or an edit, the present results belong to other parameters than
    ``params.yaml`` has.

    Raises:
        TrackingError: ``dvc.lock`` is damaged.
    """
    locked, now = read_lock(root), read_yaml(root / PARAMS_FILE)
    changed = {
        stage: [
            key for key, value in locked[stage].params.get(PARAMS_FILE, {}).items() if not _same(value, _at(now, key))
        ]
        for stage in stages
        if stage in locked
    }
    return {stage: keys for stage, keys in changed.items() if keys}


def _at(table: Any, key: str) -> Any:
    for part in key.split("."):
        table = table.get(part) if isinstance(table, Mapping) else None
    return table


def _same(first: Any, second: Any) -> bool:
    """Compare values read by different YAML libraries (`1e-6` is text to some)."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(value, second[key]) for key, value in first.items())
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, str) != isinstance(second, str):
        return str(first) == str(second) or _number(first) == _number(second) is not None
    return bool(first == second)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _commit(root: Path) -> str:
    """Commit of the project's folder, and whether tracked files differ from it."""
    commit = head(root) if is_repository(root) else None
    if commit is None:
        return "none: the folder is not a git repository, or has no commit"
    return f"{commit[:12]}{', with changes that are not committed' if is_dirty(root) else ''}"


def _span(runs: Mapping[str, PastRun]) -> dict[str, str]:
    started = [run.started for run in runs.values()]
    return {"stages started": f"{min(started):%Y-%m-%d %H:%M} to {max(started):%Y-%m-%d %H:%M} UTC"} if started else {}


def _gpus(run: PastRun) -> dict[str, str]:
    names = dict.fromkeys(run.gpus)
    return {"GPUs": ", ".join(f"{run.gpus.count(name)} x {name}" for name in names)} if names else {}


def _commit_of(run: PastRun) -> dict[str, str]:
    return (
        {"commit": f"{run.commit[:12]}{', with changes that were not committed' if run.dirty else ''}"}
        if run.commit
        else {}
    )


def _variants(facts: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """Group equal facts with the stages they hold for; the most frequent come first."""
    stages: dict[str, list[str]] = {}
    for name, about in facts.items():
        if about:
            stages.setdefault(json.dumps(about), []).append(name)
    ranked = sorted(stages.items(), key=lambda item: -len(item[1]))
    return [{"facts": json.loads(about), "stages": sorted(names)} for about, names in ranked]
