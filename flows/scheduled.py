"""The scheduled flow: check the source folder; if something is new, run what depends on it, put the
candidate to the gate, report.

It works in a clone of its own (:mod:`flows.repro.clone`), so that a person's work tree is never
touched; it holds that before git touches it. It ends with the outputs pushed, and ``dvc.lock`` and
``params.yaml`` on a branch ``runs/<id>`` of the repository. A run that was cancelled or failed
leaves finished stages in DVC's cache and unfinished training in the scratch folder: the next one
goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Completed, Failed

from flows.errors import FlowError
from flows.pipeline import PipelineReport, pipeline
from flows.processes import environment
from flows.processes.locks import only_run
from flows.processes.lost import mark_this_run
from flows.promotion import promotion
from flows.repro import preflight, registered
from flows.repro.clone import (
    Clone,
    Origin,
    choose_lock,
    configure,
    folder_of,
    held,
    make,
    project_origin,
    publish,
    refresh,
    work_folder,
)
from flows.repro.plan import TARGET
from flows.repro.steps import Plan
from stages.runtime.plain import guard_logs
from stages.runtime.project import project_root
from stages.tracking.gate.promote import Promotion
from stages.tracking.session import Session


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="clone", retries=2, retry_delay_seconds=10)
def make_clone(origin: Origin, folder: Path) -> Path:
    """Create the clone in ``folder`` if it is missing; returns the project's folder in it."""
    return make(origin, folder)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="newest commit", retries=2, retry_delay_seconds=10)
def bring_clone(origin: Origin, folder: Path) -> Clone:
    """Move the clone to the newest commit of the branch."""
    clone = refresh(origin, folder)
    get_run_logger().info("%s is at commit %s of %s", clone.root, clone.commit[:12], origin.branch)
    return clone


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="push", retries=2, retry_delay_seconds=10)
def push_branch(root: Path, commit: str) -> str | None:
    """Push the commit of ``dvc.lock`` to the repository; returns the branch."""
    branch = publish(root, commit)
    get_run_logger().info("dvc.lock is on branch %s", branch or "(the branch itself, nothing changed)")
    return branch


@dataclass(frozen=True)
class Deployed:
    """The deployment that a run belongs to."""

    name: str
    id: str


def only_as_deployed(fixed: Mapping[str, str | None]) -> Deployed:
    """Reject a run that sets other values than its deployment does for the parameters that decide
    which code runs on which files.

    The server cannot enforce this: the creator of a run may switch its check of parameters off.

    Raises:
        FlowError: naming parameter, value and remedy.
    """
    context = FlowRunContext.get()
    deployment_id = context.flow_run.deployment_id if context is not None and context.flow_run is not None else None
    if deployment_id is None:
        return Deployed("by-hand", "")  # called in Python, by someone who runs code here anyway
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment(deployment_id)
    for name, value in fixed.items():
        expected = deployment.parameters.get(name, scheduled.parameters.properties[name].get("default"))
        if value != expected:
            raise FlowError(
                name,
                f"this run sets {value!r}, and only the deployment may ({expected!r})",
                "leave it out, or deploy again: vidbridge deploy",
            )
    return Deployed(deployment.name, str(deployment_id))


@flow(name="vidbridge-scheduled", persist_result=False)
def scheduled(
    branch: str = "main",
    source: str | None = None,
    recipe: str | None = None,
    target: str = TARGET,
    promote: bool = True,
    repository: str | None = None,
    directory: str | None = None,
) -> State[Any]:
    """Run what is new in a repository, or in the project of the worker: the one that it was started
    in (``VIDBRIDGE_PROJECT``).

    Args:
        branch: whose newest commit is run. Only the deployment sets it.
        source: absolute path of the folder of videos; None: as ``params.yaml`` says. Only the
            deployment sets it.
        recipe: name of a recipe; None: ``params.yaml`` as it is.
        target: stage to bring up to date.
        promote: put the candidate to the gate.
        repository: what git clones; None: the project of the worker. Only the deployment sets it.
        directory: the project's folder inside ``repository``; None: its top. Only the deployment
            sets it.

    Raises:
        FlowError: a stage failed, or git or DVC refused; what was done stays done. Or the run sets
            what only the deployment may, or another run holds this deployment's clone.
    """
    guard_logs()  # this process is Prefect's: nothing of ours has done it before
    mark_this_run()
    origin, deployed = _origin(branch, source, repository, directory)
    folder = folder_of(work_folder(), origin, source, deployed.name, deployed.id)
    with held(folder):
        root = make_clone(origin, folder)
        root.mkdir(parents=True, exist_ok=True)  # an older commit, that has no such folder yet, may be checked out
        with only_run(root):  # a person may be working in it
            clone = bring_clone(origin, folder)
            if origin.home is None:
                environment.enter(root)
            return _bring_up_to_date(clone, source, recipe, target, promote)


def _origin(branch: str, source: str | None, repository: str | None, directory: str | None) -> tuple[Origin, Deployed]:
    home = project_root() if repository is None or os.environ.get("VIDBRIDGE_PROJECT") else None
    if home is not None:
        environment.enter(home)
    else:
        environment.be_quiet()
    deployed = only_as_deployed({"branch": branch, "source": source, "repository": repository, "directory": directory})
    if repository is not None:
        return Origin(repository, branch, (directory or "").strip("/")), deployed
    assert home is not None
    return project_origin(home, branch), deployed


def is_nothing_new(session: Session, plan: Plan, promote: bool) -> bool:
    """Return whether a scheduled run with this plan has nothing to do. Outs to fetch or restore are
    not new. An earlier run that could not be registered is, since the run cache may know more of it
    than ``dvc.lock``; so is a candidate whose promotion failed.
    """
    if plan.to_run or any(step.entry is not None for step in plan.steps) or not registered.is_noted(session):
        return False
    return not (promote and registered.awaits_gate(session.root))


def _bring_up_to_date(clone: Clone, source: str | None, recipe: str | None, target: str, promote: bool) -> State[Any]:
    logger, root = get_run_logger(), clone.root
    if not clone.shared_remote:
        logger.warning(
            "the DVC remote is this clone's own: what it makes stays on this worker; give .dvc/config one that others"
            " can read (dvc remote add -d NAME URL), or set VIDBRIDGE_DVC_REMOTE"
        )
    configure(root, recipe, source)
    session = Session(root)
    session.params  # noqa: B018 - faults of the parameters are reported before the lock is read
    plan = choose_lock(root, target)
    for note in plan.notes:
        logger.warning("%s", note)
    if is_nothing_new(session, plan, promote):
        logger.info("nothing new: all that %s needs is up to date", target)
        create_markdown_artifact(
            key="scheduled", markdown=f"Nothing new at commit `{clone.commit[:12]}`: {target} is up to date."
        )
        return Completed(name="NothingNew", message="nothing new")
    preflight.check(session, plan)
    logger.info(
        "to run: %s",
        ", ".join(f"{step.name} ({step.why[0]})" for step in plan.to_run) or "nothing; what was made is handed on",
    )
    state = pipeline(root, target, push=True, return_state=True)
    if not state.is_completed():
        # A state of this run's own: of another run's Prefect would keep the count ("1/1 states
        # failed") and not the reason.
        if state.is_cancelled():
            return Cancelled(message=state.message)
        return Failed(message=state.message, data=state.result(raise_on_failure=False))
    report = state.result()
    assert isinstance(report, PipelineReport)
    branch_name = push_branch(root, report.commit)
    lines = [f"Commit `{report.commit[:12]}` on branch `{branch_name}` holds `dvc.lock`."]
    if not clone.shared_remote:
        lines.append("**The DVC remote is this worker's own**: give `.dvc/config` one that others can read.")
    if report.registration.pushed is None:
        raise FlowError("dvc push", "no remote", "dvc remote add -d NAME URL, then commit .dvc/config")
    ran = ", ".join(result.stage for result in report.ran) or "nothing, all of it was made before"
    lines.append(f"Ran: {ran}.")
    if promote and registered.awaits_gate(root) and (candidate := report.registration.candidate) is not None:
        # By its number: another deployment may have registered one meanwhile, and the alias names
        # that.
        decided = promotion(
            Session(root),
            str(candidate),
            author=os.environ.get("VIDBRIDGE_AUTHOR", "schedule"),
            reason=f"scheduled run {report.name}",
        )
        assert isinstance(decided, Promotion)  # called without return_state, a failed flow raises
        registered.judged(root, candidate)  # A refusal is an answer too; an error is none, and the next run asks again.
        lines.append(decided.verdict)
    create_markdown_artifact(key="scheduled", markdown="\n\n".join(lines))
    return Completed(message=f"ran {len(report.ran)} stages; see the artefacts")
