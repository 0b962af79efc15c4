"""Fetching on another host, pod or branch: what the remote holds is fetched, and only the rest
runs.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from dvc.stage.cache import _get_cache_hash
from dvc_http import HTTPFileSystem

from flows.content.remote import SEEN, push_runs
from flows.errors import DvcError
from flows.repro import clone, reproduce
from flows.repro.plan import TARGET, make_plan
from flows.repro.steps import InRemote, held, verify_answer
from stages.lib.annotations.links import Links
from stages.tracking.lineage.commits import record_commit
from stages.tracking.lineage.listing import ListError
from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.lineage.opening import open_content
from stages.tracking.lineage.remote import AccessRefused, probe
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.session import Session
from tests.support.processes.commands import vidbridge
from tests.support.projects.flow import states, why
from tests.support.projects.repository import edit, git
from tests.support.surroundings import put


@pytest.fixture(scope="module")
def pushed(done_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Remote and repository of host A after its run: the folder that holds both."""
    place = tmp_path_factory.mktemp("pushed")
    root = place / "project"
    shutil.copytree(done_template, root, symlinks=True)
    edit(root / ".dvc/config", "url = ../.vidbridge/remote", f"url = {place / 'remote'}")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "a run")
    with open_content(root) as content:
        content.push([out for record in read_lock(root).values() for out in record.outs.values()])
    assert push_runs(Session(root))[0] == 12
    assert push_runs(Session(root)) == (0, ())
    return place


@pytest.fixture
def host_b(pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fresh clone on a host that never ran anything, with its own copy of the remote to damage."""
    shutil.copytree(pushed / "remote", tmp_path / "remote")
    root = tmp_path / "b"
    git(tmp_path, "clone", "-q", str(pushed / "project"), str(root))
    edit(root / ".dvc/config", str(pushed / "remote"), str(tmp_path / "remote"))
    monkeypatch.chdir(root)
    return root


def learn_faster(root: Path, rate: str = "3.0e-4") -> None:
    head, general = (root / "params.yaml").read_text().split("  general:", 1)
    (root / "params.yaml").write_text(
        head + "  general:" + re.sub(r"learning_rate: \S+", f"learning_rate: {rate}", general, count=1)
    )


@pytest.mark.slow
def test_a_fresh_clone_runs_nothing_and_fetches_what_it_shows(host_b: Path) -> None:
    plan = make_plan(host_b)
    assert plan.to_run == ()
    assert {step.name for step in plan.to_fetch} == {
        "baselines", "evaluate@base", "evaluate@cold-start", "evaluate@bridge", "evaluate@general", "summary"
    }  # fmt: skip
    assert {step.name for step in plan.left} == {
        "corpus",
        "ingest",
        "base",
        "sft@cold-start",
        "grpo@bridge",
        "grpo@general",
    }
    files, megabytes = held(plan.to_fetch)
    assert (files, megabytes > 0) == (6, True)
    said: list[str] = []
    after = reproduce.bring(host_b, plan, said.append)
    assert after.empty
    assert said[0].startswith("fetching 6 files, ")
    assert any(line.startswith("fetched 6 of 6 files, ") for line in said), said
    assert (host_b / "reports/files.txt").read_text() == "summary"
    assert not (host_b / "models").exists()
    # Known from what was seen: the remote is not asked again.
    (host_b.parent / "remote").rename(host_b.parent / "away")
    assert make_plan(host_b).empty
    (host_b / ".vidbridge" / SEEN).unlink()
    offline = make_plan(host_b)
    assert {step.name for step in offline.to_run} >= {"corpus", "grpo@general"}
    with pytest.raises(
        DvcError, match=rf"{host_b.parent}/remote/files/md5 is not there; is it mounted\? .* mkdir -p .*: corpus, "
    ):
        verify_answer(offline)
    away = replace(plan.to_fetch[0], remote=InRemote(("0" * 32,), 1, 4))
    with pytest.raises(TrackingError, match=r"fetching stopped: .* is it mounted"):
        reproduce.fetch(host_b, (away,), print)


def test_one_parameter_runs_its_stage_and_what_follows_and_its_inputs_are_fetched(host_b: Path) -> None:
    # An earlier run's lock with both sides of a merge in it stops no later run, and is named.
    lock = (host_b / "dvc.lock").read_text()
    (host_b / "dvc.lock").write_text(f"<<<<<<< HEAD\n=======\n>>>>>>> other\n{lock}")
    git(host_b, "update-ref", "refs/remotes/origin/runs/bad", record_commit(host_b, "bad"))
    assert clone.publish(host_b, git(host_b, "rev-parse", "HEAD")) is None, "no branch that is built on it"
    learn_faster(host_b)
    plan = clone.choose_lock(host_b, TARGET)
    assert re.match(r"dvc\.lock of origin/runs/bad is not used: .*merge conflict in dvc\.lock", plan.notes[-1])
    assert (host_b / "dvc.lock").read_text() == lock
    assert [step.name for step in plan.to_run] == ["grpo@general", "evaluate@general", "summary"]
    assert "grpo@bridge" in {step.name for step in plan.to_fetch}
    assert "ingest" in {step.name for step in plan.left}
    assert why(host_b, "grpo@general")[0].startswith("params grpo.general.learning_rate: ")


@pytest.mark.slow
def test_without_a_lock_the_remotes_run_cache_knows_what_ran_elsewhere(pushed: Path, host_b: Path) -> None:
    (host_b / "dvc.lock").unlink()
    # Corpus and clips lie nowhere but in the remote: the keys come from hashes, not from files.
    plan = make_plan(host_b)
    assert plan.to_run == ()
    assert "ran before elsewhere with just this (never ran)" in why(host_b, "grpo@general")
    after = reproduce.bring(host_b, plan, lambda line: None)
    assert after.empty
    assert read_lock(host_b) == read_lock(pushed / "project")
    assert (host_b / "scores/general/scores.json").is_file()


@pytest.mark.slow
def test_an_object_that_the_remote_lost_or_spoilt_is_a_warning_and_its_stage_runs(host_b: Path) -> None:
    remote = host_b.parent / "remote"
    lock = yaml.safe_load((host_b / "dvc.lock").read_text())
    names = {}
    for stage in ("evaluate@base", "baselines"):
        oid = lock["stages"][stage]["outs"][0]["md5"]
        listed = (remote / "files/md5" / oid[:2] / oid[2:]).read_text()
        md5 = re.search(r'"md5": "([0-9a-f]{32})"', listed)
        assert md5
        names[stage] = remote / "files/md5" / md5[1][:2] / md5[1][2:]
    names["evaluate@base"].unlink()
    names["baselines"].chmod(0o644)
    names["baselines"].write_text("spoilt")
    said: list[str] = []
    after = reproduce.bring(host_b, make_plan(host_b), said.append)
    assert sum("warning: " in line and "so " in line and "will run" in line for line in said) == 2
    assert {step.name for step in after.to_run} == {"evaluate@base", "baselines", "summary"}
    assert "missing or damaged in the remote" in next(
        step.why[0] for step in after.steps if step.name == "evaluate@base"
    )
    assert (host_b / "scores/bridge/scores.json").is_file()
    assert not (host_b / "scores/base").exists()


def test_entries_of_the_run_cache_are_what_their_names_say_or_are_not_used(host_b: Path) -> None:
    (host_b / "dvc.lock").unlink()
    remote = host_b.parent / "remote"
    for file in (remote / "runs").glob("*/*/*"):
        entry = yaml.safe_load(file.read_text())
        if entry["outs"][0]["path"] == "scores/baselines":
            # The key still fits, since of the outs it knows the paths only.
            entry["outs"][0]["md5"] = put(
                remote, b'[{"md5": "' + put(remote, b"evil").encode() + b'", "relpath": "../../evil"}]', ".dir"
            )
            file.chmod(0o644)
            file.write_text(yaml.safe_dump(entry))
            # One who may write there can give it the name that fits, too.
            (file.parent / _get_cache_hash(entry)).write_text(yaml.safe_dump(entry))
    plan = make_plan(host_b)
    assert [step.name for step in plan.to_run] == ["baselines", "summary"]
    first, second = sorted(plan.notes, key=len)
    assert re.match(
        r"run cache: entry of the remote \S+ of stage baselines: is not what its name says; not used", first
    )
    assert "may leave its folder" in second


def test_a_poisoned_list_that_only_the_remote_has_places_nothing(host_b: Path) -> None:
    evil = put(host_b.parent / "remote", b"evil")
    oid = put(host_b.parent / "remote", json.dumps([{"md5": evil, "relpath": "../../evil"}]).encode(), ".dir")
    (step,) = (step for step in make_plan(host_b).to_fetch if step.name == "baselines")
    step = replace(step, remote=InRemote((oid,), 1, 4))
    with pytest.raises(ListError, match="may leave its folder"):
        reproduce.fetch(host_b, (step,), print)
    assert not (host_b.parent / "evil").exists()
    assert not (host_b / "scores").exists()


@pytest.mark.slow
def test_a_finished_run_is_registered_and_handed_on_and_taken_over_by_another_host(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No stage runs, so no Prefect server starts; each host has a registry of its own here."""
    git(tmp_path, "init", "-q", "--bare", "hub.git")
    edit(done / ".dvc/config", "url = ../.vidbridge/remote", f"url = {tmp_path / 'remote'}")
    git(done, "remote", "add", "origin", str(tmp_path / "hub.git"))
    git(done, "commit", "-qam", "a remote")
    git(done, "push", "-q", "origin", "main")
    said = vidbridge("run", "--push", cwd=done)
    assert said.returncode == 0, said.stderr
    assert "nothing had to run, and the registry lacked what dvc.lock holds:" in said.stdout
    assert "12 entries of the run cache are new in the remote" in said.stdout
    assert "pushed: dvc.lock is on branch runs/" in said.stdout
    assert "vidbridge promote" in said.stdout
    again = vidbridge("run", "--push", cwd=done, MLFLOW_TRACKING_URI="")
    assert again.returncode == 0, again.stderr
    assert "pushed" not in again.stdout
    promoted = vidbridge("promote", cwd=done)
    assert "is champion" in promoted.stdout, promoted.stdout + promoted.stderr
    assert "vidbridge promote" not in vidbridge("run", cwd=done).stdout
    root = tmp_path / "b"
    git(tmp_path, "clone", "-q", str(tmp_path / "hub.git"), str(root), "--branch", "main")
    monkeypatch.chdir(root)
    said = vidbridge("run", cwd=root)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "0 to run, 6 to fetch from the remote (6 files, " in said.stdout
    assert "left in the remote: " in said.stdout
    assert "0.700" in said.stdout
    assert not (root / ".vidbridge/prefect").exists()
    # The run's branch holds the same lock, by content; a promotion here finds it.
    git(root, "fetch", "-q", "origin", "refs/heads/runs/*:refs/remotes/origin/runs/*")
    assert "is champion" in vidbridge("promote", cwd=root).stdout


@pytest.mark.slow
def test_a_tracked_source_is_fetched_when_ingest_has_to_run(host_b: Path) -> None:
    oid = read_lock(host_b)["corpus"].outs["data/corpus"]
    videos = {"outs": [{"md5": oid, "path": "videos", "hash": "md5", "nfiles": 1, "size": 6}]}
    (host_b / "videos.dvc").write_text(yaml.safe_dump(videos))
    edit(host_b / "params.yaml", "source: data/corpus", "source: videos")
    plan = make_plan(host_b)
    assert plan.to_run[0].name == "ingest"
    assert "videos.dvc" in {step.name for step in plan.to_fetch}
    after = reproduce.bring(host_b, plan, print)
    assert (host_b / "videos/files.txt").read_text() == "corpus"
    assert "videos.dvc" not in {step.name for step in after.steps}


def test_what_a_server_refuses_to_show_is_not_said_to_be_missing() -> None:
    status = 404

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    fs = HTTPFileSystem()
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/remote"
            probe(fs, url)
            for status in (401, 403):
                assert not fs.exists(f"{url}/files/md5/00/0"), "so DVC says"
                with pytest.raises(AccessRefused, match=f"HTTP status {status}"):
                    probe(fs, url)
        finally:
            server.shutdown()
            fs.fs.close_session(fs.fs.loop, fs.fs._session)


@pytest.mark.slow
def test_a_remote_that_does_not_answer_is_a_note_and_nothing_is_trained_again(
    host_b: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDBRIDGE_DVC_REMOTE", "http://127.0.0.1:9/remote")
    plan = make_plan(host_b)
    assert "remote 'vidbridge-environment' (http://127.0.0.1:9/remote): " in plan.notes[-1]
    assert "sft@cold-start" in plan.unanswered
    with pytest.raises(DvcError, match=r"it may hold what is planned to run here: corpus, .*take another remote"):
        verify_answer(plan)


def test_what_the_work_tree_holds_of_another_run_gives_way_and_an_edit_does_not(done: Path) -> None:
    before = (done / "dvc.lock").read_bytes()
    lock = yaml.safe_load(before)
    listed = b'[{"md5": "%s", "relpath": "files.txt"}]' % put(done / ".dvc/cache", b"of a branch").encode()
    lock["stages"]["summary"]["outs"][0]["md5"] = put(done / ".dvc/cache", listed, ".dir")
    (done / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert states(done)["summary"] == "restore"
    assert reproduce.bring(done, make_plan(done), print).empty
    assert (done / "reports/files.txt").read_text() == "of a branch"
    (done / "dvc.lock").write_bytes(before)
    (done / "reports/files.txt").unlink()
    (done / "reports/files.txt").write_text("mine")
    assert why(done, "summary") == ("reports was changed by hand",)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_links_into_dvcs_cache_are_the_files_themselves(done: Path, tmp_path: Path, elsewhere: bool) -> None:
    """`cache.type symlink`, and a cache outside the project: what DVC advises for a shared one."""
    if elsewhere:
        (done / ".dvc/cache").rename(tmp_path / "cache")
    local = "[cache]\n    type = symlink\n" + (f"    dir = {tmp_path / 'cache'}\n" if elsewhere else "")
    (done / ".dvc/config.local").write_text(local)
    shutil.rmtree(done / "models")
    shutil.rmtree(done / "data")
    assert reproduce.bring(done, make_plan(done), print).empty
    assert (done / "models/bridge/final/config.json").is_symlink()
    assert make_plan(done).empty
    (source := done / "data/clips/annotations.jsonl").write_text('{"video": "files.txt"}\n')
    assert not Links(source.parent).lead_out(source.parent / "files.txt")
    (source.parent / "secret.txt").symlink_to("/etc/hostname")
    assert Links(source.parent).lead_out(source.parent / "secret.txt")


@pytest.mark.parametrize("variable", ["DVC_SYSTEM_CONFIG_DIR", "DVC_GLOBAL_CONFIG_DIR"])
def test_a_cache_that_dvcs_own_settings_of_the_machine_name_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for folder in ("settings", "cache", "project/.dvc", "project/videos"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "settings/config").write_text(f"[cache]\n    dir = {tmp_path / 'cache'}\n")
    (tmp_path / "cache/ab").touch()
    (tmp_path / "project/videos/a.mp4").symlink_to(tmp_path / "cache/ab")
    found = tmp_path / "project/videos/a.mp4"
    assert Links(found.parent).lead_out(found)
    monkeypatch.setenv(variable, str(tmp_path / "settings"))
    assert not Links(found.parent).lead_out(found)
