"""The scheduled flow: look at the source folder; when something is new, run what depends on it, put the candidate to the gate, report.

It works in a clone of its own (:mod:`flows.clone`), so that a person's work tree is never touched, and ends with the outputs pushed and
``dvc.lock`` and ``params.yaml`` on a branch ``runs/<id>`` of the repository. A run that was cancelled or failed leaves finished stages in
DVC's cache and unfinished training in the scratch folder: the next one goes on from there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed

from flows import dvc, preflight, project, registered
from flows.clone import Clone, choose_lock, configure, publish, refresh
from flows.errors import FlowError
from flows.pipeline import PipelineReport, pipeline
from flows.promotion import promotion
from stages.params import load_params
from stages.plain import guard_logs
from stages.tracking.gate import Promotion


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="clone", retries=2, retry_delay_seconds=10)
def bring_clone(repository: str, branch: str, folder: Path) -> Clone:
    """The clone at the newest commit of the branch."""
    clone = refresh(repository, branch, folder)
    get_run_logger().info("%s is at commit %s of %s", clone.root, clone.commit[:12], branch)
    return clone


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="push", retries=2, retry_delay_seconds=10)
def push_branch(root: Path, commit: str) -> str | None:
    """Hand the commit of ``dvc.lock`` to the repository."""
    branch = publish(root, commit)
    get_run_logger().info("dvc.lock is on branch %s", branch or "(the branch itself, nothing changed)")
    return branch


def only_as_deployed(fixed: Mapping[str, str | None]) -> None:
    """Refuse a run of a deployment that sets other values than the deployment does: which code runs, and on which files.

    The server cannot be asked to: who creates a run may switch its check of parameters off.

    Raises:
        FlowError: naming parameter, value and remedy.
    """
    context = FlowRunContext.get()
    deployment_id = context.flow_run.deployment_id if context is not None and context.flow_run is not None else None
    if deployment_id is None:
        return  # called in Python, by someone who runs code here anyway
    with get_client(sync_client=True) as client:
        deployed = client.read_deployment(deployment_id).parameters
    for name, value in fixed.items():
        if value != (expected := deployed.get(name, scheduled.parameters.properties[name].get("default"))):
            raise FlowError(
                f"{name}: this run sets {value!r}, and only the deployment may ({expected!r}); "
                f"leave it out, or deploy again: vidbridge deploy"
            )


@flow(name="vidbridge-scheduled", persist_result=False)
def scheduled(
    branch: str = "main",
    source: str | None = None,
    recipe: str | None = None,
    target: str = dvc.TARGET,
    promote: bool = True,
) -> State[Any]:
    """Run what is new in the project of the worker: the one that it was started in (``VIDBRIDGE_PROJECT``).

    Args:
        branch: whose newest commit is run; only the deployment sets it.
        source: absolute path of the folder of videos; None: as ``params.yaml`` says. Only the deployment sets it.
        recipe: name of a recipe; None: ``params.yaml`` as it is.
        target: stage to bring up to date.
        promote: put the candidate to the gate.

    Raises:
        FlowError: a stage failed, or git or DVC refused; what was done stays done. Or the run sets what only the deployment may.
    """
    guard_logs()  # this process is Prefect's: nothing of ours has done it before
    logger = get_run_logger()
    home = project.find_root()
    project.enter(home)
    only_as_deployed({"branch": branch, "source": source})
    clone = bring_clone(str(home), branch, project.state(home) / "scheduled" / hashlib.sha256(branch.encode()).hexdigest()[:12])
    root = clone.root
    with preflight.only_run(root):
        configure(root, recipe, source)
        params = load_params(root / "params.yaml")
        plan = choose_lock(root, target)
        # What is fetched, or restored, is nothing new; an earlier run that could not be registered is.
        if not plan.to_run and registered.is_noted(root):
            logger.info("nothing new: all that %s needs is up to date", target)
            create_markdown_artifact(
                key="scheduled", markdown=f"Nothing new at commit `{clone.commit[:12]}`: {target} is up to date."
            )
            return Completed(name="NothingNew", message="nothing new")
        preflight.check(root, params, plan)
        logger.info("to run: %s", ", ".join(f"{step.name} ({step.why[0]})" for step in plan.to_run))
        state = pipeline(root, target, push=True, return_state=True)
        if not state.is_completed():
            return state
        report = state.result()
        assert isinstance(report, PipelineReport)
        branch_name = push_branch(root, report.commit)
        lines = [f"Commit `{report.commit[:12]}` on branch `{branch_name}` holds `dvc.lock`."]
        if not clone.shared_remote:
            lines.append("**The DVC remote is this worker's own**: give `.dvc/config` one that others can read.")
        if report.registration.pushed is None:
            raise FlowError("dvc push: no remote; dvc remote add -d NAME URL, then commit .dvc/config")
        ran = ", ".join(result.stage for result in report.ran) or "nothing, all of it was made before"
        lines.append(f"Ran: {ran}.")
        if promote and report.registration.candidate is not None and (report.ran or report.registration.created):
            decided = promotion(root, author=os.environ.get("VIDBRIDGE_AUTHOR", "schedule"), reason=f"scheduled run {report.name}")
            assert isinstance(decided, Promotion)  # called without return_state, a failed flow raises
            lines.append(decided.verdict)
        create_markdown_artifact(key="scheduled", markdown="\n\n".join(lines))
        return Completed(message=f"ran {len(report.ran)} stages; see the artefacts")
