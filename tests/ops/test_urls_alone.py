"""A model for those who have a registry's URL, a remote's URL and this package: no clone, no git,
no right to write to the registry."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from stages.tracking.registry.register import register
from stages.tracking.registry.versions import CHAMPION
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.checkout import ROOT
from tests.support.projects.repository import commit
from tests.support.projects.serving import QUESTION, RED, make_project
from tests.support.servers import hosts
from tests.support.servers.hosts import Host, make_hosts
from tests.support.servers.stack import BUCKET, Stack

MODEL = "vidbridge-anywhere"
URI = f"models:/{MODEL}@{CHAMPION}"
REMOTE = f"s3://{BUCKET}/anywhere"
READER = ("anywhere-reader", "password-of-that-reader")

#: A row of Video-MME's.
ASKED = {
    "video_id": "001",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Technology",
    "url": "https://example.org",
    "task_type": "Counting Problem",
    "question": QUESTION,
    "options": ["A. a red bar", "B. a green bar", "C. a blue bar", "D. none of them"],
    "answer": "A",
}
#: What the documentation promises of two lines in an empty folder.
LOAD = f"""
import sys, mlflow
model = mlflow.pyfunc.load_model({URI!r})
print(model.predict([{{"question": {QUESTION!r}, "video_base64": sys.stdin.readline()}}])[0]["answer"])
"""


@pytest.fixture(scope="module")
def videos(servers: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Registered and pushed to the team's servers, and its project gone; the videos stay."""
    root = tmp_path_factory.mktemp("maker") / "project"
    kept = root.parent / "videos"
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("VIDBRIDGE_", "MLFLOW_", "GIT_", "AWS_")):
                patch.delenv(name)
        make_project(root)
        params = root / "params.yaml"
        params.write_text(re.sub(r"registered_model: \S+", f"registered_model: {MODEL}", params.read_text()))
        commit(root, "a model of its own")
        for name, value in servers.env(remote=REMOTE).items():
            patch.setenv(name, value)
        assert [version.model for version in register(Session(root)).created] == [MODEL]
        open_client(root).set_registered_model_alias(MODEL, CHAMPION, "1")
    shutil.move(root / "videos", kept)
    shutil.rmtree(root)
    servers.add_user(*READER)
    return kept


@pytest.fixture
def readers(servers: Stack, videos: Path, tmp_path: Path) -> list[Host]:
    """Two hosts with the package, an account that may only read, and one cache folder between
    them."""
    if why := hosts.missing():
        pytest.skip(why)
    shared = tmp_path / "shared"
    shared.mkdir()
    made = make_hosts(
        tmp_path, servers.env(*READER, remote=REMOTE) | {"VIDBRIDGE_CACHE": str(shared / "cache")}, "a", "b"
    )
    for host in made:
        for package in ("flows", "stages"):
            shutil.copytree(ROOT / package, host.project / package)
        # Where an installed package has its recipes.
        shutil.copytree(ROOT / "infra/recipes", host.project / "flows/shipped/recipes")
        (host.folder / "empty").mkdir()
        shutil.copytree(videos, host.folder / "videos")
    return made


def without_git(host: Host, *command: str) -> list[str]:
    """The command with this package on its path, and nothing else."""
    return ["env", f"PATH={host.bin}", *command]


def call(host: Host, *command: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return host.call(*without_git(host, *command), cwd=host.folder / "empty", timeout_s=300, **changes)


def succeed(host: Host, *command: str, **changes: str) -> str:
    done = call(host, *command, **changes)
    assert done.returncode == 0, f"{shlex.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def test_two_urls_and_an_empty_folder_are_enough(readers: list[Host], servers: Stack) -> None:
    first, second = readers
    assert f"{MODEL} version 1 (champion)" in succeed(first, "vidbridge", "explain", URI)
    assert "nothing was decided yet" in succeed(first, "vidbridge", "history", "--model", MODEL)
    # Both at once, into one folder that is empty.
    started = [
        host.start(
            *without_git(
                host, "vidbridge", "predict", str(host.folder / "videos/red.mp4"), "-q", QUESTION, "--model", URI
            ),
            cwd=host.folder / "empty",
        )
        for host in readers
    ]
    for process in started:
        said, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-3000:]
        assert RED["answer"] in said
    # The store is cut off: what was fetched is enough.
    with servers.s3.away("cut off", 0):
        said = succeed(
            second, "vidbridge", "predict", str(second.folder / "videos/red.mp4"), "-q", QUESTION, VIDBRIDGE_MODEL=MODEL
        )
        assert RED["answer"] in said
    written = succeed(first, "vidbridge", "export", str(first.folder / "exported"), "--model", f"models:/{MODEL}/1")
    assert "version 1" in written
    assert (first.folder / "exported/model.safetensors").stat().st_nlink == 1
    assert not list((first.folder / "empty").iterdir())
    assert not list(first.home.rglob("*.safetensors"))


def test_a_benchmark_is_put_to_it(readers: list[Host], servers: Stack) -> None:
    """By somebody who may write runs; the prompt is the model's own, so nothing of a project is
    needed."""
    host = readers[1]
    rows = [ASKED | {"videoID": name, "question_id": name} for name in ("red", "green", "blue")]
    (host.folder / "videomme.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [
        "vidbridge",
        "evaluate",
        "--benchmark",
        "video-mme",
        "--annotations",
        str(host.folder / "videomme.jsonl"),
    ]
    command += [
        "--videos",
        str(host.folder / "videos"),
        "--out",
        str(host.folder / "out"),
        "--model",
        URI,
        "--no-controls",
    ]
    said = succeed(host, *command, **servers.env(remote=REMOTE))
    assert "3 of 3 questions answered" in said
    assert not list((host.folder / "empty").iterdir())
    own = [
        "vidbridge",
        "evaluate",
        "--benchmark",
        "mix-vid-qa-test",
        "--annotations",
        "x",
        "--out",
        "out",
        "--model",
        URI,
    ]
    refused = call(host, *own)
    assert refused.returncode == 2
    assert "asks about edits of a project's own clips" in refused.stderr


def test_it_loads_through_mlflow(readers: list[Host]) -> None:
    host = readers[0]
    blue = base64.b64encode((host.folder / "videos/blue.mp4").read_bytes()).decode()
    program = host.folder / "load.py"
    program.write_text(f"if __name__ == '__main__':\n{LOAD.replace(chr(10), chr(10) + '    ')}", encoding="utf-8")
    done = subprocess.run(
        host._inside(without_git(host, "python", str(program)), host.folder / "empty"),
        env=host.environ(),
        input=blue,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "a blue bar"


def test_a_server_in_an_empty_folder_answers(readers: list[Host]) -> None:
    host = readers[1]
    log = host.folder / "serve.log"
    command = without_git(host, "vidbridge", "serve", "--model", URI, "--videos", str(host.folder / "videos"))
    process = host.start(*command, cwd=host.folder / "empty", log=log)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"answers at (http://127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        body = json.dumps({"dataframe_records": [{"question": QUESTION, "video": "red.mp4"}]})
        sent = {"Content-Type": "application/json"}
        said = httpx.post(f"{found[1]}/invocations", content=body, headers=sent, timeout=60)
        assert said.json() == {"predictions": [RED]}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    assert not list((host.folder / "empty").iterdir())


@pytest.mark.parametrize(
    ("remote", "sentence"),
    [("", "VIDBRIDGE_DVC_REMOTE is not set"), (f"s3://{BUCKET}/nothing", "nor, undamaged, in the remote")],
)
def test_what_is_missing_is_one_line(readers: list[Host], remote: str, sentence: str) -> None:
    out = readers[0].folder / "exported"
    done = call(
        readers[0], "vidbridge", "export", str(out), "--model", f"models:/{MODEL}/1", VIDBRIDGE_DVC_REMOTE=remote
    )
    assert done.returncode == 1, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not out.exists()
