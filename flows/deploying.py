"""``vidbridge deploy``: the scheduled deployment of ``infra/prefect.yaml``, a server for it where none runs, and a worker."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import typer

from flows import recipes, server, show
from flows.errors import FlowError, UsageError
from flows.keys import key_file, read_key
from flows.processes import guarded
from stages.bounded_yaml import YamlError, read_yaml
from stages.params import load_params, parse_params
from stages.tracking.git import git, is_repository
from stages.tracking.uri import shown

PREFECT_FILE = Path("infra/prefect.yaml")
#: What a run of the pool may set of its process: nothing.
POOL_FILE = Path("infra/work-pool.json")
POOL = "vidbridge"
#: Seconds between two looks for work; Prefect's own default of 10 s only delays a run.
WORKER_QUERY_S = "2"


def deploy(root: Path, cron: str | None, source: Path | None, recipe: str | None, worker: bool, port: int) -> None:
    """Create the deployment on the server of ``PREFECT_API_URL``, else on one of our own at ``port``; then run what falls due.

    Raises:
        UsageError: the port is in use, ``source`` is no folder, there is no such recipe, or the project is no git repository.
        ParamsError: what the runs would take as parameters breaks a rule.
        FlowError: Prefect refuses.
    """
    if source is not None and not source.is_dir():
        raise UsageError(f"source: {str(source)!r} is no folder; name the folder of your videos")
    if not is_repository(root):
        raise UsageError(f"git: {root} is no repository; scheduled runs work in a clone of it")
    _check_params(root, source, recipe)
    with ExitStack() as stack:
        own: Path | None = None
        if not os.environ.get("PREFECT_API_URL"):
            if (running := server.running_server(root)) is not None:
                own = server.home(root)
                stack.enter_context(server.reaching(running, read_key(own)))
            elif worker:
                own = server.home(root)
                stack.enter_context(server.serving(root, port)).url()
            else:
                raise UsageError(
                    "--no-worker: needs a Prefect server that stays; set PREFECT_API_URL to it, or leave the option out"
                )
        url = os.environ["PREFECT_API_URL"]
        if not server.answers(url):
            raise FlowError(f"PREFECT_API_URL: {shown(url)}: no answer; start that server, correct the address, or unset it")
        create(root, cron, source, recipe)
        show.say(f"deployed vidbridge-scheduled; watch it at {server.pages(url)}")
        if own is not None:
            typer.echo(how_to_enter(own))
        if not worker:
            return
        needed = "" if own is None else f"PREFECT_API_URL={url} PREFECT_API_AUTH_STRING=$(cat {shlex.quote(str(key_file(own)))}) "
        from flows.lost import end_lost_flow_runs

        end_lost_flow_runs()
        typer.echo(f"working until Ctrl-C; run it now: {needed}prefect deployment run vidbridge-scheduled/nightly")
        process = stack.enter_context(guarded(worker_command(), root, os.environ, sys.stdout.fileno()))
        until_interrupted({"the worker": process})


def _check_params(root: Path, source: Path | None, recipe: str | None) -> None:
    """Look now at what every run will read: none should fail in the night for what could be said at once."""
    file = recipes.recipe(root, recipe).path if recipe else root / recipes.PARAMS
    load_params(file)
    if source is not None:
        table = read_yaml(file)
        parse_params(table | {"ingest": table["ingest"] | {"source": str(source)}}, f"{file.name} with --source {source}")


def how_to_enter(home: Path) -> str:
    """What a person needs who opens the pages: the key itself (as Jupyter prints its token), and where it lies."""
    user, _, password = read_key(home).partition(":")
    return (
        f"to get in: user {user}, password {password} (Prefect's one field takes both: {user}:{password})\n"
        f"           kept in {key_file(home)}, which only you can read"
    )


def worker_command() -> list[str]:
    """A worker that runs each flow run as a process of this machine."""
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]


def deploy_command(root: Path, cron: str | None, source: Path | None, recipe: str | None) -> list[str]:
    """Prefect's own command for ``infra/prefect.yaml``, with what the options override."""
    name = deployment_name(root)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(PREFECT_FILE), "--name", name]
    if cron:
        command += ["--cron", cron, "--timezone", "UTC"]
    given = {"source": str(source) if source else None, "recipe": recipe, "branch": _branch(root)}
    for key, value in given.items():
        if value is not None:
            command += ["--param", f"{key}={json.dumps(value)}"]
    return command


def deployment_name(root: Path) -> str:
    """The name of the one deployment in ``infra/prefect.yaml``."""
    path = root / PREFECT_FILE
    try:
        deployments = read_yaml(path)["deployments"]
        return str(deployments[0]["name"])
    except (OSError, YamlError, KeyError, IndexError, TypeError) as error:
        raise UsageError(f"{path}: names no deployment ({error}); restore it: git checkout {PREFECT_FILE}") from error


def _branch(root: Path) -> str | None:
    """The branch that is checked out; the deployment follows it. None (what the file says) when none is."""
    return git(root, "branch", "--show-current") or None


def create(root: Path, cron: str | None, source: Path | None, recipe: str | None) -> None:
    """Create work pool and deployment on the server of ``PREFECT_API_URL``.

    Raises:
        FlowError: Prefect refuses; its own words are in the message.
    """
    template = root / POOL_FILE
    if not template.is_file():
        raise UsageError(f"{template}: is missing, and without it a run could start any command; git checkout {POOL_FILE}")
    pool = [sys.executable, "-m", "prefect", "work-pool", "create", POOL, "--type", "process", "--overwrite"]
    pool += ["--base-job-template", str(template)]
    _prefect(root, "work pool", pool)
    _prefect(root, "deployment", deploy_command(root, cron, source, recipe))


def _prefect(root: Path, what: str, command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        url = os.environ.get("PREFECT_API_URL", "")
        words = (done.stdout + done.stderr).replace(url, shown(url)).strip().splitlines()[-8:]
        raise FlowError(f"Prefect {what}: refused with status {done.returncode}:\n  " + "\n  ".join(words))


def until_interrupted(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait for Ctrl-C, which is how one ends these.

    Raises:
        FlowError: one of the processes ended by itself.
    """
    try:
        while True:
            for name, process in processes.items():
                if process.poll() is not None:
                    raise FlowError(f"{name}: ended with status {process.returncode}; see the logs in .vidbridge")
            time.sleep(0.5)
    except KeyboardInterrupt:
        typer.echo("\nstopped")
