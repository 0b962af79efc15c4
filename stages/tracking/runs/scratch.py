"""Scratch folder of a training run, for its resumable checkpoints: circumstance, never part of a
result."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from stages.domain.core.digest import digest
from stages.runtime.code_digest import code_digest
from stages.runtime.leases import lease
from stages.runtime.ranks.nodes import scratch_folder
from stages.runtime.sources.addresses import is_remote
from stages.tracking.lineage.declared import declared_stage
from stages.tracking.lineage.lockfile import StageRecord, is_code, read_lock
from stages.tracking.runs.store import is_first_rank

#: Files in a scratch folder: the digest of the code that wrote it, and the pipeline run that used
#: it last (empty: a stage by itself).
CODE_FILE, RUN_FILE = "code.txt", "run.txt"

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Scratch:
    """A folder that belongs to this stage alone. ``lease`` is None in all processes of a training
    but the first."""

    folder: Path
    lease: lease.Lease | None

    def guarded(self, call: Callable[_P, _T]) -> Callable[_P, _T]:
        """Wrap ``call`` to raise :class:`stages.runtime.leases.lease.LeaseLost` if the folder is no
        longer ours."""
        return call if self.lease is None else self.lease.before(call)

    def check(self) -> None:
        """Check that the folder is still ours.

        Raises:
            LeaseLost: the folder is no longer ours.
        """
        if self.lease is not None:
            self.lease.check()

    def clear(self) -> None:
        """Delete its content."""
        if self.lease is not None:
            self.lease.clear()


@contextmanager
def scratch_of(stage: str) -> Iterator[Scratch]:
    """Lease the scratch folder of this run of ``stage`` (``grpo@bridge``), as ``dvc.yaml`` declares
    it.

    It is keyed by the stage's command, parameters and the content of its inputs, and is ours for
    the duration of this block. While another process holds it, on any host, this one waits, and
    then resumes from the other's checkpoints.

    Checkpoints of other code are not resumed unless VIDBRIDGE_RESUME_ACROSS_CODE is set: they are
    deleted, and that is reported. That code is the code ``dvc.yaml`` lists for the stage below
    ``stages/`` or ``code/``, as :func:`stages.runtime.code_digest.code_digest` hashes it.

    Raises:
        TrackingError: ``dvc.yaml``, ``params.yaml`` or ``dvc.lock`` is missing or damaged, or does
            not have the stage.
        CodeError: code that ``dvc.yaml`` lists is missing.
    """
    declared = declared_stage(Path(), stage)
    code = [Path(dep) for dep in declared.deps if is_code(dep)]
    identity = {
        "stage": stage,
        "cmd": declared.cmd,
        "params": declared.params,
        "inputs": _contents([dep for dep in declared.deps if not is_code(dep)], read_lock(Path())),
    }
    folder = scratch_folder() / stage.replace("@", "-") / digest(identity)
    if not is_first_rank():
        lease.follow(folder)
        yield Scratch(folder, None)
        return
    code_now = code_digest(code)
    with lease.held(folder, stage) as held:
        _drop_other_code(held, stage, code_now)
        (folder / RUN_FILE).write_text(os.environ.get("VIDBRIDGE_PIPELINE_RUN", ""))
        yield Scratch(folder, held)


def _drop_other_code(held: lease.Lease, stage: str, code_now: str) -> None:
    code_file = held.folder / CODE_FILE
    if code_file.exists() and code_file.read_text() != code_now and not os.environ.get("VIDBRIDGE_RESUME_ACROSS_CODE"):
        print(
            f"{stage}: the code changed since the checkpoints in {held.folder} were saved, so they are dropped"
            " (VIDBRIDGE_RESUME_ACROSS_CODE=1 resumes across a change of code)",
            file=sys.stderr,
        )
        held.clear()
    code_file.write_text(code_now)


def _contents(inputs: Sequence[str], locked: Mapping[str, StageRecord]) -> dict[str, str]:
    """Hashes of inputs by path, from ``dvc.lock`` where it has them."""
    outs = {path: content for record in locked.values() for path, content in record.outs.items()}
    # An input may be a part of an out (``data/samples/validation`` of ``data/samples``).
    outs |= {path: outs[owner] for path in inputs for owner in map(Path.as_posix, Path(path).parents) if owner in outs}
    # The user's source is not an out of any stage. The stages that produced the other inputs have
    # recorded its hash; under DVC they are up to date, so all of them agree, before an interruption
    # and after it.
    hashes: dict[str, set[str]] = {path: set() for path in inputs}
    for record in locked.values():
        if any(path in record.outs for path in inputs):
            for path in inputs:
                hashes[path] |= {record.deps.get(path, "")} - {""}
    return {
        path: outs.get(path) or (hashes[path].pop() if len(hashes[path]) == 1 else _content(path)) for path in inputs
    }


def _content(name: str) -> str:
    """Hash of an input that ``dvc.lock`` does not list (a verb run by hand): names, sizes and
    times. Of a bucket or a web server there is none: ``data/clips`` has the hash of each file."""
    if is_remote(name):
        return name
    path = Path(name)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    rows = [f"{p.relative_to(path.parent)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
