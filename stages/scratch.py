"""Where a training run keeps what it can resume from: circumstance, never part of a result."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.params import digest
from stages.tracking.lock import read_lock


def scratch_folder(stage: str, settings: Sequence[object], inputs: Sequence[Path], code: Sequence[Path]) -> Path:
    """Where this very run keeps what it can resume from: keyed by stage, parameters and the content of its inputs.

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
    code_now, code_file = _digest_files(code), folder / "code.txt"
    if code_file.exists() and code_file.read_text() != code_now and not os.environ.get("VIDBRIDGE_RESUME_ACROSS_CODE"):
        print(
            f"{stage}: the code changed since the checkpoints in {folder} were saved, so they are dropped"
            " (VIDBRIDGE_RESUME_ACROSS_CODE=1 resumes across a change of code)",
            file=sys.stderr,
        )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    code_file.write_text(code_now)
    return folder


def _content(path: Path) -> str:
    """Hash of an input that no stage in ``dvc.lock`` wrote (a verb run by hand): names, sizes and times."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    rows = [f"{p.relative_to(path.parent)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _digest_files(paths: Sequence[Path]) -> str:
    files = sorted(f for path in paths for f in (path.rglob("*.py") if path.is_dir() else [path]))
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()
