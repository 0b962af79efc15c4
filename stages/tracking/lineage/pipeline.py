"""The stages of ``dvc.yaml`` as ``dvc.lock`` has them: the producer and inputs of each result, and
whether it is up to date."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.runtime.paths import PIPELINE_FILE
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.lockfile import StageRecord, is_code, read_lock
from stages.tracking.lineage.uri import TrackingError


@dataclass(frozen=True)
class Parent:
    """A dep that another stage produced: that stage, the path of its out, and the out's hash."""

    stage: str
    path: str
    out: str


@dataclass(frozen=True)
class Pipeline:
    """Locked stages that ``dvc.yaml`` still has. A deleted row's entry in ``dvc.lock`` is not among
    them."""

    records: dict[str, StageRecord]
    #: Hashes of the outs that DVC keeps in its cache (others, such as small metrics, are in git).
    cached: frozenset[str]
    #: Stages whose parameters in ``params.yaml`` differ from the locked ones, with the names of
    #: those.
    changed: dict[str, tuple[str, ...]]

    def parents(self, record: StageRecord) -> dict[str, Parent]:
        """Find the deps of a stage that other stages produced, by path. A dep may be a part of an
        out (``models/a/final`` of ``models/a``)."""
        parents_of: dict[str, Parent] = {}
        for dep in record.deps:
            for other in self.records.values():
                for path, out in other.outs.items():
                    if dep == path or dep.startswith(f"{path}/"):
                        parents_of[dep] = Parent(other.name, path, out)
        return parents_of

    def ancestors(self, record: StageRecord) -> Iterator[StageRecord]:
        """Iterate over every stage upstream, each once, nearest first."""
        waiting, visited = [record], {record.name}
        while waiting:
            for parent in self.parents(waiting.pop(0)).values():
                if parent.stage not in visited:
                    visited.add(parent.stage)
                    waiting.append(self.records[parent.stage])
                    yield self.records[parent.stage]

    def data(self, record: StageRecord) -> dict[str, str]:
        """Collect the content hashes of all data upstream: outs under ``data/``, and folders that
        no stage produced (the user's source)."""
        hashes: dict[str, str] = {}
        for stage in (record, *self.ancestors(record)):
            produced = self.parents(stage)
            hashes |= {path: out for path, out in stage.outs.items() if path.startswith("data/")}
            folders = {
                path: value for path, value in stage.deps.items() if value.endswith(".dir") and not is_code(path)
            }
            hashes |= {path: value for path, value in folders.items() if path not in produced}
        return dict(sorted(hashes.items()))

    def stale(self, name: str, content: ContentStore) -> str | None:
        """Return why the locked result of a stage is out of date; None if it is current. Code is
        not compared."""
        record = self.records.get(name)
        if record is None:
            return f"{name}: not run yet"
        if name in self.changed:
            return f"{name}: params.yaml differs from what it was made with ({', '.join(self.changed[name])})"
        for dep, parent in self.parents(record).items():
            if reason := self.stale(parent.stage, content):
                return reason
            now = (
                parent.out if dep == parent.path else content.sub_hash(parent.out, dep.removeprefix(f"{parent.path}/"))
            )
            if now != record.deps[dep]:
                return f"{name}: made from an earlier {dep}"
        return None


def read_pipeline(content: ContentStore, root: Path) -> Pipeline:
    """Read ``dvc.yaml`` (with its tables resolved) and ``dvc.lock``.

    Raises:
        TrackingError: one of them is damaged.
    """
    from dvc.dependency import ParamsDependency
    from dvc.exceptions import DvcException

    locked = read_lock(root)
    records: dict[str, StageRecord] = {}
    cached: set[str] = set()
    changed: dict[str, tuple[str, ...]] = {}
    try:
        for stage in content.repo.index.stages:
            # `addressing` would depend on the working directory.
            record = locked.get(getattr(stage, "name", "") or "")
            if record is None or stage.path_in_repo != PIPELINE_FILE:
                continue
            records[record.name] = record
            cached |= {str(out.hash_info.value) for out in stage.outs if out.use_cache and out.hash_info}
            names = [key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in _changes(dep.status())]
            if names:
                changed[record.name] = tuple(names)
    except DvcException as error:
        raise TrackingError("dvc.yaml", str(error), "try: dvc status") from error
    return Pipeline(records, frozenset(cached), changed)


def _changes(status: dict[str, dict[str, str] | str]) -> Iterator[str]:
    for file, keys in status.items():
        yield from keys if isinstance(keys, dict) else (file,)
