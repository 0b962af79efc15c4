"""`vidbridge serve` as processes of its own, what is sent to it, and what is asked of its
answers."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from flows.processes.prefect_server import free_port
from stages.lib.video.encoder import ffmpeg_binary
from stages.runtime.paths import DATABASE
from tests.support.projects.serving import (
    QUESTION,
    Said,
    environment,
    make_video_folder,
    request,
)

#: What a poisoned registry entry names: MLflow runs the code of such a folder when it loads it.
POISON = """flavors:
  python_function:
    loader_module: mlflow.pyfunc.model
    model_code_path: code.py
    python_version: 3.11.0
"""
#: Bytes that a server's processes may grow by while it refuses, or reads what is shown small. 0.1
#: grew by thousands of megabytes.
FEW_BYTES = 500 << 20


@dataclass(frozen=True)
class Server:
    """A server that runs as its own processes."""

    process: subprocess.Popen[bytes]
    port: int
    printed: Path
    log: Path
    canary: Path

    def ask(self, body: bytes, headers: Mapping[str, str] | None = None) -> Said:
        return request(self.port, "POST", "/invocations", body, headers)

    def processes(self) -> list[psutil.Process]:
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def growth(self, work: Callable[[], Any]) -> tuple[Any, int]:
        """What comes of some work, and by how many bytes the server's processes grew meanwhile.
        Shared pages count once."""
        before = peak = self._bytes()
        with ThreadPoolExecutor(1) as beside:
            done = beside.submit(work)
            while not done.done():
                peak = max(peak, self._bytes())
                time.sleep(0.1)
        return done.result(), peak - before

    def _bytes(self) -> int:
        total = 0
        for process in self.processes():
            with contextlib.suppress(OSError, psutil.Error):
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
        return total


def make_large_videos(place: Path) -> Path:
    """The folder of :func:`make_video_folder` and in it files of a few kilobytes whose frames take
    31 MB each."""
    folder = make_video_folder(place)
    black = ["-f", "lavfi", "-i", "color=black:s=3200x3200:r=25:d=0.4", "-c:v", "libx264", "-preset", "ultrafast"]
    subprocess.run([ffmpeg_binary(), "-v", "error", *black, str(folder / "m0.mp4")], check=True, timeout=120)
    for number in range(1, 5):
        shutil.copyfile(folder / "m0.mp4", folder / f"m{number}.mp4")
    return folder


def make_poison(folder: Path) -> Path:
    """Lay code into the folder that MLflow runs when it loads it; what that code would write."""
    canary = folder / "ran"
    (folder / "MLmodel").write_text(POISON)
    (folder / "code.py").write_text(
        f"import os, pathlib\npathlib.Path({str(canary)!r}).write_text(os.environ['VIDBRIDGE_JUDGE_KEY'])\n"
    )
    return canary


@contextlib.contextmanager
def registry_says(project: Path, column: str, value: str) -> Iterator[None]:
    """What the registry names as the place of version 1, changed by whoever can write to it."""
    with contextlib.closing(sqlite3.connect(project / DATABASE)) as database:
        change = f"UPDATE model_versions SET {column} = ? WHERE version = 1 AND name = 'vidbridge-tiny'"
        (before,) = database.execute(
            f"SELECT {column} FROM model_versions WHERE version = 1 AND name = 'vidbridge-tiny'"
        ).fetchone()
        with database:
            database.execute(change, [value])
        try:
            yield
        finally:
            with database:
                database.execute(change, [before])


def ended_cleanly(server: Server, project: Path) -> None:
    """End it as a person does; none of its processes and files are left, and it ran nothing of the
    folder with code."""
    processes = server.processes()
    assert len(processes) > 4
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)
    assert "stopped" in server.printed.read_text()
    assert psutil.wait_procs(processes, timeout=10)[1] == []
    assert request(server.port, "GET", "/ping").status == 0
    assert list((project / ".vidbridge").glob("serving-*")) == []
    assert "Traceback" not in server.log.read_text()
    assert not server.canary.exists(), f"{server.canary}: code of the registry's folder ran"


@contextlib.contextmanager
def served(project: Path, videos: Path, folder: Path) -> Iterator[Server]:
    """The command, as a person starts it; where MLflow would download the version from is
    ``folder``, with code. It leaves nothing."""
    canary = make_poison(folder)
    port, printed = free_port(), folder / "printed"
    command = [sys.executable, "-m", "flows.cli.main", "serve", "--videos", str(videos), "--port", str(port)]
    env = environment(project, VIDBRIDGE_SERVE_MAX_MB="2", VIDBRIDGE_JUDGE_KEY="CANARY")
    # Where tests run in the background of a shell, an interrupt is ignored, and what they start
    # inherits that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with printed.open("wb") as out, registry_says(project, "storage_location", str(folder)):
        process = subprocess.Popen(
            command, cwd=project, env=env, stdout=out, stderr=out, start_new_session=True, preexec_fn=heard
        )
        try:
            deadline = time.monotonic() + 240
            while "\ntry: " not in printed.read_text():
                assert process.poll() is None, printed.read_text()
                assert time.monotonic() < deadline, printed.read_text()
                time.sleep(0.1)
            server = Server(process, port, printed, project / ".vidbridge/serving.log", canary)
            yield server
            ended_cleanly(server, project)
        finally:
            if process.poll() is None:
                # Its guard then ends what it started.
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def rows(*asked: Mapping[str, Any]) -> bytes:
    return json.dumps({"dataframe_records": [{"question": QUESTION, **row} for row in asked]}).encode()


def parquet() -> bytes:
    """Three kilobytes that become 1.6 GB of text."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"question": ["A" * 200_000] * 200})
    written = io.BytesIO()
    with pq.ParquetWriter(written, table.schema, compression="zstd") as writer:
        for _ in range(40):
            writer.write_table(table)
    return written.getvalue()


def refused(said: Said, status: int, says: str) -> None:
    assert said.status == status, said
    assert says in said.document["message"]
    # Nothing of this machine, and no value of theirs in its length.
    assert len(said.text) < 600
    for word in ("Traceback", "stack_trace", "site-packages", str(Path(sys.prefix)), '.py"'):
        assert word not in said.text


def streamed(server: Server, chunk: bytes, count: int) -> bytes:
    """What is answered to a body in chunks that does not say how long it will be."""
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        head = f"POST /invocations HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        line.settimeout(10)
        with contextlib.suppress(OSError):
            for _ in range(count):
                line.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        with contextlib.suppress(OSError):
            return line.recv(4000)
        return b""
