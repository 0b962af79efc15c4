"""``vidbridge deploy``: the scheduled deployment of ``infra/prefect.yaml``, a server for it if none
runs, and a worker.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import typer

from flows.console import show
from flows.deployments.repositories import BranchContent, branches, check_address, inspect
from flows.errors import FlowError, UsageError
from flows.params_file import recipes
from flows.processes import prefect_server
from flows.processes.environment import shipped, state
from flows.processes.keys import key_file, read_key
from flows.processes.locks import hold
from flows.processes.stream import guarded
from flows.repro import package_code
from stages.params import load_params, parse_params
from stages.runtime import paths
from stages.runtime.bounded_yaml import YamlError, read_yaml
from stages.tracking.lineage.git import git, is_repository
from stages.tracking.lineage.uri import display_uri

PREFECT_FILE = Path("infra/prefect.yaml")
#: Values that a run of the pool may set for its process: none.
POOL_FILE = Path("infra/work-pool.json")
POOL = "vidbridge"
FLOW = "vidbridge-scheduled"
#: Seconds between two looks for work; Prefect's own default of 10 s only delays a run.
WORKER_QUERY_S = "2"
#: A deployment is made in seconds, its server started in less than this.
_DEPLOY_WAIT_S = 180.0
_BANNED = re.compile(r"[/%&<>]")


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


def deployment_request(
    root: Path,
    *,
    cron: str | None = None,
    timezone: str | None = None,
    source: Path | None = None,
    recipe: str | None = None,
    repository: str | None = None,
    directory: str | None = None,
    branch: str | None = None,
    pool: str | None = None,
    name: str | None = None,
) -> tuple[DeploymentRequest, list[str]]:
    """Check the command line's options, as far as possible before a server runs; returns the
    settings with notes for the user.

    Raises:
        UsageError: naming option, value and remedy.
        ParamsError: what the runs would take as parameters breaks a rule.
        FlowError: git cannot read the repository.
    """
    if not is_repository(root):
        raise UsageError(
            "git",
            f"{root} is not a repository, and scheduled runs work in a clone of one",
            "create it: git init && git add -A && git commit -m start",
        )
    if directory is not None and repository is None:
        raise UsageError(
            "--directory",
            "is of --repository",
            "a project's own folder in its repository is known, leave the option out",
        )
    _check_schedule(cron, timezone)
    named, wanted_pool = name or deployment_name(root), pool or POOL
    for option, value in (("--name", named), ("--pool", wanted_pool)):
        if _BANNED.search(value) or not value.strip():
            raise UsageError(
                option, f"{value!r} cannot be a name in Prefect", "use letters, digits, '-', '_', '.' and spaces"
            )
    address = None if repository is None else check_address(repository)
    followed = branch or _checked_out(root)
    _check_branch(root if address is None else address, followed)
    notes: list[str] = []
    watched = None if source is None else _source(source, elsewhere=address is not None)
    folder = None
    if address is None:
        _check_params(root, watched, recipe)
    else:
        folder = _folder(directory)
        notes += _check_repository(inspect(address, followed, folder or "", recipe), recipe)
    return DeploymentRequest(followed, named, wanted_pool, cron, timezone, watched, recipe, address, folder), notes


def _check_schedule(cron: str | None, timezone: str | None) -> None:
    if timezone is not None:
        import difflib
        from zoneinfo import available_timezones

        zones = available_timezones()
        if timezone not in zones:
            near = difflib.get_close_matches(timezone, zones, 1, 0.7)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(
                "--timezone",
                f"{timezone!r} is not a time zone",
                f"set an IANA name, such as Europe/Berlin or UTC{meant}",
            )
    if cron is not None:
        from prefect.client.schemas.schedules import CronSchedule

        try:
            CronSchedule(cron=cron, timezone=timezone or "UTC")
        except ValueError as error:
            raise UsageError(
                "--cron",
                f"{cron!r} is not a schedule",
                'set minute, hour, day, month and weekday, such as "0 3 * * *" (every day at 3)',
            ) from error


def _checked_out(root: Path) -> str:
    """Branch that is checked out; the deployment follows it."""
    if found := git(root, "branch", "--show-current"):
        return found
    at = git(root, "rev-parse", "--short", "HEAD")
    raise UsageError(
        "--branch",
        f"HEAD is detached (at {at}), so which branch the runs should follow is not known",
        "give --branch NAME",
    )


def _check_branch(place: Path | str, branch: str) -> None:
    found = branches(place)
    if branch in found:
        return
    there = ", ".join(found[:8]) + (", …" if len(found) > 8 else "") if found else "none"
    what = f"git push {place} {branch}" if isinstance(place, str) else f"git branch {branch} origin/{branch}"
    raise UsageError(
        "--branch", f"{branch!r} is not in {place} (there: {there})", f"name one of these, or make it: {what}"
    )


def _source(source: Path, *, elsewhere: bool) -> str:
    """Folder of videos; that of a worker elsewhere cannot be checked from here."""
    if elsewhere:
        if not source.is_absolute():
            raise UsageError(
                "--source",
                f"{str(source)!r} is relative, and with --repository it is a folder of the worker",
                "set its absolute path",
            )
        return str(source)
    folder = source.expanduser().resolve()
    if not folder.is_dir():
        raise UsageError("source", f"{str(folder)!r} is not a folder", "name the folder of your videos")
    return str(folder)


def _folder(directory: str | None) -> str | None:
    folder = PurePosixPath(directory or "")
    if folder.is_absolute() or ".." in folder.parts:
        raise UsageError(
            "--directory", f"{directory!r} leads out of the repository", "set the project's path inside it"
        )
    return None if folder == PurePosixPath(".") else str(folder)


def _check_params(root: Path, source: str | None, recipe: str | None) -> None:
    """Check now the parameters that every run will read, so that no run fails at night for a reason
    known in advance.
    """
    file = recipes.recipe(root, recipe).path if recipe else root / paths.PARAMS_FILE
    load_params(file)
    if source is not None:
        table = read_yaml(file)
        parse_params(table | {"ingest": table["ingest"] | {"source": source}}, f"{file.name} with --source {source}")


def _check_repository(found: BranchContent, recipe: str | None) -> list[str]:
    """Check now the content that every run will find in the repository; returns notes for the
    user."""
    if not found.is_project:
        there = f" (there is one in {', '.join(found.projects)})" if found.projects else ""
        raise UsageError(
            "--directory", f"{found.where} holds no dvc.yaml{there}", "name the folder of the project: --directory SUB"
        )
    if recipe and found.recipe is None:
        names = ", ".join(found.recipes) or "none"
        raise UsageError("--recipe", f"{recipe!r} is not in {found.where}", f"it has {names}")
    if found.remote is None:
        return [
            f"note: .dvc/config in {found.where} names no remote, so nothing that runs make reaches others, and runs"
            " end as failed; dvc remote add -d NAME URL, commit and push it, or set VIDBRIDGE_DVC_REMOTE where the"
            " worker runs"
        ]
    if "://" not in found.remote:
        kind = "a folder of the worker's machine" if found.remote.startswith("/") else "a folder of each clone"
        return [
            f"note: the DVC remote in {found.where} is {found.remote}, {kind}: what runs make reaches others only if"
            " they see that; give it a URL (dvc remote modify NAME url s3://…), or set VIDBRIDGE_DVC_REMOTE where the"
            " worker runs"
        ]
    return []


def deploy(root: Path, order: DeploymentRequest, notes: Sequence[str], worker: bool, port: int) -> None:
    """Create the deployment on the server of ``PREFECT_API_URL``, else on one of our own at
    ``port``; then run what falls due.

    Raises:
        UsageError: the port is in use, or the work pool cannot be used.
        FlowError: Prefect refuses.
    """
    with ExitStack() as stack:
        # Two at once would each start a server, on one database.
        with hold(state(root) / "deploy.lock", "deploy", "is deploying this project", wait_s=_DEPLOY_WAIT_S):
            own: Path | None = None
            if not os.environ.get("PREFECT_API_URL"):
                if (running := prefect_server.running_server(root)) is not None:
                    own = prefect_server.home(root)
                    stack.enter_context(prefect_server.reaching(running, read_key(own)))
                elif worker:
                    own = prefect_server.home(root)
                    stack.enter_context(prefect_server.serving(root, port)).url()
                else:
                    raise UsageError(
                        "--no-worker",
                        "needs a Prefect server that stays",
                        "set PREFECT_API_URL to it, or leave the option out",
                    )
            url = os.environ["PREFECT_API_URL"]
            if not prefect_server.answers(url):
                raise FlowError(
                    "PREFECT_API_URL",
                    f"{display_uri(url)}: no answer",
                    "start that server, correct the address, or unset it",
                )
            created = create(root, order, worker=worker)
        full = f"{FLOW}/{order.name}"
        show.say(f"deployed {full}; watch it at {prefect_server.pages(url)}")
        for line in (*notes, *created):
            show.say(line)
        if own is not None:
            typer.echo(login_instructions(own))
        if not worker:
            typer.echo(
                f"a worker runs it, where PREFECT_API_URL names this server: {shlex.join(worker_arguments(order.pool))}"
            )
            return
        needed = (
            ""
            if own is None
            else f"PREFECT_API_URL={url} PREFECT_API_AUTH_STRING=$(cat {shlex.quote(str(key_file(own)))}) "
        )
        from flows.processes.lost import end_lost_flow_runs

        end_lost_flow_runs()
        typer.echo(f"working until Ctrl-C; run it now: {needed}prefect deployment run {shlex.quote(full)}")
        process = stack.enter_context(guarded(worker_command(order.pool), root, os.environ, sys.stdout.fileno()))
        until_interrupted({"the worker": process})


def login_instructions(home: Path) -> str:
    """Instructions for opening the pages: the key itself (as Jupyter prints its token), and its
    location.
    """
    user, _, password = read_key(home).partition(":")
    return (
        f"to get in: user {user}, password {password} (Prefect's one field takes both: {user}:{password})\n"
        f"           kept in {key_file(home)}, which only you can read"
    )


def worker_arguments(pool: str) -> list[str]:
    """Prefect's own command of a worker that runs each flow run as a process of its machine."""
    return ["prefect", "worker", "start", "--pool", pool, "--type", "process"]


def worker_command(pool: str = POOL) -> list[str]:
    """Command of a worker with this interpreter."""
    return [sys.executable, "-m", *worker_arguments(pool)]


def deployment_name(root: Path) -> str:
    """Name of the one deployment in ``infra/prefect.yaml``."""
    return str(_prefect_table(root)["deployments"][0]["name"])


def _of_project(root: Path, name: Path) -> Path:
    """Path of a file of the project; a project without code of its own may leave it to the
    installed package.
    """
    path = root / name
    return path if path.exists() or not package_code.uses_package(root) else shipped(name.name)


def _prefect_table(root: Path) -> dict[str, Any]:
    path = _of_project(root, PREFECT_FILE)
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


def create(root: Path, order: DeploymentRequest, *, worker: bool = True) -> list[str]:
    """Create work pool and deployment on the server of ``PREFECT_API_URL``; returns notes for the
    user.

    Raises:
        UsageError: the pool is there, and cannot be used.
        FlowError: Prefect refuses; its own words are in the message.
    """
    import yaml

    from flows.deployments import pools

    template = _of_project(root, POOL_FILE)
    if not template.is_file():
        raise UsageError(
            str(template), "is missing, and without it a run could start any command", f"git checkout {POOL_FILE}"
        )
    with prefect_server.connected(None):
        notes = pools.provide(template, order.pool, process=worker, ours=POOL)
        standing = pools.standing(f"{FLOW}/{order.name}")
        table = prefect_file(root, order, standing)
        file = state(root) / f"deploy-{os.getpid()}.yaml"
        try:
            file.write_text(yaml.safe_dump(table, sort_keys=False), encoding="utf-8")
            command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy"]
            _prefect(root, "deployment", [*command, "--prefect-file", str(file), "--name", order.name])
        finally:
            file.unlink(missing_ok=True)
        return notes + pools.still_paused(f"{FLOW}/{order.name}")


def _prefect(root: Path, what: str, command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        url = os.environ.get("PREFECT_API_URL", "")
        lines = (done.stdout + done.stderr).replace(url, display_uri(url)).strip().splitlines()[-8:]
        problem = f"refused with status {done.returncode}:\n  " + "\n  ".join(lines)
        raise FlowError(f"Prefect {what}", problem, "mend what Prefect names, then deploy again")


def until_interrupted(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait for Ctrl-C, which ends these processes.

    Raises:
        FlowError: one of the processes ended by itself.
    """
    try:
        while True:
            for name, process in processes.items():
                if process.poll() is not None:
                    raise FlowError(name, f"ended with status {process.returncode}", "see the logs in .vidbridge")
            time.sleep(0.5)
    except KeyboardInterrupt:
        typer.echo("\nstopped")
