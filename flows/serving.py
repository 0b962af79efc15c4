"""``vidbridge serve`` and ``vidbridge export``: a registered version for those who only want its answers, or its weights."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

from flows import champion, show
from flows.deploying import until_interrupted
from flows.errors import FlowError, UsageError
from flows.processes import guarded
from flows.project import stage_environment, state
from flows.server import free_port, port_in_use
from stages.params import load_params
from stages.serving_limits import FOLDER, limits_from_environment

#: Loading a large model from a slow disk takes minutes.
STARTUP_S = 1800
#: MLflow's own time-out stands behind ours, so that ours can say what took so long.
SLACK_S = 10
LOG_LINES = 12


def serve(root: Path, which: str, videos: Path | None, host: str, port: int) -> None:
    """Serve a version over HTTP with MLflow's own server until Ctrl-C.

    Raises:
        UsageError: the port is in use, or a limit in the environment is none.
        TrackingError: no such version, or it does not say how it is asked.
        FlowError: the server did not start, or ended by itself.
    """
    from stages.tracking.servable import usage_of_version
    from stages.tracking.store import open_client
    from stages.tracking.versions import find_version

    changes = {FOLDER: str(videos)} if videos is not None else {}
    try:
        limits = limits_from_environment(changes)
    except ValueError as error:
        raise UsageError(str(error)) from error
    port = port or free_port()
    if port_in_use(port):
        raise UsageError(f"--port: {port} is in use; end what listens there, or choose another one")
    version = find_version(open_client(root), load_params(root / "params.yaml").gate.registered_model, which)
    usage = usage_of_version(version)
    log = state(root) / "serving.log"
    # Beside the DVC cache: what MLflow downloads are then links to it, and no copies of the weights.
    with TemporaryDirectory(dir=state(root), prefix="serving-") as temporary, log.open("wb") as out:
        uri = f"models:/{version.model}/{version.number}"
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "-h", host, "-p", str(port)]
        command += ["--env-manager", "local", "-t", str(int(limits.timeout_s) + SLACK_S)]
        env = stage_environment(root, {**changes, "TMPDIR": temporary})
        with guarded(command, root, env, out.fileno()) as process:
            deadline = time.monotonic() + STARTUP_S
            while not _answers(f"http://{host}:{port}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    last = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
                    raise FlowError(f"mlflow models serve: did not start; the end of {log}:\n  {last}")
                time.sleep(0.3)
            typer.echo(
                f"version {version.number} of {version.model} ({version.stage}) answers at http://{host}:{port} until Ctrl-C"
            )
            where = "a path below " + str(limits.folder) if limits.folder else "none: no folder is open, so send video_base64"
            typer.echo(f"video: {where}; log: {log}")
            if usage.caution:
                typer.echo(f"note: {usage.caution}")
            typer.echo(_example(f"http://{host}:{port}"))
            until_interrupted({"the server": process})


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/ping", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _example(url: str) -> str:
    body = json.dumps({"dataframe_records": [{"video": "clip.mp4", "question": "What happens first?"}]})
    return f"try: curl -H 'Content-Type: application/json' {url}/invocations -d '{body}'"


def export(root: Path, which: str, folder: Path) -> None:
    """Write a version as a folder of its own, and say what it holds."""
    from stages.publish import publish

    champion.warn_of_moved(root, which)
    made = publish(root, which, folder)
    out = show.console()
    version = made.version
    show.say(f"written: {folder} (version {version.number}, {version.stage}, {made.size_bytes / 1e6:,.1f} MB)")
    show.show_next(out, f"vllm serve {folder}", f"mlflow models serve -m {folder} --env-manager local")
