"""One unit of a grid as a Prefect task: its stages through DVC, its registration, its scores."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Failed

from flows.ablation.lanes import IN_DVC, Lanes, write_params
from flows.ablation.schedule import Unit
from flows.errors import FlowError, StageCancelled
from flows.repro import lockfile, reproduce
from flows.repro.plan import make_plan
from flows.repro.steps import PlanStep, verify_answer
from stages.domain.core.digest import digest
from stages.errors import VidbridgeError
from stages.lib.rows.jsonl import write_json
from stages.params import Params
from stages.runtime import paths
from stages.tools.ablation.results import CLIPS_FILE, IDENTITY_FILE, Results, content_digests
from stages.tools.ablation.variants import variant_params
from stages.tracking.lineage.commits import record_commit, stamped
from stages.tracking.registry.register import register
from stages.tracking.session import Session

#: Seconds between displayed lines of a stage; the unit's log has all of them.
SHOW_EVERY_S = 60.0


@dataclass(frozen=True)
class GridRun:
    """What the units of one run of a grid share. ``env``: environment of every stage."""

    params: Params
    lanes: Lanes
    env: Mapping[str, str]

    @property
    def results(self) -> Results:
        return Results(self.lanes.grid / "scores")

    def log(self, unit: Unit) -> Path:
        """File with all output of the unit's stages in this run."""
        return self.lanes.grid / "logs" / f"seed-{unit.seed}-{unit.name}.log"

    def table(self, unit: Unit) -> dict[str, Any]:
        """``params.yaml`` of a unit. A start's is that of the first variant: its stages are the
        same in all of them.
        """
        first = next(iter(self.params.variants))
        return variant_params(self.params, unit.seed, first if unit.kind == "start" else unit.name)

    def identity(self, unit: Unit) -> dict[str, str]:
        return {"commit": self.lanes.commit, "params": digest(self.table(unit))}

    def is_done(self, unit: Unit) -> bool:
        """Return whether an earlier run kept the scores of this commit and these parameters."""
        return self.results.identity(unit.seed, unit.name) == self.identity(unit)


@dataclass
class SampledOutput:
    """A stage's output: written whole to a file, one line now and then passed on for display."""

    file: Path
    show: Callable[[str], None]
    _shown: float = field(default_factory=time.monotonic)

    def __call__(self, line: str) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(line + "\n")
        if time.monotonic() - self._shown >= SHOW_EVERY_S:
            self._shown = time.monotonic()
            self.show(line)


@task(cache_policy=NO_CACHE, persist_result=False)
def run_unit(run: GridRun, unit: Unit, lane: int, cancelled: threading.Event) -> int | State[Any]:
    """Bring a unit up to date in a lane of its seed, register its checkpoints and keep its scores;
    returns how many stages had to run. Returns a failed state instead of raising: Prefect would
    print a traceback that says less.
    """
    try:
        return _run(run, unit, lane, cancelled)
    except StageCancelled as error:
        return Cancelled(message=str(error), data=error)
    except VidbridgeError as error:
        return Failed(message=str(error), data=error)


def _run(run: GridRun, unit: Unit, lane: int, cancelled: threading.Event) -> int:
    targets = [f"evaluate@{unit.name}"]
    if unit.kind == "start":
        targets.insert(0, "baselines")
    with IN_DVC:
        if cancelled.is_set():
            raise StageCancelled(str(unit), "cancelled before it started", "type: vidbridge ablate")
        project = run.lanes.prepare(unit.seed, lane)
        write_params(run.lanes.root, project, run.table(unit))
        steps = _planned(project, targets, cancelled)
        env = {**run.env, **run.lanes.environment(unit.seed)}
    ran = _reproduced(run, unit, project, steps, env, cancelled)
    with IN_DVC:
        _registered(run, unit, project)
    if unit.kind == "start":
        # Other lanes start from it, whether a stage ran here or not.
        lockfile.keep(project)
    _kept(run, unit, project)
    return ran


def _planned(project: Path, targets: list[str], cancelled: threading.Event) -> list[PlanStep]:
    steps: dict[str, PlanStep] = {}
    for target in targets:
        plan = make_plan(project, target)
        verify_answer(plan)
        # Its own plan of what is left: a later one would believe in what the remote was found to
        # have lost.
        for step in reproduce.bring(project, plan, get_run_logger().info, cancelled).steps:
            if step.name not in steps or step.state == "will run":
                steps[step.name] = step
    return list(steps.values())


def _reproduced(
    run: GridRun, unit: Unit, project: Path, steps: list[PlanStep], env: dict[str, str], cancelled: threading.Event
) -> int:
    logger, file = get_run_logger(), run.log(unit)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    waiting = [step for step in steps if step.state == "will run"]
    for step in waiting:
        logger.info(step.name)
        log = SampledOutput(file, logger.info)
        reproduce.reproduce(project, step.name, log, env, timeout_s=step.meta.timeout_s, cancelled=cancelled)
    # Also that of stages which ended before an earlier run was killed.
    for step in steps:
        shutil.rmtree(Path(env["VIDBRIDGE_SCRATCH"]) / step.name.replace("@", "-"), ignore_errors=True)
    return len(waiting)


def _registered(run: GridRun, unit: Unit, project: Path) -> None:
    """Register every checkpoint of the unit as a version of the recipe's ablation model, and commit
    the lane's lock.

    Raises:
        FlowError: the checkpoint of the variant could not be registered.
        TrackingError: the store does not answer, or refuses.
    """
    if unit.kind == "start":
        return  # its versions are registered with the first variant's
    record_commit(project, stamped(f"{run.params.recipe}-{unit.seed}-{unit.name}"))
    with Session(project) as session:
        report = register(session)
    get_run_logger().info("%d versions of %s are new", len(report.created), report.model)
    for stage, reason in report.unregistered.items():
        if stage.partition("@")[2] == unit.name:
            raise FlowError(unit.name, f"not registered: {reason}", "type: vidbridge ablate")


def _kept(run: GridRun, unit: Unit, project: Path) -> None:
    """Keep the unit's scores. A variant's identity comes last: without it they do not count."""
    results = run.results
    if unit.kind == "start":
        # The old start's scores are replaced, so the table of other parameters is not whole any
        # more.
        for name in run.params.variants:
            variant = Unit(unit.seed, "variant", name)
            identity = results.identity(unit.seed, name)
            if identity is not None and identity["params"] != run.identity(variant)["params"]:
                (results.of(unit.seed, name) / IDENTITY_FILE).unlink()
        for policy in ("baselines", unit.name):
            _copied(project / paths.scores(policy), results.of(unit.seed, policy))
        write_json(results.folder / str(unit.seed) / CLIPS_FILE, content_digests(project))
        return
    kept = results.of(unit.seed, unit.name) / IDENTITY_FILE
    kept.unlink(missing_ok=True)
    _copied(project / paths.scores(unit.name), kept.parent)
    write_json(kept, run.identity(unit))


def _copied(scores: Path, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(scores, kept)
