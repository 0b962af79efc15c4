"""Work pools and deployments on a Prefect server, through its client: existing ones stay as their
owner made them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.deployments.prefect_file import PausedState
from flows.errors import FlowError, UsageError
from stages.runtime.plain import one_line, redacted

PROCESS = "process"
_OF_A_RUN = re.compile(r"\{\{(?!\s*(?:prefect\.|\$))")


@contextmanager
def _asking() -> Iterator[SyncPrefectClient]:
    try:
        with get_client(sync_client=True) as client:
            yield client
    except HTTPError as error:
        raise FlowError("Prefect", f"{one_line(redacted(error))}", "look at the server of PREFECT_API_URL") from error


def provide(template: Path, name: str, *, process: bool, ours: str) -> list[str]:
    """Find or create a work pool whose runs set no job variable; a new one is made from
    ``template``. Returns notes for the user.

    Raises:
        UsageError: the pool that is there lets a run set how it is started, or is not one of
            processes where ``process`` asks for it.
    """
    wanted = json.loads(template.read_text(encoding="utf-8"))
    with _asking() as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type=PROCESS, base_job_template=wanted))
        except ObjectAlreadyExists:
            pool = client.read_work_pool(name)
        else:
            return []
        if process and pool.type != PROCESS:
            raise UsageError(
                "--pool",
                f"{name!r} starts runs by {pool.type}, and the worker of this command starts processes",
                "start its worker yourself and add --no-worker, or name another pool",
            )
        if is_locked(pool.base_job_template):
            same = pool.base_job_template == wanted
            return (
                []
                if same
                else [f"note: work pool {name} was there and stays as it is (no run can set how it is started)"]
            )
        if name == ours and _is_prefects_own(pool):
            # As 0.1 made it, and nobody set anything in it.
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=wanted))
            return [f"note: work pool {name} let runs set their command; now no run can ({template.name})"]
    raise UsageError(
        "--pool",
        f"{name!r} is there already, and lets a run set how it is started (command, environment, folder), so it"
        f" could start anything",
        f"name another one (--pool NAME), or lock this one: prefect work-pool update {name}"
        f" --base-job-template {template}",
    )


def is_locked(template: Mapping[str, Any]) -> bool:
    """Return whether a run can set nothing: no value of the job has a placeholder, other than for
    values of the server or the worker's environment. A table ``env`` takes a run's values without a
    placeholder.
    """
    job = template.get("job_configuration") or {}
    return _OF_A_RUN.search(json.dumps(job)) is None and "env" not in job


def _is_prefects_own(pool: WorkPool) -> bool:
    from prefect.workers.process import ProcessWorker

    return pool.type == PROCESS and pool.base_job_template == ProcessWorker.get_default_base_job_template()


def _read(client: SyncPrefectClient, full_name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(full_name)
    except ObjectNotFound:
        return None


def standing(full_name: str) -> PausedState | None:
    """Paused parts of a deployment; None if it does not exist yet."""
    with _asking() as client:
        found = _read(client, full_name)
    if found is None:
        return None
    schedules = tuple(
        (
            str(getattr(one.schedule, "cron", "")),
            str(getattr(one.schedule, "timezone", None) or "UTC"),
            bool(one.active),
        )
        for one in found.schedules
    )
    return PausedState(bool(found.paused), schedules)


def still_paused(full_name: str) -> list[str]:
    """List what an operator paused, with how to resume it, a sentence each."""
    with _asking() as client:
        deployment = _read(client, full_name)
    if deployment is None:
        return []
    sentences = [f"{full_name} is paused, and stays so; resume it on its page"] if deployment.paused else []
    for one in deployment.schedules:
        if not one.active:
            words = getattr(one.schedule, "cron", "its schedule")
            sentences.append(
                f"its schedule ({words}) was paused, and stays so; resume it: prefect deployment schedule resume"
                f" {full_name} {one.id}"
            )
    return sentences
