"""Deployments and their locks, without a server: the functions that decide, on real files and real
git.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import yaml

from flows import promotion
from flows.cli import ablate, registry
from flows.deployments import deploy, pools
from flows.deployments.options import deployment_request
from flows.deployments.prefect_file import DeploymentRequest, PausedState, prefect_file
from flows.errors import FlowError, UsageError
from flows.params_file import recipes
from flows.processes.locks import hold, only_run
from flows.project import accept
from flows.repro import clone
from flows.repro.clone import Origin
from flows.repro.unchanged import Watch
from stages.tracking.lineage import git as tracked
from stages.tracking.lineage.git import command
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.versions import Version
from stages.tracking.session import Session
from tests.support.checkout import ROOT
from tests.support.projects.repository import git


@contextmanager
def held_elsewhere(path: Path, signed: str) -> Iterator[None]:
    """Hold a lock as another process does: the kernel tells open files apart, not processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(signed)
        file.flush()
        yield


@pytest.fixture
def shipped(project: Path) -> Path:
    """Committed project with the files that `deploy` reads."""
    shutil.copytree(ROOT / "infra", project / "infra", ignore=shutil.ignore_patterns("images", "deepspeed"))
    git(project, "add", "-A")
    git(project, "commit", "-qm", "infra")
    return project


# --- Locks
# ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signed", "said"),
    [
        ("4711 {host} {numbers}", "run: process 4711 is running it; wait for it, or end it: kill 4711"),
        ("4711 b7 pid:[1]", "run: process 4711 of b7 is running it; wait for it, or end it: kill 4711 there"),
        (
            "1 {host} pid:[1]",
            "run: process 1 of another container of {host} is running it; wait for it, or end it: kill 1 there",
        ),
        ("", "run: another process is running it"),
    ],
)
def test_a_lock_that_is_held_names_its_holder_and_the_remedy(tmp_path: Path, signed: str, said: str) -> None:
    here = {"host": socket.gethostname(), "numbers": str(Path("/proc/self/ns/pid").readlink())}
    with (
        held_elsewhere(tmp_path / "a.lock", signed.format(**here)),
        pytest.raises(FlowError) as refused,
        hold(tmp_path / "a.lock", "run", "is running it", wait_s=0),
    ):
        pass
    assert str(refused.value).startswith(said.format(**here))
    with hold(tmp_path / "a.lock", "run", "is running it"), hold(tmp_path / "a.lock", "run", "is running it"):
        assert (tmp_path / "a.lock").read_text().startswith(f"{os.getpid()} ")  # a promotion inside a run
    assert (tmp_path / "a.lock").read_text() == ""
    with hold(tmp_path / ".vidbridge/scheduled/a.lock", "run", "is running it"):
        assert (tmp_path / ".vidbridge").stat().st_mode & 0o77 == 0


def test_a_scheduled_run_that_is_refused_has_not_touched_the_clone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.scheduled import scheduled

    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(project))
    origin = clone.project_origin(project, "main")
    folder = clone.folder_of(project / ".vidbridge/scheduled", origin, None, "by-hand", "")
    with held_elsewhere(folder.with_name(folder.name + ".lock"), "4711 a b"):
        with pytest.raises(FlowError, match="process 4711 of a is running this deployment already"):
            scheduled.fn("main")
        assert not folder.exists(), "held before there is a clone"
    root = clone.make(origin, folder)
    with held_elsewhere(folder.with_name(folder.name + ".lock"), "4711 a b"):
        (root / "params.yaml").write_text("of the run that goes on\n")
        with pytest.raises(FlowError, match="already"):
            scheduled.fn("main")
        assert (root / "params.yaml").read_text() == "of the run that goes on\n"


def test_commands_that_change_the_project_take_its_lock_first(shipped: Path) -> None:
    before = (shipped / "params.yaml").read_bytes()
    changes: tuple[Callable[[], object], ...] = (
        lambda: recipes.use(shipped, "smoke", force=True),
        registry.register,
        lambda: accept.accept(shipped, "corpus", "a reason"),
        lambda: promotion.rescore(Session(shipped), cast(Version, None), "digest", print, "otherwise"),
        lambda: ablate.run_grid(shipped, 1, None, table_only=False),
    )
    with held_elsewhere(shipped / ".vidbridge/run.lock", "4711 a b"):
        for change in changes:
            with pytest.raises(FlowError, match="run: process 4711 of a is running this project already"):
                change()
    assert (shipped / "params.yaml").read_bytes() == before
    with only_run(shipped):
        pass


def test_no_two_deployments_meet_in_one_folder(tmp_path: Path) -> None:
    origin = Origin("/hub.git", "main", "")
    folders = {
        clone.folder_of(tmp_path, one, source, name, number)
        for one in (
            origin,
            Origin("/hub.git", "other", ""),
            Origin("/hub.git", "main", "sub"),
            Origin("/hub2.git", "main", ""),
        )
        for source in (None, "/videos")
        for name, number in (("nightly", "1"), ("nightly", "2"), ("../../x y", "3"))
    }
    assert len(folders) == 4 * 2 * 3
    assert {folder.parent for folder in folders} == {tmp_path}


def test_git_asks_another_repository_for_so_long_and_no_longer(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = command(project, ("push", "origin", "main"))
    assert asked.timeout_s == 1800
    assert "http.lowSpeedTime=60" in asked.words
    assert "-o BatchMode=yes" in asked.env["GIT_SSH_COMMAND"]
    assert command(project, ("status",)).timeout_s is None
    git(project, "config", "core.sshCommand", "ssh -i key")
    assert "GIT_SSH_COMMAND" not in command(project, ("fetch",)).env, "it would go before what git is told"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(tracked, "command", lambda *given: replace(command(*given), timeout_s=0.1))
        with pytest.raises(
            TrackingError, match=r"git ls-remote in .*: no answer within 0\.1 s; .* VIDBRIDGE_GIT_TIMEOUT_S"
        ):
            tracked.git(project, "ls-remote", f"git://127.0.0.1:{silent.getsockname()[1]}/x")
    monkeypatch.setenv("VIDBRIDGE_GIT_TIMEOUT_S", "soon")
    with pytest.raises(TrackingError, match="VIDBRIDGE_GIT_TIMEOUT_S: 'soon' is not a number of seconds"):
        command(project, ("fetch",))


def test_what_changes_under_a_run_is_named(project: Path) -> None:
    done = project
    made = {
        name: {"cmd": "c", "outs": [{"path": name, "md5": "1" * 32}]} for name in ("corpus", "grpo@bridge", "other")
    }
    before = yaml.safe_dump({"schema": "2.0", "stages": made})
    (done / "dvc.lock").write_text(before)
    watch = Watch.start(done)
    watch.note("corpus", "grpo@bridge", "never")
    assert watch.changes() == []
    (done / "params.yaml").write_text("# a remark changes nothing\n" + (done / "params.yaml").read_text())
    assert watch.changes() == []
    params = (done / "params.yaml").read_text()
    (done / "params.yaml").write_text(params.replace("seed: 7", "seed: 8", 1))
    table = yaml.safe_load(before)
    table["stages"]["grpo@bridge"]["outs"][0]["md5"] = "0" * 32
    (done / "dvc.lock").write_text(yaml.safe_dump(table))
    assert watch.changes() == [
        "params.yaml: was changed during the run (seed)",
        "dvc.lock: was changed during the run by something else (grpo@bridge)",
    ]
    assert len(watch.changes(but=["grpo@bridge"])) == 1
    watch.note("grpo@bridge")  # the stage itself did it
    assert len(watch.changes()) == 1
    (done / "dvc.lock").unlink()
    assert watch.changes()[1] == "dvc.lock: was changed during the run by something else (corpus, grpo@bridge)"


# --- Clones
# ------------------------------------------------------------------------------


def test_a_clone_takes_cache_keys_and_remote_of_its_project(project: Path, tmp_path: Path) -> None:
    from dvc.config import Config

    (project / ".dvc/config.local").write_text(
        "[cache]\n    dir = ../../kept\n    type = symlink\n['remote \"s3\"']\n    url = s3://bucket\n"
        "    access_key_id = user\n"
    )
    origin = clone.project_origin(project, "main")
    folder = tmp_path / "work/nightly"
    clone.make(origin, folder)
    assert clone.refresh(origin, folder).shared_remote
    found = Config(str(folder / ".dvc"))
    assert found["cache"]["dir"] == str(tmp_path / "kept"), "of the project's own configuration, and not .dvc/cache"
    assert found["cache"]["type"] == ["symlink"]
    assert found["remote"]["s3"]["access_key_id"] == "user"
    assert found["remote"]["local"]["url"] == str(project / ".vidbridge/remote")
    assert (folder / ".dvc/config.local").stat().st_mode & 0o77 == 0
    # Of a repository elsewhere, though it is a folder of this machine: a cache of the worker's, and
    # a remote that is the clone's own.
    elsewhere = Origin(str(project), "main", "")
    clone.make(elsewhere, tmp_path / "work/other")
    assert not clone.refresh(elsewhere, tmp_path / "work/other").shared_remote
    assert Config(str(tmp_path / "work/other/.dvc"))["cache"]["dir"] == str(tmp_path / "work/cache")
    assert clone.leftovers(tmp_path / "work") == []
    git(tmp_path, "clone", "-q", str(project), str(tmp_path / "work/0123456789ab"))
    assert clone.leftovers(tmp_path / "work") == [tmp_path / "work/0123456789ab"]


def test_a_project_in_a_folder_of_a_repository(shipped: Path, tmp_path: Path) -> None:
    top = tmp_path / "mono"
    top.mkdir()
    git(top, "init", "-qb", "main")
    shutil.copytree(shipped, top / "a b/videos", ignore=shutil.ignore_patterns(".git"))
    git(top, "add", "-A")
    git(top, "commit", "-qm", "start")
    origin = clone.project_origin(top / "a b/videos", "main")
    assert (origin.repository, origin.directory) == (str(top), "a b/videos")
    root = clone.make(origin, tmp_path / "work/nightly")
    assert clone.refresh(origin, tmp_path / "work/nightly").root == root
    assert (root / "dvc.yaml").is_file()
    with pytest.raises(
        FlowError, match=r"directory: folder 'no' of .* holds no dvc.yaml; deploy again with --directory SUB"
    ):
        clone.refresh(Origin(str(top), "main", "no"), tmp_path / "work/nightly")
    with pytest.raises(FlowError, match="branch: 'gone' is not in"):
        clone.refresh(Origin(str(top), "gone", ""), tmp_path / "work/nightly")
    with pytest.raises(UsageError, match=r"--directory: .* holds no dvc.yaml \(there is one in a b/videos\)"):
        deployment_request(shipped, repository=str(top))
    # A seed of an ablation has its clone in the same way.
    from flows.ablation.lanes import cloned

    (top / "a b/videos/.vidbridge").mkdir()
    seed = cloned(top / "a b/videos", tmp_path / "seed-1", git(top, "rev-parse", "HEAD"))
    assert (seed / "dvc.yaml").is_file()
    assert str(top / "a b/videos/.dvc/cache") in (seed / ".dvc/config.local").read_text()
    order, _ = deployment_request(shipped, repository=str(top), directory="a b/videos/")
    assert order.directory == "a b/videos"


def test_line_ends_are_those_of_the_commit_whatever_git_is_told(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this checkout is no clone")
    there = tmp_path / "there"
    for name, value in (("plain", "false"), ("there", "true")):
        git(tmp_path, "clone", "-q", "-c", f"core.autocrlf={value}", str(ROOT), name)
    stages = yaml.safe_load((there / "dvc.yaml").read_text())["stages"].values()
    deps = {
        dep
        for stage in stages
        for dep in stage.get("do", stage).get("deps", ())
        if "$" not in dep and (there / dep).exists()
    }
    files = {file for dep in deps for file in ([there / dep] if (there / dep).is_file() else (there / dep).rglob("*"))}
    names = sorted(str(file.relative_to(there)) for file in files if file.is_file())
    assert len(names) > 60
    hashes = [
        [hashlib.md5((tmp_path / clone / name).read_bytes()).hexdigest() for name in names]
        for clone in ("plain", "there")
    ]
    assert hashes[0] == hashes[1]


# --- The command line
# ------------------------------------------------------------------------------


def test_what_cannot_be_deployed_is_said_at_once(shipped: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub.git"
    git(tmp_path, "clone", "-q", "--bare", str(shipped), str(hub))
    address = str(hub)

    def refusal(**asked: object) -> str:
        with pytest.raises(FlowError) as refused:
            deployment_request(shipped, **asked)  # type: ignore[arg-type]
        return str(refused.value)

    assert refusal(timezone="Europe/Berln") == (
        "--timezone: 'Europe/Berln' is not a time zone; set an IANA name, such as Europe/Berlin or UTC; did you mean"
        " Europe/Berlin?"
    )
    assert refusal(cron="every day").startswith("--cron: 'every day' is not a schedule; set minute, hour,")
    assert "--name: 'a/b' cannot be a name in Prefect" in refusal(name="a/b")
    assert "--pool: '' cannot be a name" not in refusal(pool="%")
    assert "--directory: is of --repository" in refusal(directory="sub")
    assert "--branch: 'no' is not in" in refusal(branch="no")
    assert "(there: main)" in refusal(branch="no", repository=address)
    assert "means nothing to a worker elsewhere" in refusal(repository="../hub.git")
    assert "means nothing to a worker elsewhere" in refusal(repository="--upload-pack=id")
    said = refusal(repository="https://me:pass-word@git.example.org/a.git")
    assert "holds a password" in said
    assert "pass-word" not in said
    assert "cannot be read from here" in refusal(repository=str(tmp_path / "nothing.git"))
    assert "leads out of the repository" in refusal(repository=address, directory="../x")
    assert "is relative, and with --repository it is a folder of the worker" in refusal(
        repository=address, source=Path("videos")
    )
    assert "--recipe: 'no' is not in" in refusal(repository=address, recipe="no")
    git(shipped, "checkout", "-q", "--detach")
    assert "--branch: HEAD is detached" in refusal()
    assert refusal().endswith("give --branch NAME")
    assert deployment_request(shipped, branch="main")[0].branch == "main"


def test_a_deployment_for_elsewhere_names_no_path_of_this_machine(shipped: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub.git"
    git(tmp_path, "clone", "-q", "--bare", str(shipped), str(hub))
    order, notes = deployment_request(
        shipped,
        repository=f"file://{hub}",
        source=Path("/of/the/worker"),
        name="gpus",
        pool="gpus",
        timezone="Europe/Berlin",
    )
    (note,) = notes
    assert "the DVC remote in" in note
    assert "../.vidbridge/remote, a folder of each clone" in note
    table = prefect_file(shipped, order, None)
    (one,) = table["deployments"]
    assert str(shipped) not in json.dumps(table)
    assert one["pull"] == []
    assert one["work_pool"] == {"name": "gpus"}
    assert one["schedules"] == [{"cron": "0 3 * * *", "timezone": "Europe/Berlin"}]
    expected = {
        "repository": f"file://{hub}",
        "directory": None,
        "branch": "main",
        "source": "/of/the/worker",
        "recipe": None,
    }
    assert one["parameters"] == expected | {"promote": True}


def test_a_schedule_that_was_paused_stays_paused(shipped: Path) -> None:
    def active(standing: PausedState | None, **order: str) -> list[bool]:
        table = prefect_file(shipped, DeploymentRequest("main", "nightly", **order), standing)  # type: ignore[arg-type]
        return [schedule.get("active", True) for schedule in table["deployments"][0]["schedules"]]

    paused = PausedState(False, (("0 3 * * *", "UTC", False),))
    assert active(None) == [True]
    assert active(paused) == [False]
    assert active(paused, cron="0 5 * * *", timezone="Europe/Berlin") == [False], "another hour is no resumption"
    assert active(PausedState(False, ())) == [True]
    several = PausedState(True, (("0 3 * * *", "UTC", False), ("0 4 * * *", "UTC", True)))
    assert active(several) == [False]
    assert active(several, cron="0 4 * * *") == [True]
    assert prefect_file(shipped, DeploymentRequest("main", "nightly"), several)["deployments"][0]["paused"] is True


def test_which_pools_let_a_run_set_nothing() -> None:
    from prefect.workers.process import ProcessWorker

    ours = json.loads((ROOT / "infra/work-pool.json").read_text())
    assert pools.is_locked(ours)
    assert pools.is_locked({"job_configuration": {"image": "team/videos:3", "token": "{{ prefect.blocks.secret.a }}"}})
    assert not pools.is_locked(ProcessWorker.get_default_base_job_template())
    assert not pools.is_locked({"job_configuration": {"env": {"A": "b"}}})
    assert not pools.is_locked({"job_configuration": {"command": "{{command}}"}})
    assert subprocess.list2cmdline(deploy.worker_arguments("a b")) == 'prefect worker start --pool "a b" --type process'


def test_the_flow_has_no_parameter_that_says_where_it_works() -> None:
    """Prefect's server lets parameters through that no flow has; the run then fails before the flow
    begins (see the slow test).
    """
    from prefect.exceptions import SignatureMismatchError

    from flows.scheduled import scheduled

    with pytest.raises((SignatureMismatchError, TypeError)):
        scheduled.validate_parameters({"work_dir": "/tmp/x"})
