"""A small project with one real registered model: a tiny Qwen2.5-VL that has learned to name a
video's colour. For what is done with versions.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml

from stages.domain.core.frames import Frames
from stages.domain.core.prompts import render_prompt
from stages.lib.video.encoder import ffmpeg_binary
from stages.lib.video.loader import load_video
from stages.params import load_params
from stages.runtime.paths import DATABASE
from stages.tools.serving.app import ServingApp
from stages.tools.serving.protocol import BoundedProtocol
from stages.tools.serving.server import Refusal
from stages.tools.serving.videos import Job, decode, out_of_memory
from stages.tracking.registry.register import register
from stages.tracking.registry.versions import CHAMPION
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.checkout import ROOT
from tests.support.projects.repository import commit, git
from tests.support.projects.small import dvc
from tests.support.surroundings import forget
from tests.support.training.tiny import COLOURS, REPLIES, save_overfitted

CLIP = ROOT / "tests/data/clips/bigbuckbunny.mp4"
MODEL = "vidbridge-tiny"
QUESTION = "what colour is it ?"
URI = f"models:/{MODEL}@{CHAMPION}"
ROW = {"question": QUESTION, "video": "deep/red.mp4"}
RED = {"thinking": "it is red", "answer": "a red bar", "reply": "<think>it is red</think><answer>a red bar</answer>"}


def make_videos(folder: Path) -> None:
    """`red.mp4`, `green.mp4` and `blue.mp4`: two seconds of it."""
    folder.mkdir(parents=True)
    for colour in COLOURS:
        source = ["-f", "lavfi", "-i", f"color={colour}:size=32x32:rate=8:duration=2", "-pix_fmt", "yuv420p"]
        subprocess.run([ffmpeg_binary(), "-v", "error", *source, str(folder / f"{colour}.mp4")], check=True, timeout=60)


def make_video_folder(place: Path) -> Path:
    """The folder ``open`` that a server reads from, with links, and beside it a file that it must
    not read."""
    folder = place / "open"
    make_videos(folder / "deep")
    shutil.copyfile(CLIP, folder / "rabbit.mp4")
    shutil.copyfile(CLIP, place / "private.mp4")
    (folder / "link.mp4").symlink_to(place / "private.mp4")
    (folder / "inner.mp4").symlink_to(folder / "deep/red.mp4")
    (folder / "out").symlink_to(place)
    (folder / "text.mp4").write_text("no video at all\n" * 100)
    return folder


def save_taught_model(videos: Path, folder: Path) -> None:
    """Save a tiny model that says what colour the videos of `make_videos` are."""
    params = load_params(ROOT / "params.yaml")
    prompt = render_prompt(QUESTION, params.prompt)
    shown = [(prompt, [load_video(videos / f"{colour}.mp4", params.synthesize.sampled_frames)]) for colour in COLOURS]
    save_overfitted(shown, REPLIES, folder)


def make_project(root: Path) -> Path:
    """git, DVC with a remote, one stage that gives a model, version 1 of it registered and
    champion."""
    root.mkdir()
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    (root / ".gitignore").write_text("/.vidbridge/\n/models/\n/made/\n/videos/\n")
    make_videos(root / "videos")
    save_taught_model(root / "videos", root / "made")
    copy = f"{sys.executable} -c \"import shutil; shutil.copytree('made', 'models/base/final')\""
    stage = {"cmd": copy, "deps": ["made"], "params": ["seed", "model", "prompt"], "outs": ["models/base/final"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"base": stage}}))
    git(root, "init", "-q", "-b", "main")
    dvc(root, "init", "-q")
    (root / ".dvc" / "config").write_text(
        "[core]\n    remote = local\n    analytics = false\n['remote \"local\"']\n    url = ../.vidbridge/remote\n"
    )
    dvc(root, "repro", "-q")
    commit(root, "a model")
    assert [version.number for version in register(Session(root)).created] == [1]
    open_client(root).set_registered_model_alias(MODEL, CHAMPION, "1")
    return root


@contextmanager
def as_the_project(root: Path) -> Iterator[Path]:
    """That project, as the one that commands of this process find, and nothing of the caller's own
    environment."""
    with pytest.MonkeyPatch.context() as patch:
        forget(patch, "VIDBRIDGE_", "MLFLOW_", "GIT_")
        patch.setenv("VIDBRIDGE_PROJECT", str(root))
        yield root


def environment(root: Path, **changes: str) -> dict[str, str]:
    """For a process in ``root``: nothing of the caller's own servers, this checkout's code."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VIDBRIDGE_", "MLFLOW_", "GIT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    database = f"sqlite:///{root / '.vidbridge/mlflow.db'}"
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**inherited, "PATH": path, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": database, **quiet, **changes}


def hang_on_blue(job: Job) -> Frames:
    """Reads a video as a server does, and does not come back from the blue one."""
    if job.name == "blue.mp4":
        time.sleep(600)
    return decode(job)


def hungry_on_blue(job: Job) -> Frames:
    """Reads a video as a server does; the blue one takes more memory than there is."""
    if job.name == "blue.mp4":
        try:
            bytearray(600 << 20)
        except MemoryError as error:
            raise out_of_memory(job.name) from error
    return decode(job)


@dataclass(frozen=True)
class Said:
    """An answer over HTTP; status 0 where nobody listens."""

    status: int
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def document(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Running:
    """The application at a port of a loopback address."""

    host: str
    port: int

    def __call__(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Said:
        return request(self.port, method, path, body, headers, self.host)


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
) -> Said:
    """Ask a server of this machine. A body is JSON unless the headers say otherwise."""
    connection = http.client.HTTPConnection(host, port, timeout=120)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        return Said(reply.status, reply.read().decode(), {name.lower(): value for name, value in reply.getheaders()})
    except ConnectionError:
        return Said(0)
    finally:
        connection.close()


def post(port: int, rows: Sequence[Mapping[str, Any]]) -> tuple[int, Any]:
    """Status and document of a request with these rows."""
    said = request(port, "POST", "/invocations", json.dumps({"dataframe_records": rows}).encode())
    return said.status, json.loads(said.text or "null")


@contextmanager
def running(model: Any, key: str | None, host: str) -> Iterator[Running]:
    """The application around a model that is loaded, at a free port of a loopback address, in a
    thread of this process."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.bind((host, 0))
        port = listening.getsockname()[1]
        app = ServingApp(model, key, frozenset(("localhost",)))
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield Running(host, port)
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def loaded_champion(project: Path, videos: Path) -> Iterator[Any]:
    """What `mlflow.pyfunc.load_model` makes of the alias, with this folder of videos and 2 MB a
    video."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDBRIDGE_SERVE_VIDEOS", str(videos))
        patch.setenv("VIDBRIDGE_SERVE_MAX_MB", "2")
        # The registry follows; one that is set by itself would stay for other tests.
        mlflow.set_tracking_uri(f"sqlite:///{project / DATABASE}")
        try:
            loaded = mlflow.pyfunc.load_model(URI)
            yield loaded
            loaded.unwrap_python_model().close()
        finally:
            mlflow.set_tracking_uri(None)


def ask(model: Any, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows as they come over HTTP."""
    from mlflow.pyfunc.scoring_server import infer_and_parse_data

    answered: list[dict[str, Any]] = model.predict(
        infer_and_parse_data({"dataframe_records": list(rows)}, model.metadata.get_input_schema())
    )
    return answered


def refuses_in_time(model: Any, says: str, **changes: str) -> None:
    started = time.monotonic()
    with pytest.raises(Refusal, match=says) as refused:
        ask(model, ROW | changes)
    assert refused.value.get_http_status_code() == 504
    assert time.monotonic() - started < 20
