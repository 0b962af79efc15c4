"""Distribution of test files to the processes of `pytest -n`."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

#: Groups of files that share a server: one process runs them all, and starts the server once.
TOGETHER = {
    "mlflow server": (
        "tests/stages/tracking/registry/test_ledger.py",
        "tests/stages/tracking/registry/test_registry.py",
        "tests/stages/tracking/runs/test_lost_runs.py",
        "tests/stages/tracking/runs/test_runs.py",
    ),
}
_GROUPS = {file: group for group, files in TOGETHER.items() for file in files}


class FilesTogether(LoadFileScheduling):  # type: ignore[misc]
    """Give a process whole files, and whole groups of :data:`TOGETHER`."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return _GROUPS.get(file, file)
