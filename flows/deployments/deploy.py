"""``vidbridge deploy``: the scheduled deployment of ``infra/prefect.yaml``, a server for it if none
runs, and a worker.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import typer

from flows.console import show
from flows.deployments.prefect_file import POOL, DeploymentRequest, prefect_file, project_file
from flows.errors import FlowError, UsageError
from flows.processes import prefect_server
from flows.processes.environment import state
from flows.processes.foreground import until_interrupted
from flows.processes.keys import key_file, read_key
from flows.processes.locks import hold
from flows.processes.stream import guarded
from stages.tracking.lineage.uri import display_uri

#: Values that a run of the pool may set for its process: none.
POOL_FILE = Path("infra/work-pool.json")
FLOW = "vidbridge-scheduled"
#: A deployment is made in seconds, its server started in less than this.
_DEPLOY_WAIT_S = 180.0


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


def create(root: Path, order: DeploymentRequest, *, worker: bool = True) -> list[str]:
    """Create work pool and deployment on the server of ``PREFECT_API_URL``; returns notes for the
    user.

    Raises:
        UsageError: the pool is there, and cannot be used.
        FlowError: Prefect refuses; its own words are in the message.
    """
    import yaml

    from flows.deployments import pools

    template = project_file(root, POOL_FILE)
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
