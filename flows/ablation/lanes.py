"""Clones of the project in which a grid runs: one for each seed, and more where units of one seed
run side by side.

DVC works on one ``params.yaml`` at a time, so each lane is a project of its own. Lanes share the
project's DVC cache: data and start are made in the first lane of a seed and checked out in others.
"""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flows.processes.environment import state
from flows.repro import clone, lockfile
from stages.params import Params
from stages.runtime import paths
from stages.tracking.lineage.git import git

#: DVC is not made for several threads: whatever uses it in this process holds this lock.
IN_DVC = threading.Lock()


def ablation_folder(root: Path, params: Params) -> Path:
    """Folder of a recipe's ablation: lanes, logs, scores, and the results."""
    return root / paths.ABLATIONS / params.recipe


def lane_folder(grid: Path, seed: int, lane: int) -> Path:
    """Clone of a lane below the grid's folder; ``lane`` counts from 1."""
    return grid / (f"seed-{seed}" if lane == 1 else f"seed-{seed}.{lane}")


@dataclass
class Lanes:
    """The lanes of a grid at one commit, cloned or moved there when they are first used."""

    root: Path
    grid: Path
    commit: str
    _ready: dict[Path, Path] = field(default_factory=dict)

    def prepare(self, seed: int, lane: int) -> Path:
        """Return the project of a lane. Call it with the project's lock and :data:`IN_DVC` held,
        for a lane above 1 after the seed's start.
        """
        folder = lane_folder(self.grid, seed, lane)
        if folder not in self._ready:
            self._ready[folder] = cloned(self.root, folder, self.commit)
            lockfile.mend(self._ready[folder])  # DVC may have been killed while it wrote
        project = self._ready[folder]
        if lane > 1:
            # The kept copy: another stage may be writing the lock itself.
            shutil.copyfile(lockfile.kept(self.prepare(seed, 1)), project / paths.LOCK_FILE)
        return project

    def environment(self, seed: int) -> dict[str, str]:
        """Environment that the lanes of a seed share, whichever of them runs a stage: state of
        interrupted training, decoded frames and fetched files, unless the user set a folder.
        """
        first = self._ready[lane_folder(self.grid, seed, 1)]
        shared = {"VIDBRIDGE_FRAME_CACHE": paths.FRAMES, "VIDBRIDGE_SOURCE_CACHE": paths.SOURCES}
        return {"VIDBRIDGE_SCRATCH": str(first / paths.SCRATCH)} | {
            name: str(first / folder) for name, folder in shared.items() if not os.environ.get(name)
        }


def cloned(root: Path, folder: Path, commit: str) -> Path:
    """Clone, or move the clone, to ``commit``; returns the project's folder in it."""
    origin = clone.project_origin(root, commit)
    if not (folder / ".git").is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        git(folder.parent, "clone", "--quiet", "--local", "--no-checkout", "--", origin.repository, folder.name)
    git(folder, "fetch", "--quiet", "origin", "HEAD")
    (folder / ".git" / "index.lock").unlink(missing_ok=True)
    git(folder, "checkout", "--quiet", "--force", "--detach", commit)
    project = folder / origin.directory
    clone.share_storage(root, project)
    state(project).mkdir(mode=0o700, exist_ok=True)
    return project


def write_params(root: Path, project: Path, table: dict[str, Any]) -> None:
    """Write a lane's parameters. Makes a relative path of the user's own videos absolute, since it
    counts from the project.
    """
    source = Path(table["ingest"]["source"])
    if source != paths.CORPUS and not source.is_absolute():
        table["ingest"]["source"] = str(root / source)
    (project / paths.PARAMS_FILE).write_text(
        yaml.safe_dump(table, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
