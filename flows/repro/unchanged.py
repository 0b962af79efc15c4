"""Check that nobody changes ``params.yaml`` or ``dvc.lock`` during a run: its results would be
recorded with inputs they were not made from.

The lock of the project (:func:`flows.processes.locks.only_run`) keeps our own commands away; a
person's editor and git know nothing of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.domain.core.digest import digest
from stages.runtime import paths
from stages.runtime.bounded_yaml import read_yaml
from stages.tracking.lineage.lockfile import StageRecord, read_lock
from stages.tracking.lineage.uri import TrackingError

_SHOWN = 3


@dataclass
class Watch:
    """State of ``params.yaml`` and ``dvc.lock`` when the run read them, and the entries that each
    stage of the run locked since.
    """

    root: Path
    params: Mapping[str, Any]
    _records: dict[str, StageRecord] = field(default_factory=dict)

    @classmethod
    def start(cls, root: Path) -> Watch:
        """Read the parameters."""
        return cls(root, read_yaml(root / paths.PARAMS_FILE))

    def note(self, *stages: str) -> None:
        """Remember the entries that these stages locked, now that they have ended. If another stage
        is writing the file, nothing is noted.
        """
        for stage in stages:
            self._records.pop(stage, None)
        try:
            locked = read_lock(self.root)
        except TrackingError:
            return
        self._records |= {stage: locked[stage] for stage in stages if stage in locked}

    def changes(self, but: Collection[str] = ()) -> list[str]:
        """List the changes that someone else made since, a sentence each; ignores entries of the
        stages ``but``. Call it when no stage runs.
        """
        found = []
        now = read_yaml(self.root / paths.PARAMS_FILE)
        if digest(now) != digest(self.params):
            leaves = list(_leaves("", self.params, now))
            more = f" and {len(leaves) - _SHOWN} more" if len(leaves) > _SHOWN else ""
            found.append(f"{paths.PARAMS_FILE}: was changed during the run ({', '.join(leaves[:_SHOWN])}{more})")
        locked = read_lock(self.root)
        other = [name for name, was in self._records.items() if name not in but and _differs(was, locked.get(name))]
        if other:
            found.append(f"dvc.lock: was changed during the run by something else ({', '.join(other)})")
        return found


def _differs(was: StageRecord, now: StageRecord | None) -> bool:
    """Compare only values that both have: an entry of a file that was being written may have been
    read in part.
    """
    if now is None:
        return True
    pairs = ((was.outs, now.outs), (was.deps, now.deps))
    return any(path in new and new[path] != value for old, new in pairs for path, value in old.items())


def _leaves(name: str, old: object, new: object) -> Iterator[str]:
    """Full names of the parameters that differ, or that only one side has."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in old or key not in new or old[key] != new[key]:
                yield from _leaves(f"{name}.{key}".lstrip("."), old.get(key), new.get(key))
    else:
        yield name
