"""``dvc.lock`` and the stages of ``dvc.yaml`` as plain values: inputs, parameters, outs and digests
of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from stages.domain.core.digest import digest
from stages.runtime.bounded_yaml import MOST_LOCK_BYTES, MergeConflict, YamlError, parse_yaml
from stages.runtime.paths import CODE, LOCK_FILE, OWN_TASKS, PIPELINE_FILE
from stages.tracking.lineage.uri import TrackingError, quiet


def is_code(dep: str) -> bool:
    """Return whether a dependency is code: of this project's packages, of its own tasks, the
    digests of an installed package, or a Python file.
    """
    path = PurePosixPath(dep)
    return path.parts[0] in ("stages", "flows", CODE, OWN_TASKS) or path.suffix == ".py"


@dataclass(frozen=True)
class StageRecord:
    """A stage as DVC locks it. ``deps`` and ``outs`` map paths to content hashes (folders:
    ``….dir``); ``params``: file to values."""

    name: str
    cmd: str
    deps: Mapping[str, str]
    params: Mapping[str, Mapping[str, Any]]
    outs: Mapping[str, str]

    @property
    def params_digest(self) -> str:
        return digest(dict(self.params))

    @property
    def digest(self) -> str:
        """Digest of the work: command, parameters and inputs, without outs. Equal before and after
        the run."""
        return digest({"cmd": self.cmd, "deps": dict(self.deps), "params": dict(self.params)})


def read_lock(root: Path) -> Mapping[str, StageRecord]:
    """Read the stages of ``dvc.lock`` by name; empty if there is no lock yet.

    Raises:
        TrackingError: the file is damaged.
    """
    path = root / LOCK_FILE
    if not path.is_file():
        return {}
    if path.stat().st_size > MOST_LOCK_BYTES:
        raise TrackingError(
            str(path),
            f"has {path.stat().st_size:,} bytes",
            "restore it from git: git checkout -- dvc.lock, then dvc repro",
        )
    return parse_lock(path.read_bytes(), str(path))


@lru_cache(maxsize=8)
def parse_lock(text: bytes, name: str = LOCK_FILE) -> Mapping[str, StageRecord]:
    """Parse stages by name. Cached: parsing takes 50 ms, and every policy reads the same lock.

    Raises:
        TrackingError: it is not a ``dvc.lock``.
    """
    try:
        raw = parse_yaml(text.decode("utf-8"), name)
        return {stage: _record(stage, entry) for stage, entry in ((raw or {}).get("stages") or {}).items()}
    except MergeConflict as error:
        raise TrackingError.from_error(error) from error
    except (YamlError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise TrackingError(
            name, f"not a dvc.lock ({error})", "restore it from git: git checkout -- dvc.lock, then dvc repro"
        ) from error


def _record(name: str, entry: Mapping[str, Any]) -> StageRecord:
    return StageRecord(
        name=name,
        cmd=str(entry["cmd"]),
        deps=_hashes(entry.get("deps", ())),
        params=entry.get("params", {}),
        outs=_hashes(entry.get("outs", ())),
    )


def _hashes(items: Any) -> dict[str, str]:
    # DVC's name of a hash is the file system's: of folders and local files, buckets, web servers. A
    # dep that was missing when the stage was locked has only a path.
    return {str(item["path"]): str(item.get("md5") or item.get("etag") or item.get("checksum") or "") for item in items}


def record_of(stage: Any) -> StageRecord:
    """Convert a DVC stage to plain values, without its outs: the inputs, as far as ``stage`` has
    them."""
    from dvc.stage.serialize import to_single_stage_lockfile

    outs, stage.outs = stage.outs, []
    try:
        return _record(stage.name, to_single_stage_lockfile(stage))
    finally:
        stage.outs = outs


def is_outside(dep: Any) -> bool:
    """Return whether a dependency of DVC lies outside of this machine: in a bucket, on a server."""
    return getattr(getattr(dep, "fs", None), "protocol", "local") != "local"


def _save_deps(stage: Any) -> None:
    """Hash a stage's inputs; one in a bucket that does not answer keeps the hash of the lock."""
    deps = stage.deps
    stage.deps = [dep for dep in deps if not is_outside(dep)]
    try:
        stage.save_deps(allow_missing=True)
    finally:
        stage.deps = deps
    for dep in filter(is_outside, deps):
        locked = dep.hash_info
        try:
            dep.save()
        except Exception:
            # Of any client. The stage reports it if it reads the bucket.
            dep.hash_info = locked


def current_stage(root: Path, name: str) -> StageRecord | None:
    """Read stage ``name`` of ``dvc.yaml`` with the present parameters and inputs; None if
    ``dvc.yaml`` has no such stage.

    Called at the start of a stage, when DVC has already hashed its inputs: the hashes come from
    DVC's state database.
    """
    if not (root / PIPELINE_FILE).is_file():
        return None
    quiet()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage.exceptions import StageNotFound

    try:
        with Repo(str(root)) as repo:
            stage = repo.stage.load_one(str(root / PIPELINE_FILE), name)
            _save_deps(stage)
            return record_of(stage)
    except StageNotFound:
        return None
    except DvcException as error:
        raise TrackingError(
            "dvc.yaml", f"stage {name!r} cannot be read ({error})", f"try: dvc status {name}"
        ) from error
