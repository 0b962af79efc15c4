"""Where a training run keeps what it can resume from: circumstance, never part of a result."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from stages.domain.core.digest import digest
from stages.runtime import lease
from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.runs.store import is_first_rank

#: In a scratch folder: the digest of the code that wrote it, and the pipeline run that used it last (empty: a stage by itself).
CODE_FILE, RUN_FILE = "code.txt", "run.txt"

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Scratch:
    """A folder that is this stage's alone. ``lease`` is None in all processes of a training but the first."""

    folder: Path
    lease: lease.Lease | None

    def guarded(self, call: Callable[_P, _T]) -> Callable[_P, _T]:
        """``call``, which ends with :class:`stages.runtime.lease.LeaseLost` when the folder is not ours any more."""
        return call if self.lease is None else self.lease.before(call)

    def check(self) -> None:
        """
        Raises:
            LeaseLost: the folder is not ours any more.
        """
        if self.lease is not None:
            self.lease.check()

    def clear(self) -> None:
        """Delete what it holds."""
        if self.lease is not None:
            self.lease.clear()


@contextmanager
def scratch_of(stage: str, settings: Sequence[object], inputs: Sequence[Path], code: Sequence[Path]) -> Iterator[Scratch]:
    """Where this very run keeps what it can resume from: keyed by stage, parameters and the content of its inputs.

    It is ours for this block. While another process holds it, on whatever host, this one waits, and then goes on from what that has left.

    Checkpoints of another code are not resumed unless VIDBRIDGE_RESUME_ACROSS_CODE is set: they are deleted, and said to be.
    """
    hashes = {path: content for record in read_lock(Path()).values() for path, content in record.outs.items()}
    identity = {
        "stage": stage,
        "settings": [setting.model_dump(mode="json") if hasattr(setting, "model_dump") else setting for setting in settings],
        "inputs": {path.as_posix(): hashes.get(path.as_posix()) or _content(path) for path in inputs},
    }
    root = Path(os.environ.get("VIDBRIDGE_SCRATCH", ".vidbridge/scratch"))
    folder = root / stage.replace("@", "-") / digest(identity)
    if not is_first_rank():
        lease.follow(folder)
        yield Scratch(folder, None)
        return
    with lease.held(folder, stage) as mine:
        _drop_other_code(mine, stage, _digest_files(code))
        (folder / RUN_FILE).write_text(os.environ.get("VIDBRIDGE_PIPELINE_RUN", ""))
        yield Scratch(folder, mine)


def _drop_other_code(mine: lease.Lease, stage: str, code_now: str) -> None:
    code_file = mine.folder / CODE_FILE
    if code_file.exists() and code_file.read_text() != code_now and not os.environ.get("VIDBRIDGE_RESUME_ACROSS_CODE"):
        print(
            f"{stage}: the code changed since the checkpoints in {mine.folder} were saved, so they are dropped"
            " (VIDBRIDGE_RESUME_ACROSS_CODE=1 resumes across a change of code)",
            file=sys.stderr,
        )
        mine.clear()
    code_file.write_text(code_now)


def _content(path: Path) -> str:
    """Hash of an input that no stage in ``dvc.lock`` wrote (a verb run by hand): names, sizes and times."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    rows = [f"{p.relative_to(path.parent)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _digest_files(paths: Sequence[Path]) -> str:
    files = sorted(f for path in paths for f in (path.rglob("*.py") if path.is_dir() else [path]))
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()
