"""The deployment of ``infra/prefect.yaml``, with the settings of one request in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.errors import UsageError
from flows.processes.environment import shipped
from flows.repro import package_code
from stages.runtime.bounded_yaml import YamlError, read_yaml

PREFECT_FILE = Path("infra/prefect.yaml")
POOL = "vidbridge"


@dataclass(frozen=True)
class DeploymentRequest:
    """Settings of a deployment. ``repository``: URL or path that the worker clones, None for its
    own project; ``directory``: the project's folder in it. ``cron`` and ``timezone``: None for
    those of ``infra/prefect.yaml``.
    """

    branch: str
    name: str
    pool: str = POOL
    cron: str | None = None
    timezone: str | None = None
    source: str | None = None
    recipe: str | None = None
    repository: str | None = None
    directory: str | None = None


def deployment_name(root: Path) -> str:
    """Name of the one deployment in ``infra/prefect.yaml``."""
    return str(_prefect_table(root)["deployments"][0]["name"])


def project_file(root: Path, name: Path) -> Path:
    """Path of a file of the project; a project without code of its own may leave it to the
    installed package.
    """
    path = root / name
    return path if path.exists() or not package_code.uses_package(root) else shipped(name.name)


def _prefect_table(root: Path) -> dict[str, Any]:
    path = project_file(root, PREFECT_FILE)
    try:
        table = read_yaml(path)
        str(table["deployments"][0]["name"])
    except (OSError, YamlError, KeyError, IndexError, TypeError) as error:
        raise UsageError(
            str(path), f"names no deployment ({error})", f"restore it: git checkout {PREFECT_FILE}"
        ) from error
    found: dict[str, Any] = table
    return found


@dataclass(frozen=True)
class PausedState:
    """Paused parts of an existing deployment."""

    paused: bool
    #: Schedules: cron, time zone, and True if it is active.
    schedules: tuple[tuple[str, str, bool], ...]

    def is_active(self, cron: str, timezone: str) -> bool:
        """Return whether a schedule of the new deployment runs: like the same schedule before, else
        like all of them together.
        """
        same = [active for old, zone, active in self.schedules if (old, zone) == (cron, timezone)]
        every = same or [active for _, _, active in self.schedules]
        return any(every) or not every


def prefect_file(root: Path, order: DeploymentRequest, standing: PausedState | None) -> dict[str, Any]:
    """``infra/prefect.yaml`` with the one deployment of ``order``, paused as ``standing`` is."""
    table = _prefect_table(root)
    one = table["deployments"][0]
    parameters = {key: getattr(order, key) for key in ("repository", "directory", "branch", "source", "recipe")}
    one["name"], one["parameters"] = order.name, (one.get("parameters") or {}) | parameters
    one["work_pool"] = (one.get("work_pool") or {}) | {"name": order.pool}
    if order.cron is not None:
        one["schedules"] = [{"cron": order.cron, "timezone": "UTC"}]
    for schedule in one.get("schedules") or []:
        if order.timezone is not None:
            schedule["timezone"] = order.timezone
        if standing is not None and not standing.is_active(
            str(schedule.get("cron")), str(schedule.get("timezone") or "UTC")
        ):
            schedule["active"] = False
    if standing is not None and standing.paused:
        one["paused"] = True
    if order.repository is not None:
        one["pull"] = []  # no folder of the deployer's, nor of a project on the worker
    table["deployments"] = [one]
    return table
