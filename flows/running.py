"""``vidbridge run``: plan, say what will happen, run it as a Prefect flow, show what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flows import costs, dvc, lockfile, preflight, server, show
from flows.errors import FlowError, UsageError
from flows.results import evaluated_by, read_gains, read_intervals, read_scores
from stages.params import Params, PretrainedModelParams, load_params
from stages.plain import one_line
from stages.tracking.history import latest_costs


def run(root: Path, target: str, *, dry_run: bool, ask: bool, as_json: bool = False) -> None:
    """Bring ``target`` up to date, and print the plan and its cost first and the scores afterwards. An empty plan starts no server.

    ``as_json``: of a dry run, for programs.

    Raises:
        FlowError: something is missing (found before any stage starts), or a stage failed.
        KeyboardInterrupt: on Ctrl-C and when the run is cancelled in Prefect; every stage has been ended.
    """
    params = load_params(root / "params.yaml")
    out = show.console()
    if not dry_run:
        preflight.check_alone(root)  # before a plan is printed that nobody will follow
    if not dry_run and lockfile.is_broken(root):
        with preflight.only_run(root):  # another run that is alive may just be writing it
            out.print(f"note: {lockfile.mend(root) or 'dvc.lock is whole again'}", style="yellow")
    plan = dvc.plan(root, target)
    if as_json and dry_run:
        show.say(json.dumps(_plain(plan, costs.cost_of(root, params, plan)), indent=2, ensure_ascii=False))
        return
    show.show_plan(out, plan)
    if dry_run:
        show.show_cost(out, costs.cost_of(root, params, plan))
        return
    if not plan.empty:
        preflight.check(root, params, plan)
        show.show_cost(out, costs.cost_of(root, params, plan))
        if ask:
            _confirm(root, params, plan)
        with preflight.only_run(root):
            _flow(root, target)
        show.show_costs(out, latest_costs(root), [step.name for step in plan.to_run])
    # Only what this target has brought up to date: scores may lie there from before, or from another recipe.
    done = {step.name for step in plan.steps}
    scores = {policy: row for policy, row in read_scores(root).items() if evaluated_by(policy) in done}
    show.show_scores(out, scores, read_intervals(root), params.evaluation.confidence)
    if "summary" in done:
        show.show_gains(out, read_gains(root), params.evaluation.confidence)
    show.show_where(out, root, scored=bool(scores))


def _plain(plan: dvc.Plan, cost: costs.RunCost) -> dict[str, Any]:
    steps = [{"stage": step.name, "state": step.state, "why": step.why, "upstream": step.upstream} for step in plan.steps]
    return {"target": plan.target, "steps": steps, "cost": costs.plain(cost)}


def _confirm(root: Path, params: Params, plan: dvc.Plan) -> None:
    """A model of billions of parameters takes hours and many gigabytes: worth one question."""
    if not isinstance(params.model, PretrainedModelParams) or not any(step.meta.kind == "train" for step in plan.to_run):
        return
    need = preflight.disk_need_gb(params, plan)
    question = f"this trains {params.model.name} and writes about {need:.0f} GB below {root}; go on? [y/N] "
    if not sys.stdin.isatty():
        raise UsageError(f"run: {question.split(';', maxsplit=1)[0]}; add --yes to start it without a question")
    if input(one_line(question)).strip().lower() not in ("y", "yes"):
        raise UsageError("run: not started")


def _flow(root: Path, target: str) -> None:
    with server.starting(root) as starting:
        # These imports take as long as the server's start: they go on side by side.
        from prefect import tags

        from flows.pipeline import pipeline, process_tags

        with server.connected(starting), tags(*process_tags()):
            state: Any = pipeline(root, target, return_state=True)
            if state.is_cancelled():
                raise KeyboardInterrupt
            result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    if not state.is_completed():
        raise FlowError(f"run: ended as {state.name}: {state.message}")
