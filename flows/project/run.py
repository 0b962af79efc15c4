"""``vidbridge run``: plan, print the plan, run it as a Prefect flow, print the results."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flows.console import show
from flows.console.results import evaluated_by, read_gains, read_intervals, read_sampled, read_scores
from flows.content.remote import push_runs
from flows.costs import estimate
from flows.errors import FlowError, UsageError
from flows.params_file.sizes import disk_need_gb
from flows.processes import prefect_server
from flows.processes.environment import exported
from flows.processes.locks import only_run
from flows.processes.warm_pool import warmed
from flows.repro import clone, lockfile, preflight, registered, reproduce
from flows.repro.plan import ASK_S, GLANCE_S, make_plan
from flows.repro.steps import Plan, verify_answer
from stages.params import Params, PretrainedModelParams
from stages.runtime.plain import one_line
from stages.tracking.lineage.git import git
from stages.tracking.runs.history import latest_costs
from stages.tracking.session import Session


def run(root: Path, target: str, *, dry_run: bool, ask: bool, push: bool = False, as_json: bool = False) -> None:
    """Bring ``target`` up to date; prints the plan and its cost first and the scores afterwards. An
    empty plan starts no server.

    ``as_json``: of a dry run, for programs.

    Results that an earlier run could not register, since it was interrupted or its server was away,
    are registered. ``push``: DVC's run cache and the branch that holds ``dvc.lock`` are handed on,
    so that other hosts can take over and promote.

    Raises:
        FlowError: something is missing (found before any stage starts), or a stage failed.
        KeyboardInterrupt: on Ctrl-C and when the run is cancelled in Prefect; every stage has been
            ended.
    """
    session = Session(root)
    params = session.params
    out = show.console()
    if not dry_run:
        preflight.check_alone(root)  # before a plan is printed that nobody will follow
    if not dry_run and lockfile.is_broken(root):
        with only_run(root):  # another run that is alive may just be writing it
            out.print(f"note: {lockfile.mend(root) or 'dvc.lock is whole again'}", style="yellow")
    plan = make_plan(root, target, ask_s=GLANCE_S if dry_run else ASK_S)
    if as_json and dry_run:
        show.document(_plain(plan, estimate.cost_of(root, params, plan)))
        return
    show.show_plan(out, plan)
    if dry_run:
        show.show_cost(out, estimate.cost_of(root, params, plan))
        return
    verify_answer(plan)
    if not plan.to_run and not plan.empty:
        with only_run(root):
            plan = reproduce.bring(root, plan, show.say)
        if plan.to_run:
            show.show_plan(out, plan)
    if plan.to_run:
        preflight.check(session, plan)
        show.show_cost(out, estimate.cost_of(root, params, plan))
        if ask:
            _confirm(root, params, plan)
        with only_run(root):
            commit = _flow(root, params, plan, push)
            if push:
                _publish(root, commit)
                registered.pushed(root)
        show.show_costs(out, latest_costs(Session(root).client, root), [step.name for step in plan.to_run])
    elif not registered.is_noted(session, pushed=push):
        with only_run(root):
            register(Session(root), push)
    # Only what this target has brought up to date: scores may lie there from before, or from
    # another recipe.
    done = {step.name for step in plan.steps}
    scores = {
        policy: row for policy, row in read_scores(root, params.evaluation.of).items() if evaluated_by(policy) in done
    }
    intervals = read_intervals(root, params.evaluation.of)
    show.show_scores(out, scores, intervals, params.evaluation.confidence)
    sampled = read_sampled(root, [policy for policy in params.evaluation.of if evaluated_by(policy) in done])
    show.show_sampled(out, sampled, params.evaluation.confidence)
    if "summary" in done:
        show.show_gains(out, read_gains(root), params.evaluation.confidence)
    show.show_where(out, root, scored=bool(scores), promote=registered.awaits_promotion(root))


def register(session: Session, push: bool) -> None:
    """Record and register what earlier runs, here or elsewhere, left in ``dvc.lock``, and print it.

    Raises:
        TrackingError: the store, the remote or git says no.
    """
    from flows.console.registry import register_table
    from stages.tracking.lineage.commits import record_commit, stamped
    from stages.tracking.registry.register import register as reconcile

    root = session.root
    commit = record_commit(root, stamped(session.params.recipe, str(os.getpid())))
    report = reconcile(session)
    registered.write(session, report)
    if push:
        new, notes = push_runs(session)
        show.say(f"pushed: {new} entries of the run cache are new in the remote")
        for note in notes:
            show.say(f"note: {note}")
        _publish(root, commit)
        registered.pushed(root)
    if report.created or report.updated or report.unsent:
        show.say("nothing had to run, and the registry lacked what dvc.lock holds:")
        show.console().print(register_table(report))
    else:
        show.say(f"the registry has what dvc.lock holds: {report.kept} versions of {report.model}, none is new")


def _publish(root: Path, commit: str) -> None:
    """Push the branch that holds the commit to the repository that this one was cloned from."""
    if "origin" not in git(root, "remote").split():
        show.say(
            f"note: no git remote 'origin', so commit {commit[:12]} with dvc.lock stays here; git remote add origin URL"
        )
        return
    branch = clone.publish(root, commit)
    show.say(f"pushed: dvc.lock is on branch {branch}" if branch else "dvc.lock is as HEAD has it; push that: git push")


def _plain(plan: Plan, cost: estimate.RunCost) -> dict[str, Any]:
    steps = [
        {"stage": step.name, "state": step.state, "why": step.why, "upstream": step.upstream} for step in plan.steps
    ]
    return {"target": plan.target, "steps": steps, "cost": estimate.plain(cost)}


def _confirm(root: Path, params: Params, plan: Plan) -> None:
    """Ask before a model of billions of parameters is trained: it takes hours and many
    gigabytes."""
    if not isinstance(params.model, PretrainedModelParams) or not any(
        step.meta.kind == "train" for step in plan.to_run
    ):
        return
    need = disk_need_gb(params, [step.name for step in plan.to_run])
    question = f"this trains {params.model.name} and writes about {need:.0f} GB below {root}; go on? [y/N] "
    if not sys.stdin.isatty():
        raise UsageError("run", f"{question.split(';', maxsplit=1)[0]}", "add --yes to start it without a question")
    if input(one_line(question)).strip().lower() not in ("y", "yes"):
        raise UsageError("run", "not confirmed", "nothing was started")


def _flow(root: Path, params: Params, plan: Plan, push: bool) -> str:
    """Run the flow; returns the commit that holds ``dvc.lock``."""
    with ExitStack() as around:
        starting = around.enter_context(prefect_server.starting(root))
        for name, value in around.enter_context(warmed(root, params, plan.to_warm)).items():
            around.enter_context(exported(name, value))
        # These imports take as long as the server's start and those of the warm process: they go on
        # side by side.
        from prefect import tags

        from flows.pipeline import PipelineReport, pipeline
        from flows.processes.lost import process_tags

        with prefect_server.connected(starting), tags(*process_tags()):
            state: Any = pipeline(root, plan.target, push, return_state=True)
            if state.is_cancelled():
                raise KeyboardInterrupt
            result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    if not state.is_completed():
        raise FlowError("run", f"ended as {state.name}: {state.message}", "see the lines above; type: vidbridge run")
    assert isinstance(result, PipelineReport)
    return result.commit
