"""State of this machine and this project, each fault with its remedy. Imports nothing heavy; takes
a few seconds.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows.errors import FlowError
from flows.processes import prefect_server
from flows.processes.environment import defaults, shipped, state
from flows.project import new_project
from flows.repro import preflight, registered
from stages.errors import VidbridgeError
from stages.params import ParamsError
from stages.tracking.lineage.git import git, head, is_repository
from stages.tracking.lineage.uri import TrackingError, check_server, display_uri, is_server, sqlite_path, tracking_uri
from stages.tracking.session import Session

if TYPE_CHECKING:
    from stages.tools.upgrade import Concern

State = Literal["ok", "warn", "missing"]
_PROBE_S = 60


@dataclass(frozen=True)
class Finding:
    """One line: subject, state, detail, and remedy (empty if none is needed)."""

    what: str
    state: State
    found: str
    todo: str = ""


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _run(*command: str) -> str | None:
    """Output of a program; None if it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_S, stdin=subprocess.DEVNULL, check=False
        )
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _python(_root: Path) -> Finding:
    found = (
        f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}, {os.cpu_count()}"
        " cores"
    )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return Finding(
            "python", "warn", found, "tested on Linux x86-64; elsewhere the best is tried (no decord: PyAV reads)"
        )
    return Finding("python", "ok", found)


def _ffmpeg(_root: Path) -> Finding:
    path = preflight.ffmpeg()
    if path is None:
        named = os.environ.get("VIDBRIDGE_FFMPEG")
        if named:
            return Finding(
                "ffmpeg",
                "missing",
                f"VIDBRIDGE_FFMPEG names {named}, which is not a program",
                "correct or unset VIDBRIDGE_FFMPEG",
            )
        return Finding(
            "ffmpeg",
            "missing",
            "imageio-ffmpeg brings none",
            "uv sync, or set VIDBRIDGE_FFMPEG to an ffmpeg with libx264",
        )
    output = _run(str(path), "-hide_banner", "-version")
    if output is None:
        return Finding("ffmpeg", "missing", f"{path} does not start", "set VIDBRIDGE_FFMPEG to one that does")
    encoder = "libx264" in (_run(str(path), "-hide_banner", "-encoders") or "")
    first = output.splitlines()[0].removeprefix("ffmpeg version ").split(" Copyright")[0]
    if not encoder:
        return Finding(
            "ffmpeg", "missing", f"{first} at {path}, without libx264", "unset VIDBRIDGE_FFMPEG to use the locked one"
        )
    return Finding("ffmpeg", "ok", f"{first} with libx264 at {path}")


def _decord(_root: Path) -> Finding:
    if found := _installed("decord"):
        return Finding("decord", "ok", found)
    return Finding("decord", "warn", "not installed", "PyAV reads every video; on Linux x86-64: uv sync")


def _pyav(_root: Path) -> Finding:
    found = _installed("av")
    return Finding("PyAV", "ok", found) if found else Finding("PyAV", "missing", "not installed", "uv sync")


def _torch(_root: Path) -> Finding:
    names = {name: _installed(name) for name in ("torch", "torchvision", "transformers", "trl", "accelerate")}
    found = ", ".join(f"{name} {number}" for name, number in names.items() if number)
    missing = [name for name, number in names.items() if not number]
    return (
        Finding("torch", "missing", f"{', '.join(missing)} not installed", "uv sync")
        if missing
        else Finding("torch", "ok", found)
    )


def _gpu(_root: Path) -> Finding:
    listed = _run("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if not listed:
        return Finding("GPU", "ok", "none found; the recipes tiny and smoke need none", "")
    gpus = "; ".join(listed.splitlines())
    # Only torch knows whether its CUDA fits the driver; its import is slow, so it is imported only
    # where a GPU is.
    seen = _run(sys.executable, "-c", "import torch; print(torch.cuda.device_count(), torch.version.cuda)")
    if seen is None or seen.startswith("0"):
        return Finding(
            "GPU",
            "warn",
            f"{gpus}; torch sees none of them ({seen or 'it does not import'})",
            "update the driver: nvidia-smi",
        )
    return Finding("GPU", "ok", f"{gpus}; torch sees {seen.split()[0]} (CUDA {seen.split()[-1]})")


def _deepspeed(_root: Path) -> Finding:
    found = _installed("deepspeed")
    if found is None:
        return Finding("DeepSpeed", "warn", "not installed", "only needed to train on several devices; Linux: uv sync")
    named = os.environ.get("VIDBRIDGE_DEEPSPEED")
    if named and not Path(named).is_file():
        return Finding(
            "DeepSpeed",
            "missing",
            f"{found}; VIDBRIDGE_DEEPSPEED: {named} is not a file",
            f"{shipped('deepspeed') / 'zero2.json'} is one",
        )
    return Finding("DeepSpeed", "ok", f"{found}, {f'with {named}' if named else 'not asked for (VIDBRIDGE_DEEPSPEED)'}")


def _versions(_root: Path) -> Finding:
    names = ("prefect", "dvc", "mlflow", "fastapi", "sqlalchemy")
    found = {name: _installed(name) for name in names}
    text = ", ".join(f"{name} {number}" for name, number in found.items())
    if not all(found.values()):
        return Finding("pipeline", "missing", text, "uv sync")
    limits = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}
    for name, limit in limits.items():
        if tuple(int(part) for part in str(found[name]).split(".")[:2]) >= limit:
            wanted = ".".join(map(str, limit))
            return Finding(
                "pipeline", "missing", text, f"{name} must be below {wanted}, or Prefect fails without a word: uv sync"
            )
    return Finding("pipeline", "ok", text)


def _judge(session: Session) -> Finding:
    try:
        params = session.params
    except ParamsError as error:
        return Finding(
            "judge",
            "warn",
            "params.yaml does not load, so which judge is wanted is unknown",
            str(ParamsError(error.field, error.problem, error.remedy)),
        )
    needed = preflight.endpoints(params, judged=True, written=True)
    if not needed:
        if params.judge.kind == "rule_on_real_text":
            remedy = "name a model under `judge` in params.yaml (kind: openai), as infra/recipes/vidbridge-r1.yaml does"
            return Finding(
                "judge", "warn", "the rule judge on real text: it compares words and pays much that is wrong", remedy
            )
        return Finding("judge", "ok", "the rule judge: nothing to reach, exact on the generated world only")
    wrong = [problem for role, why in needed.items() for problem in preflight.judge_problems(role, why)]
    if wrong:
        return Finding("judge", "missing", "; ".join(needed.values()), "; ".join(map(str, wrong)))
    addresses = ", ".join(display_uri(os.environ[f"VIDBRIDGE_{role}_URL"]) for role in needed)
    return Finding("judge", "ok", f"{addresses} answers" if len(needed) == 1 else f"{addresses} answer")


def _mlflow(root: Path) -> Finding:
    uri, default = tracking_uri(root), defaults(root)["MLFLOW_TRACKING_URI"]
    try:
        check_server(uri)
    except TrackingError as error:
        return Finding("MLflow store", "missing", display_uri(uri), str(error))
    return Finding("MLflow store", "ok", f"{display_uri(uri)}{' (the default)' if uri == default else ''}")


def _prefect(root: Path) -> Finding:
    url = os.environ.get("PREFECT_API_URL")
    if url:
        if prefect_server.answers(url):
            return Finding("Prefect API", "ok", url)
        return Finding(
            "Prefect API",
            "missing",
            f"PREFECT_API_URL: {url}: no answer",
            "start that server, correct the address, or unset it",
        )
    try:
        running = prefect_server.running_server(root)
    except FlowError as error:  # it runs under another key than the project's
        return Finding("Prefect API", "missing", str(error))
    if running:
        return Finding("Prefect API", "ok", f"{running} (vidbridge ui or deploy)")
    return Finding("Prefect API", "ok", "none named; each run starts one of its own (a few seconds)")


def _remote(root: Path) -> Finding:
    name = os.environ.get("VIDBRIDGE_DVC_REMOTE") or _run(
        sys.executable, "-m", "dvc", "--cd", str(root), "config", "core.remote"
    )
    if not name:
        return Finding("DVC remote", "warn", "none", "versions load on this machine only; dvc remote add -d NAME URL")
    # As stages.tracking.lineage.opening takes it: a URL or a path may be there as well as a name.
    is_url = "/" in name
    url = name if is_url else _run(sys.executable, "-m", "dvc", "--cd", str(root), "config", f"remote.{name}.url")
    name = "VIDBRIDGE_DVC_REMOTE" if is_url else name
    if not url:
        return Finding(
            "DVC remote", "missing", f"no remote is called {name}", f"dvc remote add -d {name} URL, or name its URL"
        )
    if problems := preflight.remote_problems(root):
        problem = problems[0]
        return Finding("DVC remote", "missing", f"{name}: {url}: {problem.field}: {problem.problem}", problem.remedy)
    if "://" not in url:
        return Finding("DVC remote", "ok", f"{name}: {url}, a folder of this machine (s3://… reaches others)")
    return Finding("DVC remote", "ok", f"{name}: {url}, which takes what is written to it")


def _clones(root: Path) -> Finding:
    """Clones of scheduled runs that no deployment of this version uses."""
    from flows.repro.clone import leftovers

    left = leftovers(state(root) / "scheduled")
    if not left:
        return Finding("scheduled runs", "ok", "no clone of an earlier version is left")
    names = " ".join(map(str, left))
    return Finding(
        "scheduled runs", "warn", f"clones of an earlier version, which nothing uses: {names}", f"rm -r {names}"
    )


def _champion(session: Session) -> Finding:
    """Check whether the alias is where the gate put it."""
    root = session.root
    if other := registered.other_store(root):
        return Finding("champion", "warn", f"{other.field}: {other.problem}", other.remedy)
    database = sqlite_path(tracking_uri(root))
    if database is not None and not database.exists():
        return Finding("champion", "ok", _nothing_in(root))
    # Two seconds of imports, where there is a registry to ask; `_upgrade` needs them too.
    from mlflow.exceptions import MlflowException

    from stages.tracking.registry.ledger import alias_fault
    from stages.tracking.registry.removals import objection
    from stages.tracking.registry.versions import CHAMPION, all_versions

    try:
        gate, client = session.params.gate, session.client
        fault = alias_fault(client, gate.registered_model, gate.ledger)
        versions = all_versions(client, gate.registered_model)
        champion = next((found for found in versions if CHAMPION in found.aliases), None)
        saw = None if fault or champion is None else objection(session, champion)
    except (VidbridgeError, MlflowException, OSError):
        return Finding("champion", "warn", "the store could not be asked", "vidbridge explain champion says why")
    if fault:
        said, _, todo = fault.rpartition("; ")
        return Finding("champion", "warn", said, todo)
    if saw:
        return Finding("champion", "warn", saw, "vidbridge run, then vidbridge promote")
    if not versions:
        return Finding("champion", "ok", _nothing_in(root))
    return Finding("champion", "ok", "the alias is where the gate put it")


def _nothing_in(root: Path) -> str:
    """Sentence with the store's name: it may be another one than the project registers in."""
    return f"nothing is registered yet in {display_uri(tracking_uri(root))}"


def _disk(root: Path) -> Finding:
    usage = shutil.disk_usage(root)
    free = usage.free / preflight.GB
    if free < 2:
        return Finding(
            "disk", "missing", f"{free:.1f} GB free at {root}", "make room: the recipe tiny needs about 1 GB"
        )
    return Finding("disk", "ok", f"{free:.0f} GB free at {root}")


def _memory(_root: Path) -> Finding:
    import psutil

    free = psutil.virtual_memory().available / preflight.GB
    state: State = "ok" if free > 4 else "warn"
    return Finding(
        "memory",
        state,
        f"{free:.1f} GB available",
        "" if free > 4 else "a training process of the recipe tiny takes up to 4 GB",
    )


def _git(root: Path) -> Finding:
    try:
        if not is_repository(root):
            return Finding(
                "git", "missing", f"{root} is not a repository", "git init && git add -A && git commit -m start"
            )
        if head(root) is None:
            return Finding("git", "missing", "no commit yet", "git add -A && git commit -m start")
        name, mail = (_run("git", "-C", str(root), "config", key) for key in ("user.name", "user.email"))
        commit = git(root, "rev-parse", "--short", "HEAD")
    except (TrackingError, FlowError) as error:
        return Finding("git", "missing", f"{error.field}: {error.problem}", error.remedy or "mend what git names")
    if not (name and mail):
        todo = "git config user.name … && git config user.email …; until then runs are committed as vidbridge@localhost"
        return Finding("git", "warn", f"commit {commit}, no identity", todo)
    return Finding("git", "ok", f"commit {commit}, {name} <{mail}>")


#: Checks that apply to any machine.
_OF_MACHINE = (_python, _ffmpeg, _decord, _pyav, _torch, _gpu, _deepspeed, _versions, _memory, _disk)


def findings(root: Path | None) -> list[Finding]:
    """Check everything, side by side; outside a project (None) the machine only."""
    if root is None:
        found = _side_by_side([partial(check, Path.cwd()) for check in _OF_MACHINE])
        todo = "cd into a clone of the project, or set VIDBRIDGE_PROJECT to it"
        return [
            *found,
            Finding("project", "missing", f"{Path.cwd()} is not inside one (no dvc.yaml upward of it)", todo),
        ]
    session = Session(root)
    of_project = [partial(_judge, session), partial(_mlflow, root), partial(_champion, session)]
    of_project += [partial(check, root) for check in (_prefect, _remote, _clones, _git)]
    return _side_by_side([partial(check, root) for check in _OF_MACHINE] + of_project) + _upgrade(session)


def _side_by_side(checks: Sequence[Callable[[], Finding]]) -> list[Finding]:
    with ThreadPoolExecutor(len(checks)) as pool:
        return [future.result() for future in [pool.submit(check) for check in checks]]


def _upgrade(session: Session) -> list[Finding]:
    """List each result of 0.1 that today's rules would make differently, and a pipeline of another
    version.
    """
    from stages.tools import upgrade

    try:
        uri = tracking_uri(session.root)
        database = sqlite_path(uri)
        there = is_server(uri) or database is None or database.is_file()
        concerns = upgrade.concerns_of_project(session.root)
        concerns += upgrade.concerns_of_registry(session) if there else []
        behind = new_project.is_behind(session.root)
    except (VidbridgeError, OSError) as error:
        return [
            Finding(
                "upgrade", "warn", f"whether results of 0.1 are here cannot be told: {error}", "see the lines above"
            )
        ]
    if behind:
        todo = f"vidbridge init --upgrade {session.root}, then git diff dvc.yaml"
        return [
            Finding("upgrade", "warn", "dvc.yaml is not the one of the installed package", todo),
            *_of_old_results(concerns),
        ]
    return _of_old_results(concerns)


def _of_old_results(concerns: Sequence[Concern]) -> list[Finding]:
    if not concerns:
        return [Finding("upgrade", "ok", "no result of 0.1 in dvc.lock, none as champion or candidate")]
    return [Finding("upgrade", "warn", f"{one.what}: {one.problem}", one.remedy) for one in concerns]
