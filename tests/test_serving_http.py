"""`vidbridge serve` over a real socket: the attacks that took 0.1's memory, its files and its log, and the commands that it prints."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
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
import pytest

from flows.cli.serve import example, serve
from flows.processes.prefect_server import free_port
from stages.lib.video.encoder import ffmpeg_binary
from stages.tracking.lineage.uri import DATABASE, TrackingError
from tests.support.serving_project import (
    QUESTION,
    RED,
    ROW,
    Said,
    as_the_project,
    environment,
    make_video_folder,
    post,
    request,
)

#: What a poisoned registry entry names: MLflow runs the code of such a folder when it loads it.
POISON = """flavors:
  python_function:
    loader_module: mlflow.pyfunc.model
    model_code_path: code.py
    python_version: 3.11.0
"""
#: Bytes that a server's processes may grow by while it refuses, or reads what is shown small. 0.1 grew by thousands of megabytes.
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
        """What comes of some work, and by how many bytes the server's processes grew meanwhile. Shared pages count once."""
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


@pytest.fixture(scope="module")
def project(serving_root: Path) -> Iterator[Path]:
    with as_the_project(serving_root) as root:
        yield root


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Also files of a few kilobytes whose frames take 31 MB each."""
    folder = make_video_folder(tmp_path_factory.mktemp("videos"))
    black = ["-f", "lavfi", "-i", "color=black:s=3200x3200:r=25:d=0.4", "-c:v", "libx264", "-preset", "ultrafast"]
    subprocess.run([ffmpeg_binary(), "-v", "error", *black, str(folder / "m0.mp4")], check=True, timeout=120)
    for number in range(1, 5):
        shutil.copyfile(folder / "m0.mp4", folder / f"m{number}.mp4")
    return folder


@pytest.fixture(scope="module")
def poison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with code, and what that code would write."""
    folder = tmp_path_factory.mktemp("poison")
    canary = folder / "ran"
    (folder / "MLmodel").write_text(POISON)
    (folder / "code.py").write_text(
        f"import os, pathlib\npathlib.Path({str(canary)!r}).write_text(os.environ['VIDBRIDGE_JUDGE_KEY'])\n"
    )
    return folder, canary


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


@pytest.fixture(scope="module")
def server(project: Path, videos: Path, poison: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The command, as a person starts it; where MLflow would download the version from is a folder with code."""
    folder, canary = poison
    port, printed = free_port(), tmp_path_factory.mktemp("printed") / "out"
    command = [sys.executable, "-m", "flows.cli.main", "serve", "--videos", str(videos), "--port", str(port)]
    env = environment(project, VIDBRIDGE_SERVE_MAX_MB="2", VIDBRIDGE_JUDGE_KEY="CANARY")
    # Where tests run in the background of a shell, an interrupt is ignored, and what they start inherits that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with printed.open("wb") as out, registry_says(project, "storage_location", str(folder)):
        process = subprocess.Popen(command, cwd=project, env=env, stdout=out, stderr=out, start_new_session=True, preexec_fn=heard)
        try:
            deadline = time.monotonic() + 240
            while "\ntry: " not in printed.read_text():
                assert process.poll() is None, printed.read_text()
                assert time.monotonic() < deadline, printed.read_text()
                time.sleep(0.1)
            yield Server(process, port, printed, project / ".vidbridge/serving.log", canary)
        finally:
            if process.poll() is None:
                # Its guard then ends what it started.
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def test_it_serves_what_is_put_together_by_content_and_runs_nothing_else(server: Server) -> None:
    said = server.printed.read_text().splitlines()
    assert said[1] == "version 1 of vidbridge-tiny (base): fetching and checking its files"
    assert said[2].startswith("loading the model; log: ")
    assert post(server.port, [ROW]) == (200, {"predictions": [RED]})
    assert not server.canary.exists()


def test_secrets_of_the_shell_do_not_reach_it(server: Server) -> None:
    assert server.processes()[0].environ()["VIDBRIDGE_JUDGE_KEY"] == "CANARY"
    for process in server.processes()[1:]:
        environ = process.environ()
        assert environ["VIDBRIDGE_SERVE_MAX_MB"] == "2"
        assert "VIDBRIDGE_JUDGE_KEY" not in environ


def test_an_alias_that_the_gate_did_not_put_there_is_told(server: Server) -> None:
    assert server.printed.read_text().startswith(
        "warning: vidbridge-tiny: the alias 'champion' is on version 1, and the gate did not"
    )


@pytest.mark.parametrize("source", ["FOLDER", "file://FOLDER", "runs:/0123/model", "http://127.0.0.1:9/model", "dvc://../x.dir"])
def test_a_poisoned_source_is_refused_and_nothing_of_it_runs(
    source: str, project: Path, poison: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, canary = poison
    monkeypatch.setenv("VIDBRIDGE_JUDGE_KEY", "CANARY")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / DATABASE}")
    with (
        registry_says(project, "source", source.replace("FOLDER", str(folder))),
        pytest.raises(TrackingError, match="model source"),
    ):
        serve(project, "1", None, "127.0.0.1", 0)
    assert not canary.exists()


def test_the_printed_command_works_in_a_shell(server: Server) -> None:
    (line,) = [line for line in server.printed.read_text().splitlines() if line.startswith("try: ")]
    done = subprocess.run(["sh", "-c", line.removeprefix("try: ")], capture_output=True, text=True, timeout=120, check=True)
    (answer,) = json.loads(done.stdout)["predictions"]
    assert set(answer) == {"thinking", "answer", "reply"}


@pytest.mark.parametrize("name", ['it\'s a "film" $(touch x) `y`.mp4', "größe %d;&.mp4"])
def test_any_name_is_quoted_for_the_shell(name: str, server: Server, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    shutil.copyfile(videos / "deep/red.mp4", tmp_path / "films" / name)
    command = example(f"http://127.0.0.1:{server.port}", tmp_path / "films", 2 << 20, keyed=False)
    # Not in the server's folder: it has arrived whole when the server says so of this very name.
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["message"] == f"video: {name!r} is no file in the server's folder; give the path of one"
    assert [path.name for path in tmp_path.iterdir()] == ["films"]


def test_the_command_names_what_can_be_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a\nb").mkdir()
    for name in (".hidden.mp4", "a\nb/a.mp4", "b.txt", os.fsdecode(b"c\xff.mp4"), "d\\.mp4"):
        (tmp_path / name).write_bytes(b"film")
    (tmp_path / "big.mp4").write_bytes(b"x" * 2000)
    (tmp_path / "a.mp4").symlink_to(tmp_path / "z.MKV")
    assert '"video_base64"' in example("http://x", tmp_path, 1000, keyed=False)
    (tmp_path / "z.MKV").write_bytes(b"film")
    assert '"video": "z.MKV"' in example("http://x", tmp_path, 1000, keyed=False)


@pytest.mark.parametrize("keyed", [False, True])
def test_without_a_folder_the_command_sends_a_video(keyed: bool, server: Server, videos: Path, tmp_path: Path) -> None:
    shutil.copyfile(videos / "deep/red.mp4", tmp_path / "clip.mp4")
    command = example(f"http://127.0.0.1:{server.port}", None, 2 << 20, keyed=keyed)
    env = {**os.environ, "VIDBRIDGE_SERVE_KEY": "0123456789abcdef"}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path, env=env)
    assert set(json.loads(done.stdout)["predictions"][0]) == {"thinking", "answer", "reply"}


def test_where_the_project_has_videos_the_command_sends_one_of_them(server: Server, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "my films").mkdir()
    shutil.copyfile(videos / "deep/red.mp4", tmp_path / "my films/one.mp4")
    command = example(f"http://127.0.0.1:{server.port}", None, 2 << 20, keyed=False, own=tmp_path / "my films")
    assert "clip.mp4" not in command
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    assert set(json.loads(done.stdout)["predictions"][0]) == {"thinking", "answer", "reply"}


def rows(*asked: Mapping[str, Any]) -> bytes:
    return json.dumps({"dataframe_records": [{"question": QUESTION, **row} for row in asked]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [ROW]},
        {"dataframe_split": {"columns": list(ROW), "data": [list(ROW.values())], "index": [0]}},
        {"instances": [ROW]},
        {"inputs": [ROW | {"options": None, "task": None}]},
        {"inputs": {name: [value] for name, value in ROW.items()}},
        {"inputs": ROW, "params": None},
    ],
)
def test_the_forms_of_mlflow_are_read(body: dict[str, Any], server: Server) -> None:
    said = server.ask(json.dumps(body).encode(), {"Content-Type": "application/json; charset=utf-8"})
    assert (said.status, said.document) == (200, {"predictions": [RED]})


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


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("application/vnd.apache.parquet", "send JSON as application/json"),
        ("text/csv", "send JSON as application/json"),
        ("", "send JSON as application/json"),
        ("application/x-" + "y" * 500, "send JSON as application/json"),
    ],
)
def test_nothing_but_json_is_read(kind: str, says: str, server: Server) -> None:
    body = parquet() if "parquet" in kind else b"question,video\nq,deep/red.mp4\n"
    assert len(body) < 30_000
    said, grew = server.growth(lambda: server.ask(body, {"Content-Type": kind}))
    refused(said, 415, says)
    assert grew < FEW_BYTES
    refused(server.ask(b"{}", {"Content-Encoding": "gzip"}), 415, "send the JSON as it is")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "body: not JSON"),
        (b"{" * 3, 400, "body: not JSON"),
        (b'{"a', 400, "a string has no end"),
        (b'"\xff"', 400, "body: not UTF-8"),
        (b"[1]", 400, "body: a list; send an object"),
        (b"{}", 400, "body: none of dataframe_records, dataframe_split, instances, inputs given"),
        ({"dataframe_records": []}, 400, "rows: 0 in one request; send 1 to 16"),
        ({"dataframe_records": [ROW] * 17}, 400, "rows: 17 in one request; send 1 to 16"),
        ({"dataframe_records": [ROW], "inputs": [ROW]}, 400, "send one of them"),
        ({"dataframe_records": [ROW], "extra": 1}, 400, "'extra' is not known; a request has one of dataframe_records"),
        ({"dataframe_records": [ROW], "params": {"temperature": 1}}, 400, "params: none are taken"),
        ({"dataframe_records": [ROW | {"max_new_tokens": 5}]}, 400, "row 0: 'max_new_tokens' is not known; a row has question"),
        ({"dataframe_records": [ROW, ROW | {"option": ["a"]}]}, 400, "row 1: 'option' is not known"),
        ({"dataframe_records": [ROW | {"k" * 100_000: 1}]}, 400, "is not known"),
        ({"dataframe_records": [ROW | {"question": 5}]}, 400, "row 0: question"),
        ({"dataframe_records": [ROW | {"question": "q" * 3_000_000}]}, 400, "row 0: question: 3,000,000 bytes"),
        ({"dataframe_records": [ROW | {"options": ["a"] * 27}]}, 400, "row 0: options"),
        ({"dataframe_records": [ROW | {"options": [{"a": 1}]}]}, 400, "row 0: options.0"),
        ({"dataframe_records": [ROW | {"video": "x" * 100_000}]}, 400, "is no file in the server's folder"),
        ({"dataframe_records": [ROW | {"video": "../private.mp4"}]}, 400, "may not leave the server's folder"),
        ({"dataframe_records": [{"question": "q", "video_base64": 5}]}, 400, "row 0: video_base64: not text"),
        ({"dataframe_records": [{"question": "q", "video_base64": "A" * 4_000_000}]}, 413, "2 MB are allowed"),
        ({"inputs": "A" * 2_000_000}, 400, "inputs: not a list of rows"),
        ({"inputs": {"question": ["a", "b"], "video": ["a"]}}, 400, "not lists of one length"),
        ({"dataframe_split": {"columns": ["question"], "data": [["a", "b"]]}}, 400, "one value a column"),
        (b'{"dataframe_records": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 413, "65,536 bytes beside its strings"),
        (b'{"dataframe_records": ' + b"[" * 500 + b"]" * 500 + b"}", 400, "brackets more than 8 deep"),
        (b'{"dataframe_records": [' + b"[]," * 1_000_000 + b"[]]}", 413, "65,536 bytes beside its strings"),
        (b'{"dataframe_records": [{"question": NaN}]}', 400, "NaN is no JSON"),
        (b'{"dataframe_records": [{"question": -Infinity}]}', 400, "-Infinity is no JSON"),
        (b'{"dataframe_records": [{"question": ' + b"9" * 5000 + b"}]}", 400, "a number of 5,000 characters"),
        (b'{"dataframe_records": [{"question": "a", "question": "b"}]}', 400, "'question' is given twice"),
        (b'{"dataframe_records": [{"question": "\\ud800", "video": "deep/red.mp4"}]}', 400, "row 0: question"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_bad_body_is_refused_with_a_sentence(body: bytes | dict[str, Any], status: int, says: str, server: Server) -> None:
    refused(server.ask(body if isinstance(body, bytes) else json.dumps(body).encode()), status, says)


def refused(said: Said, status: int, says: str) -> None:
    assert said.status == status, said
    assert says in said.document["message"]
    # Nothing of this machine, and no value of theirs in its length.
    assert len(said.text) < 600
    for word in ("Traceback", "stack_trace", "site-packages", str(Path(sys.prefix)), '.py"'):
        assert word not in said.text


def test_what_is_too_long_is_refused_while_it_comes(server: Server) -> None:
    assert server.growth(lambda: streamed(server, b"x" * (1 << 20), 400))[1] < FEW_BYTES
    assert b" 413 " in streamed(server, b"x" * (1 << 20), 40).splitlines()[0]
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        head = f"POST /invocations HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
        line.settimeout(10)
        assert b" 413 " in line.recv(4000).splitlines()[0]


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


def test_other_sites_and_other_names_are_refused(server: Server) -> None:
    for headers, says in (
        ({"Host": "evil.example"}, "Host: 'evil.example' is not this server's name"),
        ({"Host": f"evil.example:{server.port}"}, "Host: 'evil.example'"),
        ({"Host": "127.0.0.1.evil.example"}, "Host: "),
        ({"Origin": "http://evil.example"}, "Origin: a page of another site"),
        ({"Origin": "null"}, "Origin: a page of another site"),
        ({"Origin": f"http://127.0.0.1:{server.port + 1}"}, "Origin: a page of another site"),
    ):
        refused(server.ask(rows({"video": "deep/red.mp4"}), headers), 403, says)
        assert request(server.port, "GET", "/docs", None, headers).status == 403
    for headers in ({"Host": "localhost"}, {"Host": f"[::1]:{server.port}"}, {"Origin": f"http://127.0.0.1:{server.port}"}):
        assert server.ask(rows({"video": "deep/red.mp4"}), headers).status == 200
    preflight = request(server.port, "OPTIONS", "/invocations", None, {"Origin": f"http://127.0.0.1:{server.port}"})
    assert preflight.status == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_the_fields_are_described(server: Server) -> None:
    described = request(server.port, "GET", "/openapi.json").document
    row = described["components"]["schemas"]["Row"]
    assert set(row["properties"]) == {"question", "video", "video_base64", "options", "task"}
    assert (row["required"], row["additionalProperties"]) == (["question"], False)
    page = request(server.port, "GET", "/docs").text
    assert all(name in page for name in row["properties"])
    assert [request(server.port, "GET", path).status for path in ("/ping", "/health", "/version", "/nothing")] == [
        200,
        200,
        200,
        404,
    ]
    refused(request(server.port, "GET", "/invocations"), 405, "use POST")


@pytest.mark.parametrize("how", ["files", "spellings", "base64"])
def test_large_frames_of_small_files_take_little_memory(how: str, server: Server, videos: Path) -> None:
    """Five of them took 0.1 a gigabyte for the frames alone; here they are made small one after the other."""
    sent = base64.b64encode((videos / "m0.mp4").read_bytes()).decode()
    asked = {
        "files": [{"video": f"m{number}.mp4"} for number in range(5)],
        "spellings": [{"video": f"{'./' * number}m0.mp4"} for number in range(4)],
        "base64": [{"video_base64": sent}] * 5,
    }[how]
    said, grew = server.growth(lambda: server.ask(rows(*asked)))
    assert (said.status, len(said.document["predictions"])) == (200, len(asked))
    assert grew < FEW_BYTES, f"{grew / 1e6:.0f} MB"


def test_fifty_at_once_are_all_answered(server: Server) -> None:
    with ThreadPoolExecutor(50) as many:
        assert {status for status, _ in many.map(lambda _: post(server.port, [ROW]), range(50))} == {200}


def test_unfinished_bodies_keep_nobody_waiting_and_leave_a_line_each(server: Server) -> None:
    head = "POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    lines = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    try:
        for line in lines:
            line.sendall(head.encode() + b"{")
        started = time.monotonic()
        assert post(server.port, [ROW])[0] == 200
        assert time.monotonic() - started < 10
    finally:
        for line in lines:
            line.close()
    deadline = time.monotonic() + 30
    while server.log.read_text().count("the client went away") < 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    text = server.log.read_text()
    assert "Traceback" not in text
    assert max(map(len, text.splitlines())) < 300


@pytest.mark.slow
@pytest.mark.parametrize("after", ["fetching", "loading"])
def test_it_can_be_ended_while_it_starts(after: str, project: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "flows.cli.main", "serve"]
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(command, cwd=project, env=environment(project), stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while after not in (tmp_path / "out").read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert psutil.wait_procs(children, timeout=10)[1] == []
    said = (tmp_path / "out").read_text()
    assert said.endswith("\nstopped\n")
    assert "Traceback" not in said


@pytest.mark.slow
def test_what_comes_too_slowly_is_ended(server: Server) -> None:
    """A head, and a body, that pause for longer than they may."""
    head = "POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with (
        socket.create_connection(("127.0.0.1", server.port)) as no_head,
        socket.create_connection(("127.0.0.1", server.port)) as half_a_head,
        socket.create_connection(("127.0.0.1", server.port)) as half_a_body,
    ):
        half_a_head.sendall(head.encode())
        half_a_body.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        # A byte now and then is no reason to wait longer.
        for _ in range(3):
            time.sleep(3)
            half_a_head.sendall(b"X")
        for line in (no_head, half_a_head, half_a_body):
            line.settimeout(15)
        assert no_head.recv(4000) == half_a_head.recv(4000) == b""
        said = half_a_body.recv(4000)
        assert b" 408 " in said.splitlines()[0]


@pytest.mark.slow
def test_one_slow_file_keeps_no_other_client_waiting(server: Server, videos: Path) -> None:
    """Ten minutes of one group of pictures: the last frame wanted needs all before it."""
    long = ["-f", "lavfi", "-i", "color=black:s=1280x720:r=25:d=600", "-c:v", "libx264", "-preset", "ultrafast", "-g", "1000000"]
    subprocess.run([ffmpeg_binary(), "-v", "error", *long, str(videos / "long.mp4")], check=True, timeout=600)
    assert (videos / "long.mp4").stat().st_size < 2 << 20
    with ThreadPoolExecutor(4) as slow:
        waiting = [slow.submit(server.ask, rows({"video": "long.mp4"})) for _ in range(4)]
        time.sleep(6)
        waited = []
        while not all(one.done() for one in waiting):
            started = time.monotonic()
            assert post(server.port, [ROW])[0] == 200
            waited.append(time.monotonic() - started)
        assert {one.result().status for one in waiting} <= {200, 504}
    assert waited
    assert max(waited) < 10
    assert sorted(waited)[len(waited) // 2] < 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["files", "spellings", "base64"])
def test_the_largest_frames_take_little_memory(how: str, server: Server, videos: Path) -> None:
    """The attack as it was found: 0.1 grew by 14.8 GB over five files of 120 kB, by 12 over four spellings of one."""
    if not (videos / "g0.mp4").exists():
        black = ["-f", "lavfi", "-i", "color=black:s=6400x6400:r=25:d=0.4", "-c:v", "libx264", "-preset", "ultrafast"]
        subprocess.run([ffmpeg_binary(), "-v", "error", *black, str(videos / "g0.mp4")], check=True, timeout=300)
        for number in range(1, 5):
            shutil.copyfile(videos / "g0.mp4", videos / f"g{number}.mp4")
    sent = base64.b64encode((videos / "g0.mp4").read_bytes()).decode()
    asked = {
        "files": [{"video": f"g{number}.mp4"} for number in range(5)],
        "spellings": [{"video": f"{'./' * number}g0.mp4"} for number in range(4)],
        "base64": [{"video_base64": sent}] * 5,
    }[how]
    said, grew = server.growth(lambda: server.ask(rows(*asked)))
    assert said.status == 200, said.text
    assert grew < 1 << 30, f"{grew / 1e6:.0f} MB"


def test_the_log_is_for_its_owner_alone(server: Server) -> None:
    assert stat.S_IMODE(server.log.stat().st_mode) == 0o600
    request(server.port, "GET", "/%1b]0;title%07" + "x" * 5000)
    assert post(server.port, [ROW])[0] == 200
    text = server.log.read_text()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 300


def test_nothing_is_left_when_it_is_ended(server: Server, project: Path) -> None:
    """The last of these tests: it ends the server that they share."""
    processes = server.processes()
    assert len(processes) > 4
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)
    assert "stopped" in server.printed.read_text()
    _, left = psutil.wait_procs(processes, timeout=10)
    assert left == []
    assert request(server.port, "GET", "/ping").status == 0
    assert not list((project / ".vidbridge").glob("serving-*"))
    assert "Traceback" not in server.log.read_text()
    assert not server.canary.exists()
