"""``vidbridge ablate``: the grid of ``params.yaml``, every variant with every seed, as a Prefect
flow.

Each seed has a clone of the committed state below ``.vidbridge/ablation``, and runs there one
variant after the other through DVC: data, base and start are made once a seed. Clones share the
project's DVC cache, so a grid that was interrupted, or run again after a change elsewhere, makes
only what is missing.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.errors import FlowError, RunFailed, StageCancelled, UsageError
from flows.execution.prefect_runs import watching_for_cancel
from flows.processes.environment import exported, state
from flows.processes.locks import hold
from flows.processes.lost import at_work
from flows.processes.warm_pool import warmed
from flows.repro import clone, reproduce
from flows.repro.plan import make_plan
from flows.repro.steps import PlanStep, verify_answer
from stages.domain.core.digest import digest
from stages.lib.rows.jsonl import write_json
from stages.params import Params, PretrainedModelParams, load_params, parse_params
from stages.runtime import paths, warm
from stages.runtime.machine import measured
from stages.tools.ablation.figure import figure
from stages.tools.ablation.grid import Grid, read_grid
from stages.tools.ablation.results import CLIPS_FILE, IDENTITY_FILE, Results, content_digests
from stages.tools.ablation.table import markdown
from stages.tools.ablation.variants import start_of, variant_params
from stages.tracking.lineage.commits import record_commit, stamped
from stages.tracking.lineage.git import git
from stages.tracking.lineage.uri import PARENT_VARIABLE
from stages.tracking.registry.register import register
from stages.tracking.runs.run import StageRun, ablation_run
from stages.tracking.session import Session

#: Default limit of seeds at a time on one machine: each takes a core and up to 2 GB.
MOST_JOBS = 4
#: Seconds between displayed lines of a stage; the seed's log has all of them.
SHOW_EVERY_S = 60.0
#: Writing the table takes a second or two.
_TABLE_S = 60.0
#: DVC's index of a project is made in this process, and DVC is not made for several threads.
_PLANNING = threading.Lock()


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


@dataclass
class Progress:
    """Count of finished trainings, and an estimate of the time left at this pace."""

    total: int
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    #: Trainings among them that had run already.
    found: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, *, found: bool) -> str:
        with self._lock:
            self.done += 1
            self.found += found
            made, left = self.done - self.found, self.total - self.done
            if not left:
                return f"{self.done} of {self.total}"
            pace = f", about {(time.monotonic() - self.started) / made * left / 60:.0f} minutes left" if made else ""
            return f"{self.done} of {self.total}{pace}"


def ablation_folder(root: Path, params: Params) -> Path:
    """Folder of a recipe's ablation: a clone for each seed, the scores, and the results."""
    return root / paths.ABLATIONS / params.recipe


def default_jobs(params: Params) -> int:
    """Default number of seeds at a time: one where a model fills the machine, else one per core, up
    to :data:`MOST_JOBS`.
    """
    if isinstance(params.model, PretrainedModelParams) or params.ablation is None:
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), MOST_JOBS, len(params.ablation.seeds)))


def check(root: Path, params: Params) -> str:
    """Return the commit that the grid runs from.

    Raises:
        UsageError: the recipe has no grid, or code was edited and not committed, so that no clone
            would have it.
    """
    if params.ablation is None:
        raise UsageError(
            "ablation",
            f"the recipe {params.recipe} has none",
            "write one (infra/recipes/tiny.yaml has an example), or take a recipe that has: vidbridge recipe list",
        )
    if edited := git(root, "status", "--porcelain", "--", "stages", paths.CODE, paths.PIPELINE_FILE):
        first = edited.splitlines()[0].split()[-1]
        raise UsageError(
            first,
            "edited and not committed, and an ablation runs from a commit",
            "commit it, or put it aside: git stash",
        )
    return git(root, "rev-parse", "HEAD")


def _clone(root: Path, folder: Path, commit: str) -> Path:
    """Clone, or move the clone, to ``commit``; returns the project's folder in it. Call it with the
    project's lock held.
    """
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


def _write_params(root: Path, folder: Path, table: dict[str, Any]) -> None:
    """Write the clone's parameters. Makes a relative path of the user's own videos absolute, since
    it counts from the project.
    """
    source = Path(table["ingest"]["source"])
    if source != paths.CORPUS and not source.is_absolute():
        table["ingest"]["source"] = str(root / source)
    (folder / paths.PARAMS_FILE).write_text(
        yaml.safe_dump(table, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


@task(cache_policy=NO_CACHE, persist_result=False)
def run_variant(
    folder: Path, targets: tuple[str, ...], env: Mapping[str, str], cancelled: threading.Event
) -> int | State[Any]:
    """Bring the targets up to date in a seed's clone; returns how many stages had to run. Returns a
    failed state instead of raising: Prefect would print a traceback that says less.
    """
    try:
        return _reproduce(folder, targets, env, cancelled)
    except StageCancelled as error:
        return Cancelled(message=str(error))
    except FlowError as error:
        return Failed(message=str(error), data=error)


def _reproduce(folder: Path, targets: tuple[str, ...], env: Mapping[str, str], cancelled: threading.Event) -> int:
    logger = get_run_logger()
    with _PLANNING:
        steps: dict[str, PlanStep] = {}
        for target in targets:
            plan = make_plan(folder, target)
            verify_answer(plan)
            # Its own plan of what is left: a later one would believe in what the remote was found
            # to have lost.
            for step in reproduce.bring(folder, plan, logger.info, cancelled).steps:
                if step.name not in steps or step.state == "will run":
                    steps[step.name] = step
    waiting = [step for step in steps.values() if step.state == "will run"]
    for step in waiting:
        logger.info(step.name)
        log = SampledOutput(folder.with_suffix(".log"), logger.info)
        reproduce.reproduce(folder, step.name, log, dict(env), timeout_s=step.meta.timeout_s, cancelled=cancelled)
    shutil.rmtree(env["VIDBRIDGE_SCRATCH"], ignore_errors=True)
    return len(waiting)


@task(name="register", cache_policy=NO_CACHE, persist_result=False)
def register_variant(folder: Path, run_name: str, variant: str) -> State[Any] | None:
    """Register every checkpoint of the variant as a version of the recipe's ablation model, and
    commit the clone's lock. Returns a failed state if the variant's own checkpoint could not be
    registered.
    """
    with _PLANNING:
        record_commit(folder, stamped(run_name))
        report = register(Session(folder))
    get_run_logger().info("%s: %d versions of %s are new", folder.name, len(report.created), report.model)
    for stage, reason in report.unregistered.items():
        if stage.partition("@")[2] == variant:
            return Failed(
                message=f"not registered: {reason}",
                data=FlowError(variant, f"not registered: {reason}", "type: vidbridge ablate"),
            )
    return None


@task(cache_policy=NO_CACHE, persist_result=False)
def run_seed(
    root: Path, params: Params, seed: int, commit: str, progress: Progress, cancelled: threading.Event
) -> State[Any] | None:
    """Run every variant with one seed; returns a failed state if one could not be run."""
    logger, grid = get_run_logger(), params.ablation
    assert grid is not None
    folder, results, start = (
        ablation_folder(root, params) / f"seed-{seed}",
        Results(ablation_folder(root, params) / "scores"),
        start_of(params),
    )
    folder = _clone(root, folder, commit)
    env = {"VIDBRIDGE_SCRATCH": str(folder / paths.SCRATCH)}
    with ExitStack() as stack:
        for name in grid.variants:
            if cancelled.is_set():
                return Cancelled(message=f"cancelled before {name}")
            table = variant_params(params, seed, name)
            identity = {"commit": commit, "params": digest(table)}
            kept = results.of(seed, name) / IDENTITY_FILE
            if results.identity(seed, name) == identity:
                logger.info("seed %d, %s: done before; %s", seed, name, progress.tell(found=True))
                continue
            _write_params(root, folder, table)
            targets = ("baselines", f"evaluate@{start}", f"evaluate@{name}")
            if warm.VARIABLE not in env:
                with _PLANNING:
                    plan = make_plan(folder, targets[-1])
                env |= stack.enter_context(warmed(folder, parse_params(table), plan.to_warm))
            named = run_variant.with_options(name=name, task_run_name=f"seed {seed}: {name}")
            ended = named(folder, targets, env, cancelled, return_state=True)
            if not ended.is_completed():
                return _own(ended)
            registering = register_variant.with_options(task_run_name=f"seed {seed}: register {name}")
            registered = registering(folder, f"{params.recipe}-{seed}-{name}", name, return_state=True)
            if not registered.is_completed():
                return _own(registered)
            kept.unlink(
                missing_ok=True
            )  # of other parameters: until it is written again, the scores beside it do not count
            for policy in ("baselines", start, name):
                _keep(folder / paths.scores(policy), results.of(seed, policy))
            write_json(results.folder / str(seed) / CLIPS_FILE, content_digests(folder))
            write_json(kept, identity)
            logger.info("seed %d, %s: %d stages ran; %s", seed, name, ended.result(), progress.tell(found=False))
    return None


def _own(ended: State[Any]) -> State[Any]:
    """Convert the state of a task that failed for the task that called it. Another run's state
    would count as a result, and Prefect would end this one as completed.
    """
    if ended.is_cancelled():
        return Cancelled(message=ended.message)
    return Failed(message=ended.message, data=ended.result(raise_on_failure=False))


def _keep(scores: Path, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(scores, kept)


@flow(
    name="vidbridge-ablation",
    flow_run_name="ablation",
    task_runner=ThreadPoolTaskRunner(max_workers=32),  # type: ignore[arg-type]
    persist_result=False,
    validate_parameters=False,
)
def ablation(root: Path, jobs: int, command: str) -> Grid | State[Any]:
    """Run the missing part of the grid, ``jobs`` seeds at a time, and write the results."""
    root = Path(root)
    params = load_params(root / paths.PARAMS_FILE)
    commit = check(root, params)
    grid = params.ablation
    assert grid is not None
    cancelled, progress = threading.Event(), Progress(len(grid.seeds) * len(grid.variants))
    slots = threading.Semaphore(jobs)
    failed: dict[int, BaseException] = {}
    with at_work(), watching_for_cancel(cancelled), ablation_run(params, root, commit) as run:
        assert run.run_id is not None
        with exported(PARENT_VARIABLE, run.run_id):
            _run_seeds(root, params, commit, progress, cancelled, slots, failed)
        if cancelled.is_set():
            return Cancelled(message="cancelled; every stage has been ended, the next run goes on where it stopped")
        if len(failed) == len(grid.seeds):
            return _failure(failed)
        found = publish(root, params, command, run)
        create_markdown_artifact(key="ablation", markdown=markdown(found), description="What the grid came to")
        if failed:
            return _failure(failed)
    return found


def _run_seeds(
    root: Path, params: Params, commit: str, progress: Progress, cancelled: threading.Event,
    slots: threading.Semaphore, failed: dict[int, BaseException],
) -> None:  # fmt: skip
    grid = params.ablation
    assert grid is not None
    futures: dict[int, Any] = {}
    try:
        for seed in grid.seeds:
            slots.acquire()
            if cancelled.is_set():
                break
            prepared = run_seed.with_options(name="seed", task_run_name=f"seed {seed}")
            futures[seed] = prepared.submit(root, params, seed, commit, progress, cancelled, return_state=False)
            futures[seed].add_done_callback(lambda _future: slots.release())
        for seed, future in futures.items():
            future.wait()
            if not future.state.is_completed():
                outcome = future.state.result(raise_on_failure=False)
                failed[seed] = (
                    outcome
                    if isinstance(outcome, BaseException)
                    else FlowError(
                        f"seed {seed}", future.state.message or future.state.name, "see its log on the run's page"
                    )
                )
    except BaseException:
        cancelled.set()
        for future in futures.values():
            future.wait(timeout=20)
        raise


def _failure(failed: Mapping[int, BaseException]) -> State[Any]:
    lines = [f"seed {seed}: {error}" for seed, error in failed.items()]
    error = RunFailed(lines, "what was done stays done; mend the cause and type: vidbridge ablate")
    return Failed(message=str(error), data=error)


def publish(root: Path, params: Params, command: str, run: StageRun | None = None) -> Grid:
    """Write ``results.json``, ``table.md`` and ``figure.svg`` beside the clones, and into MLflow's
    run if there is one.

    Raises:
        InputError: no seed has run whole.
    """
    out = ablation_folder(root, params)
    # `ablate --table` may run while the grid runs.
    with hold(out / "table.lock", "ablate", "is writing this table already", wait_s=_TABLE_S):
        return _write(out, params, command, run)


def _write(out: Path, params: Params, command: str, run: StageRun | None) -> Grid:
    grid = read_grid(
        params, Results(out / "scores"), command=command, measured=measured("torch", "transformers", "trl")
    )
    write_json(out / paths.GRID_FILE, grid.model_dump(mode="json"))
    table, drawn = markdown(grid), figure(grid)
    (out / paths.GRID_TABLE_FILE).write_text(table, encoding="utf-8")
    (out / paths.GRID_FIGURE_FILE).write_text(drawn, encoding="utf-8")
    if run is not None:
        run.page(f"ablation/{paths.GRID_TABLE_FILE}", table)
        run.page(f"ablation/{paths.GRID_FIGURE_FILE}", drawn)
        run.page(f"ablation/{paths.GRID_FILE}", grid.model_dump_json(indent=1))
        run.summary({f"{row.name}/{task}": value.mean for row in grid.rows for task, value in row.columns.items()})
    return grid
