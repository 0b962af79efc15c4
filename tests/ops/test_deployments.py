"""Deployments that meet, and workers elsewhere: a real Prefect server, real workers, real git and
DVC; stages that take seconds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.processes import prefect_server
from tests.support.checkout import ROOT
from tests.support.projects.flow import make_small_project
from tests.support.projects.repository import git

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
#: For one run on a busy machine; what is waited for takes a quarter of it.
RUN_S = 400


def outside(**changes: str) -> dict[str, str]:
    """This environment less what names servers and projects."""
    ours = ("VIDBRIDGE_", "PREFECT_", "MLFLOW_", "DVC_", "GIT_", "PYTEST_", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    people = {f"GIT_{who}_{what}": "t@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    quiet = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    return kept | people | quiet | {"PATH": path, "GIT_CONFIG_GLOBAL": os.devnull} | changes


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server with its schedules, and how clients reach it."""
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
            patch.delenv(name, raising=False)
        patch.setenv("PREFECT_HOME", str(home))
        with prefect_server.serving(home, 0) as running:
            yield {"PREFECT_API_URL": running.url(), "PREFECT_API_AUTH_STRING": running.key}


@contextlib.contextmanager
def asking(reached: dict[str, str]) -> Iterator[Any]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    values = {PREFECT_API_URL: reached["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: reached["PREFECT_API_AUTH_STRING"]}
    with temporary_settings(values), get_client(sync_client=True) as client:
        yield client


@contextlib.contextmanager
def working(pool: str, folder: Path, env: dict[str, str]) -> Iterator[Path]:
    """A plain worker of the pool, as a team starts one; yields its log."""
    log = folder / f"worker-{pool}.log"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True)
        try:
            yield log
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)


def started(client: Any, name: str) -> Any:
    deployment = client.read_deployment_by_name(f"vidbridge-scheduled/{name}")
    return client.create_flow_run_from_deployment(deployment.id).id


def until(found: Callable[[], Any], log: Path) -> Any:
    deadline = time.monotonic() + RUN_S
    while not (value := found()):
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.3)
    return value


def ended(client: Any, run: Any, log: Path) -> Any:
    def state() -> Any:
        found = client.read_flow_run(run).state
        return found if found.type.value in ENDED else None

    return until(state, log)


def deploy(project: Path, env: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "flows.cli.main", "deploy", "--no-worker", *arguments]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def small_project(root: Path, seconds: float) -> Path:
    """A committed project whose last training takes ``seconds``."""
    make_small_project(root)
    shutil.copytree(ROOT / "infra", root / "infra", ignore=shutil.ignore_patterns("images", "deepspeed"))
    (root / "knobs.json").write_text(json.dumps({"general": {"seconds": seconds}}))
    params = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(params.replace("judge: {kind: rule,", "judge: {kind: rule_on_real_text,"))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "what deploy reads")
    return root


def videos(folder: Path) -> Path:
    folder.mkdir()
    (folder / "annotations.jsonl").write_text("{}\n")
    return folder


def recorded(repository: Path) -> list[str]:
    """Of each branch ``runs/*``: the source in its params.yaml, which its dvc.lock has to name as
    well."""
    found = []
    for branch in git(repository, "for-each-ref", "--format=%(refname)", "refs/heads/runs/").split():
        source = yaml.safe_load(git(repository, "show", f"{branch}:params.yaml"))["ingest"]["source"]
        lock = yaml.safe_load(git(repository, "show", f"{branch}:dvc.lock"))["stages"]["ingest"]
        assert source in [dep["path"] for dep in lock["deps"]], f"{branch} is of two runs"
        assert lock["params"]["params.yaml"]["ingest"]["source"] == source
        found.append(source)
    return sorted(found)


def versions(store: str) -> int:
    from mlflow.tracking import MlflowClient

    found = MlflowClient(tracking_uri=store, registry_uri=store).search_model_versions()
    return len([one for one in found if "vidbridge.stage" in one.tags])  # and not the entries of the ledger


@pytest.mark.timeout(1500)
def test_two_deployments_of_one_branch_do_not_meet_and_an_edit_under_a_run_fails_it(
    reached: dict[str, str], tmp_path: Path
) -> None:
    project, watched = small_project(tmp_path / "project", 12), videos(tmp_path / "videos")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    env = outside(**reached, VIDBRIDGE_PROJECT=str(project), MLFLOW_TRACKING_URI=store, HOME=str(tmp_path))
    deploy(project, env, "--name", "x", "--pool", "two", "--source", str(watched))
    deploy(project, env, "--name", "y", "--pool", "two")
    with working("two", tmp_path, env) as log, asking(reached) as client:
        first = started(client, "x")
        clones = project / ".vidbridge/scheduled"
        attempts = until(lambda: list(clones.glob("x-*/.vidbridge/attempts.txt")), log)[0]
        until(lambda: "general" in attempts.read_text(), log)
        second = started(client, "y")  # while the first one trains
        states = [ended(client, run, log) for run in (first, second)]
        assert [state.type.value for state in states] == ["COMPLETED", "COMPLETED"], log.read_text()[-4000:]
        assert len([one for one in clones.iterdir() if one.is_dir()]) == 2
        assert recorded(project) == sorted(["data/corpus", str(watched)])
        # The shape of the pipeline has four models; those of the two sources are the same bytes
        # here, made from other clips.
        assert versions(store) >= 4
        # Once more, and somebody edits the clone's parameters while it trains.
        before = versions(store)
        (project / "learning.py").write_text("rate = 2\n")  # the training's code, so that DVC's run cache has no answer
        git(project, "commit", "-qam", "a change")
        count = attempts.read_text().split().count("general")
        third = started(client, "x")
        until(lambda: attempts.read_text().split().count("general") > count, log)
        params = attempts.parents[1] / "params.yaml"
        params.write_text(params.read_text().replace("seed: 7", "seed: 8", 1))
        state = ended(client, third, log)
    assert state.type.value == "FAILED"
    assert "params.yaml: was changed during the run (seed)" in str(state.message)
    assert versions(store) == before
    assert len(recorded(project)) == 2, "no branch that mixes two runs"


@pytest.mark.timeout(1500)
def test_a_worker_elsewhere_clones_a_folder_of_a_monorepo(reached: dict[str, str], tmp_path: Path) -> None:
    """The worker has another home and another folder, and no project; the deployer's folder is gone
    when the run begins."""
    made = small_project(tmp_path / "made", 0)
    top = tmp_path / "mono"
    shutil.copytree(made, top / "teams/videos", ignore=shutil.ignore_patterns(".git"))
    git(top.parent, "init", "-q", "-b", "main", str(top))
    git(top, "add", "-A")
    git(top, "commit", "-qm", "start")
    hub = tmp_path / "hub.git"
    git(tmp_path, "clone", "-q", "--bare", str(top), str(hub))
    laptop, worker = tmp_path / "laptop", tmp_path / "b"
    git(tmp_path, "clone", "-q", f"file://{hub}", str(laptop))
    for place in (worker, worker / "home"):
        place.mkdir()
    said = deploy(
        laptop / "teams/videos",
        outside(**reached, HOME=str(tmp_path)),
        *(
            "--repository",
            f"file://{hub}",
            "--directory",
            "teams/videos",
            "--pool",
            "far",
            "--name",
            "far",
            "--timezone",
            "Asia/Tokyo",
        ),
    )
    assert "a folder of each clone" in said
    assert "prefect worker start --pool far --type process" in said
    shutil.rmtree(laptop)
    remote = f"{worker}/remote"
    env = outside(
        **reached,
        HOME=str(worker / "home"),
        VIDBRIDGE_DVC_REMOTE=remote,
        MLFLOW_TRACKING_URI=f"sqlite:///{worker}/m.db",
    )
    with working("far", worker, env) as log, asking(reached) as client:
        state = ended(client, started(client, "far"), log)
        assert state.type.value == "COMPLETED", log.read_text()[-6000:]
        deployed = client.read_deployment_by_name("vidbridge-scheduled/far")
    assert str(laptop) not in deployed.model_dump_json()
    assert [(one.schedule.cron, one.schedule.timezone) for one in deployed.schedules] == [("0 3 * * *", "Asia/Tokyo")]
    (branch,) = git(hub, "for-each-ref", "--format=%(refname)", "refs/heads/runs/").split()
    assert git(hub, "show", "--stat", "--format=", branch).split()[0] == "teams/videos/dvc.lock"
    (clone,) = (path.parent for path in (worker / "home/.local/state/vidbridge").glob("*/.git"))
    assert clone.name.startswith("far-")
    assert not (clone / "teams/videos/.dvc/cache").exists(), "a cache for all clones of the worker"
    assert versions(f"sqlite:///{worker}/m.db") == 4
    assert any(Path(remote).rglob("*")), "pushed"


@pytest.mark.timeout(900)
def test_what_an_operator_set_on_the_server_stays(reached: dict[str, str], tmp_path: Path) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessWorker

    project = small_project(tmp_path / "project", 0)
    env = outside(**reached, HOME=str(tmp_path))
    assert "paused" not in deploy(project, env, "--name", "kept", "--pool", "kept")
    with asking(reached) as client:
        (schedule,) = client.read_deployment_by_name("vidbridge-scheduled/kept").schedules
        deployment = client.read_deployment_by_name("vidbridge-scheduled/kept").id
        client.update_deployment_schedule(deployment, schedule.id, active=False)
        said = deploy(
            project, env, "--name", "kept", "--pool", "kept", "--cron", "0 5 * * *", "--timezone", "Europe/Berlin"
        )
        assert (
            "its schedule (0 5 * * *) was paused, and stays so; resume it: prefect deployment schedule resume" in said
        )
        (again,) = client.read_deployment_by_name("vidbridge-scheduled/kept").schedules
        assert (again.active, again.schedule.timezone) == (False, "Europe/Berlin")
        assert str(again.id) in said
        # A pool that lets a run set its command is neither used nor changed.
        theirs = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name="theirs", type="process", base_job_template=theirs))
        command = [sys.executable, "-m", "flows.cli.main", "deploy", "--no-worker", "--pool", "theirs"]
        refused = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "--pool: 'theirs' is there already, and lets a run set how it is started" in refused.stderr
        assert client.read_work_pool("theirs").base_job_template == theirs
    # Two at once.
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", "deploy", "--no-worker", "--pool", "twice", "--name", name],
            cwd=project,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("one", "other")
    ]
    told = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
