"""State of this machine and this project, each fault with its remedy. Imports nothing heavy; takes
a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from flows.project.diagnosis import machine, project, services
from flows.project.diagnosis.finding import Finding
from stages.tracking.session import Session


def findings(root: Path | None) -> list[Finding]:
    """Check everything, side by side; outside a project (None) the machine only."""
    if root is None:
        found = _side_by_side([partial(check, Path.cwd()) for check in machine.CHECKS])
        todo = "cd into a clone of the project, or set VIDBRIDGE_PROJECT to it"
        return [
            *found,
            Finding("project", "missing", f"{Path.cwd()} is not inside one (no dvc.yaml upward of it)", todo),
        ]
    session = Session(root)
    of_project: list[Callable[[], Finding]] = [
        partial(services.check_source, session),
        partial(services.check_judge, session),
        partial(services.check_engine, root),
        partial(services.check_mlflow, root),
        partial(project.check_champion, session),
        partial(services.check_prefect, root),
        partial(services.check_remote, root),
        partial(project.check_clones, root),
        partial(project.check_git, root),
    ]
    return _side_by_side([partial(check, root) for check in machine.CHECKS] + of_project) + project.check_upgrade(
        session
    )


def _side_by_side(checks: Sequence[Callable[[], Finding]]) -> list[Finding]:
    with ThreadPoolExecutor(len(checks)) as pool:
        return [future.result() for future in [pool.submit(check) for check in checks]]
