"""``vidbridge ui``: Prefect's and MLflow's pages on this machine, behind the project's key."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

import typer

from flows.console import show
from flows.deployments.deploy import login_instructions
from flows.errors import FlowError, UsageError
from flows.processes import door, prefect_server
from flows.processes.environment import state
from flows.processes.foreground import until_interrupted
from flows.processes.keys import own_key, private_folder
from stages.params import ParamsError, load_params
from stages.runtime import paths
from stages.tracking.lineage.uri import RUN_FILES, display_uri, experiment_name, is_server, tracking_uri

#: Unneeded features of MLflow's server: jobs that run code, and a gateway that calls
#: models with keys of the server.
_OFF = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ENABLE_AI_GATEWAY": "false"}


def ui(root: Path, prefect_port: int, mlflow_port: int) -> None:
    """Serve Prefect's and MLflow's pages on the loopback interface until Ctrl-C, and print how to
    log in.

    Raises:
        UsageError: a port is in use, or the same one was given twice.
        FlowError: a server did not start, or the project's key is not private.
    """
    if prefect_port and prefect_port == mlflow_port:
        raise UsageError("--mlflow-port", f"{mlflow_port} is Prefect's port already", "choose another one")
    with ExitStack() as stack:
        processes: dict[str, subprocess.Popen[bytes]] = {}
        uri = tracking_uri(root)
        home = private_folder(prefect_server.home(root))
        if is_server(uri):
            show.say(f"MLflow   {display_uri(uri)}")
        else:
            # Both are started before either is waited for.
            listener = stack.enter_context(prefect_server.listening("--mlflow-port", mlflow_port))
            address = f"http://{prefect_server.LOOPBACK}:{listener.getsockname()[1]}"
            processes["MLflow"] = stack.enter_context(_mlflow(root, listener, uri, own_key(home)))
        own = is_server(uri) is False
        if url := os.environ.get("PREFECT_API_URL"):
            prefect = url
        elif (running := prefect_server.running_server(root)) is not None:
            prefect, own = running, True
        else:
            serving = stack.enter_context(prefect_server.serving(root, prefect_port))
            processes["Prefect"], own = serving.process, True
            prefect = serving.url()
        if "MLflow" in processes:
            _wait(address, processes["MLflow"], state(root) / "mlflow.log")
            for name, link in _links(root, address, own_key(home)):
                show.say(f"MLflow   {link}  ({name})")
        show.say(f"Prefect  {prefect_server.pages(prefect)}/runs")
        if own:
            typer.echo(login_instructions(home))
        if not processes:
            typer.echo("both run elsewhere")
            return
        typer.echo("until Ctrl-C")
        until_interrupted(processes)


@contextmanager
def _mlflow(root: Path, listener: socket.socket, uri: str, key: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow's server for the store ``uri``. Address of the store and key are passed by
    environment: ``ps`` shows arguments to everyone.
    """
    env = {
        **os.environ,
        **_OFF,
        door.KEY: key,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(root / RUN_FILES),
    }
    with (
        prefect_server.private_log(state(root) / "mlflow.log") as log,
        prefect_server.behind_door("mlflow", listener, root, env, log) as process,
    ):
        yield process


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + prefect_server.STARTUP_S
    while _get(f"{address}/health", None) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-5:])
            raise FlowError("MLflow's server", "did not start", f"see {log}:\n  {tail}")
        time.sleep(0.05)


def _links(root: Path, address: str, key: str) -> list[tuple[str, str]]:
    """Pages worth opening, with what they show: the registered model and the runs; without one yet,
    the list it will be in.
    """
    links = []
    try:
        model = load_params(root / paths.PARAMS_FILE).gate.registered_model
    except ParamsError:  # reported by the commands that need it
        model = None
    api = f"{address}/api/2.0/mlflow"
    if model and _get(f"{api}/registered-models/get?{urlencode({'name': model})}", key) is not None:
        links.append((f"versions of {model}", f"{address}/#/models/{quote(model, safe='')}"))
    else:
        links.append(("models; none is registered yet", f"{address}/#/models"))
    found = _get(f"{api}/experiments/get-by-name?{urlencode({'experiment_name': experiment_name()})}", key)
    if found is not None:
        links.append(("runs", f"{address}/#/experiments/{json.loads(found)['experiment']['experiment_id']}/runs"))
    else:
        links.append(("experiments; nothing has run yet", f"{address}/#/experiments"))
    return links


def _get(url: str, key: str | None) -> bytes | None:
    """Content of our own server's response; None if it does not answer, or with an error."""
    found = prefect_server.request(url, key, 30)
    return found[1] if found is not None and found[0] == 200 else None
