"""`vidbridge serve` over a real socket: attacks that exhausted 0.1's memory or reached its files
and log, and the commands that it prints."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.serving.model import example, serve
from stages.runtime.paths import DATABASE
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.session import Session
from tests.support.projects.serving import (
    RED,
    ROW,
    post,
    request,
)
from tests.support.servers.served import (
    FEW_BYTES,
    Server,
    make_poison,
    parquet,
    refused,
    registry_says,
    rows,
    streamed,
)


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


@pytest.mark.parametrize(
    "source", ["FOLDER", "file://FOLDER", "runs:/0123/model", "http://127.0.0.1:9/model", "dvc://../x.dir"]
)
def test_a_poisoned_source_is_refused_and_nothing_of_it_runs(
    source: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = make_poison(tmp_path)
    monkeypatch.setenv("VIDBRIDGE_JUDGE_KEY", "CANARY")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / DATABASE}")
    with (
        registry_says(project, "source", source.replace("FOLDER", str(tmp_path))),
        pytest.raises(TrackingError, match="model source"),
    ):
        serve(Session(project), "1", None, "127.0.0.1", 0)
    assert not canary.exists()


def test_the_printed_command_works_in_a_shell(server: Server) -> None:
    (line,) = [line for line in server.printed.read_text().splitlines() if line.startswith("try: ")]
    done = subprocess.run(
        ["sh", "-c", line.removeprefix("try: ")], capture_output=True, text=True, timeout=120, check=True
    )
    (answer,) = json.loads(done.stdout)["predictions"]
    assert set(answer) == {"thinking", "answer", "reply"}


@pytest.mark.parametrize("name", ['it\'s a "film" $(touch x) `y`.mp4', "größe %d;&.mp4"])
def test_any_name_is_quoted_for_the_shell(name: str, server: Server, large_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    shutil.copyfile(large_videos / "deep/red.mp4", tmp_path / "films" / name)
    command = example(f"http://127.0.0.1:{server.port}", tmp_path / "films", 2 << 20, keyed=False)
    # Not in the server's folder: the name has arrived whole if the message repeats it.
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    assert (
        json.loads(done.stdout)["message"]
        == f"video: {name!r} is not a file in the server's folder; send the path of one"
    )
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
def test_without_a_folder_the_command_sends_a_video(
    keyed: bool, server: Server, large_videos: Path, tmp_path: Path
) -> None:
    shutil.copyfile(large_videos / "deep/red.mp4", tmp_path / "clip.mp4")
    command = example(f"http://127.0.0.1:{server.port}", None, 2 << 20, keyed=keyed)
    env = {**os.environ, "VIDBRIDGE_SERVE_KEY": "0123456789abcdef"}
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path, env=env
    )
    assert set(json.loads(done.stdout)["predictions"][0]) == {"thinking", "answer", "reply"}


def test_where_the_project_has_videos_the_command_sends_one_of_them(
    server: Server, large_videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "my films").mkdir()
    shutil.copyfile(large_videos / "deep/red.mp4", tmp_path / "my films/one.mp4")
    command = example(f"http://127.0.0.1:{server.port}", None, 2 << 20, keyed=False, own=tmp_path / "my films")
    assert "clip.mp4" not in command
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    assert set(json.loads(done.stdout)["predictions"][0]) == {"thinking", "answer", "reply"}


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
        ({"dataframe_records": [ROW], "params": {"temperature": 1}}, 400, "params: not supported"),
        (
            {"dataframe_records": [ROW | {"max_new_tokens": 5}]},
            400,
            "row 0: 'max_new_tokens' is not known; a row has question",
        ),
        ({"dataframe_records": [ROW, ROW | {"option": ["a"]}]}, 400, "row 1: 'option' is not known"),
        ({"dataframe_records": [ROW | {"k" * 100_000: 1}]}, 400, "is not known"),
        ({"dataframe_records": [ROW | {"question": 5}]}, 400, "row 0: question"),
        ({"dataframe_records": [ROW | {"question": "q" * 3_000_000}]}, 400, "row 0: question: 3,000,000 bytes"),
        ({"dataframe_records": [ROW | {"options": ["a"] * 27}]}, 400, "row 0: options"),
        ({"dataframe_records": [ROW | {"options": [{"a": 1}]}]}, 400, "row 0: options.0"),
        ({"dataframe_records": [ROW | {"video": "x" * 100_000}]}, 400, "is not a file in the server's folder"),
        ({"dataframe_records": [ROW | {"video": "../private.mp4"}]}, 400, "may not leave the server's folder"),
        ({"dataframe_records": [{"question": "q", "video_base64": 5}]}, 400, "row 0: video_base64: not text"),
        ({"dataframe_records": [{"question": "q", "video_base64": "A" * 4_000_000}]}, 413, "2 MB are allowed"),
        ({"inputs": "A" * 2_000_000}, 400, "inputs: not a list of rows"),
        ({"inputs": {"question": ["a", "b"], "video": ["a"]}}, 400, "not lists of one length"),
        ({"dataframe_split": {"columns": ["question"], "data": [["a", "b"]]}}, 400, "one value a column"),
        (b'{"dataframe_records": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 413, "65,536 bytes beside its strings"),
        (b'{"dataframe_records": ' + b"[" * 500 + b"]" * 500 + b"}", 400, "brackets more than 8 deep"),
        (b'{"dataframe_records": [' + b"[]," * 1_000_000 + b"[]]}", 413, "65,536 bytes beside its strings"),
        (b'{"dataframe_records": [{"question": NaN}]}', 400, "NaN is not JSON"),
        (b'{"dataframe_records": [{"question": -Infinity}]}', 400, "-Infinity is not JSON"),
        (b'{"dataframe_records": [{"question": ' + b"9" * 5000 + b"}]}", 400, "a number of 5,000 characters"),
        (b'{"dataframe_records": [{"question": "a", "question": "b"}]}', 400, "'question' is given twice"),
        (b'{"dataframe_records": [{"question": "\\ud800", "video": "deep/red.mp4"}]}', 400, "row 0: question"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_bad_body_is_refused_with_a_sentence(
    body: bytes | dict[str, Any], status: int, says: str, server: Server
) -> None:
    refused(server.ask(body if isinstance(body, bytes) else json.dumps(body).encode()), status, says)


def test_what_is_too_long_is_refused_while_it_comes(server: Server) -> None:
    assert server.growth(lambda: streamed(server, b"x" * (1 << 20), 400))[1] < FEW_BYTES
    assert b" 413 " in streamed(server, b"x" * (1 << 20), 40).splitlines()[0]
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        head = f"POST /invocations HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
        line.settimeout(10)
        assert b" 413 " in line.recv(4000).splitlines()[0]


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
    for headers in (
        {"Host": "localhost"},
        {"Host": f"[::1]:{server.port}"},
        {"Origin": f"http://127.0.0.1:{server.port}"},
    ):
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
    assert [name for name in row["properties"] if name not in page] == []
    assert [request(server.port, "GET", path).status for path in ("/ping", "/health", "/version", "/nothing")] == [
        200,
        200,
        200,
        404,
    ]
    refused(request(server.port, "GET", "/invocations"), 405, "use POST")


@pytest.mark.parametrize("how", ["files", "spellings", "base64"])
def test_large_frames_of_small_files_take_little_memory(how: str, server: Server, large_videos: Path) -> None:
    """Five of them took 0.1 a gigabyte for the frames alone; here they are scaled down one after
    the other."""
    sent = base64.b64encode((large_videos / "m0.mp4").read_bytes()).decode()
    asked = {
        "files": [{"video": f"m{number}.mp4"} for number in range(5)],
        "spellings": [{"video": f"{'./' * number}m0.mp4"} for number in range(4)],
        "base64": [{"video_base64": sent}] * 5,
    }[how]
    # The first such request starts the decoders and loads what answers need; frames are given back.
    assert server.ask(rows(*asked)).status == 200
    said, grew = server.growth(lambda: server.ask(rows(*asked)))
    assert (said.status, len(said.document["predictions"])) == (200, len(asked))
    assert grew < FEW_BYTES, f"{grew / 1e6:.0f} MB"


def test_fifty_at_once_are_all_answered(server: Server) -> None:
    with ThreadPoolExecutor(50) as many:
        assert {status for status, _ in many.map(lambda _: post(server.port, [ROW]), range(50))} == {200}


def test_unfinished_bodies_keep_nobody_waiting_and_leave_a_line_each(server: Server) -> None:
    head = (
        "POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length:"
        " 1000000\r\n\r\n"
    )
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


def test_the_log_is_for_its_owner_alone(server: Server) -> None:
    assert stat.S_IMODE(server.log.stat().st_mode) == 0o600
    request(server.port, "GET", "/%1b]0;title%07" + "x" * 5000)
    assert post(server.port, [ROW])[0] == 200
    text = server.log.read_text()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 300
