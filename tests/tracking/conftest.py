"""A small real project: git, DVC with a local remote, stages that write model folders. Made once, copied for each test (see `project`)."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import chdir, closing
from pathlib import Path

import pytest
import yaml
from surroundings import forget

from stages.tracking.registry import register
from stages.tracking.store import open_client
from stages.tracking.uri import DATABASE

ROWS = {"cold-start": ("sft", "base"), "bridge": ("grpo", "cold-start"), "general": ("grpo", "bridge")}

#: What the stages run: stdlib only, deterministic, each a few milliseconds.
MAKE = """
import hashlib, json, sys
from pathlib import Path

what, row, init = (sys.argv[1:] + ["", ""])[:3]

def model(folder, text):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", "trained": text}))
    (folder / "model.safetensors").write_bytes(hashlib.sha256(text.encode()).digest() * 65536)  # 2 MiB

def trained(row):
    return json.loads(Path(f"models/{row}/final/config.json").read_text())["trained"]

def lines(rows):
    return "".join(json.dumps(row) + "\\n" for row in rows)

SAMPLES = [(task, f"{task}/{n}", f"clip-{n}") for task in ("caption", "mcqa") for n in range(20)]

if what == "samples":
    folder = Path("data/samples/train")
    folder.mkdir(parents=True)
    (folder / "caption.jsonl").write_text(Path("source.txt").read_text())
    (folder.parent / "test").mkdir()
    for name in ("caption", "mcqa"):
        rows = [
            {"sample_id": sample, "clip_id": clip, "task": name, "split": folder.name, "sampled_frames": 2, "question": "?",
             "reference": "!", "timeline": {"rate": "8", "segments": [{"clip_id": clip, "span": {"start": 0, "stop": 2}}]}}
            for task, sample, clip in SAMPLES if task == name
        ]
        (folder.parent / "test" / f"{name}.jsonl").write_text(lines(rows))
elif what == "base":
    model(Path("models/base/final"), "base")
elif what == "train":
    text = f"{trained(init)} > {row} {Path('rates.json').read_text()}"
    out = Path("models") / row
    rows = []
    for step, path in ((5, "checkpoint-5"), (10, "final")):
        model(out / path, f"{text} {step}")
        rows.append({"stage": f"x@{row}", "step": step, "path": path, "final": path == "final", "metrics": {"reward": step / 10}})
    (out / "checkpoints.jsonl").write_text(lines(rows))
    history = [{"step": step, "reward": step / 10} for step in range(1, 11)]
    if row != "cold-start":
        watched = "empty_thinking enumeration keyword_stuffing zero_variance_groups blank_video".split()
        for logged in history:
            logged |= {f"gauge/{name}": 0.0 for name in watched} | {"gauge/length_reward_correlation": logged["step"] / 100}
    (out / "history.jsonl").write_text(lines(history))
elif what == "evaluate":
    means = json.loads(Path("means.json").read_text())
    out = Path("scores") / row
    out.mkdir(parents=True)
    if row == "baselines":
        trivial = {"random": {"mean": 0.1}, "constant": {"mean": 0.16}}
        card = {"schema_version": 1, "digest": means["digest"], "tasks": {"caption": trivial, "mcqa": trivial}, **trivial}
    else:
        task = {"mean": means[row], "low": means[row] - 0.02, "high": means[row] + 0.02, "samples": 20, "format": 1.0, "blank": 0.05}
        card = {"schema_version": 1, "row": row, "digest": means["digest"], "split": "test", "samples": 40,
                "mean": means[row], "format": 1.0, "tasks": {"caption": task, "mcqa": task}}
        right = round(20 * means[row])
        found = [(task, sample, int(sample.split("/")[1]) < right) for task, sample, _ in SAMPLES]
        scores = [{"sample_id": sample, "task": task, "reply": "", "format_ok": True, "value": hit} for task, sample, hit in found]
        (out / "predictions.jsonl").write_text(lines(scores))
    (out / "scores.json").write_text(json.dumps(card))
"""

MEANS = '{"digest": "d1", "base": 0.1, "cold-start": 0.6, "bridge": 0.65, "general": 0.8}\n'


def run(root: Path, *command: str) -> str:
    """Run a command in ``root`` without anyone's git configuration; its output."""
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout


def dvc(root: Path, *arguments: str) -> str:
    return run(root, sys.executable, "-m", "dvc", *arguments)


def commit(root: Path, message: str) -> str:
    """Commit everything that is not ignored; the commit."""
    run(root, "git", "add", "-A")
    run(root, "git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-q", "-m", message)
    return run(root, "git", "rev-parse", "HEAD").strip()


def pipeline() -> dict[str, object]:
    python = sys.executable
    stages: dict[str, object] = {
        "synthesize": {"cmd": f"{python} make.py samples", "deps": ["source.txt"], "outs": ["data/samples"]},
        "base": {"cmd": f"{python} make.py base", "params": ["seed"], "outs": ["models/base/final"]},
        "baselines": {
            "cmd": f"{python} make.py evaluate baselines",
            "deps": ["means.json", "data/samples"],
            "outs": ["scores/baselines"],
        },
    }
    for kind in ("sft", "grpo"):
        rows = {row: {"init": init} for row, (table, init) in ROWS.items() if table == kind}
        stages[kind] = {
            "foreach": rows,
            "do": {
                "cmd": f"{python} make.py train ${{key}} ${{item.init}}",
                "deps": ["make.py", "rates.json", "data/samples", "models/${item.init}/final"],
                "params": [f"{kind}.${{key}}"],
                "outs": ["models/${key}"],
            },
        }
    stages["evaluate"] = {
        "foreach": ["base", *ROWS],
        "do": {
            "cmd": f"{python} make.py evaluate ${{item}}",
            "deps": ["means.json", "models/${item}/final", "data/samples"],
            "outs": ["scores/${item}"],
        },
    }
    return {"stages": stages}


@pytest.fixture(scope="session")
def dvc_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after `dvc repro` and a commit. Do not change it: take the fixture `project`, a copy."""
    root = tmp_path_factory.mktemp("project")
    shutil.copyfile(Path(__file__).parents[2] / "params.yaml", root / "params.yaml")
    (root / ".gitignore").write_text("/.vidbridge/\n/data/\n/models/\n/scores/\n")
    (root / "make.py").write_text(MAKE)
    (root / "source.txt").write_text("clips\n")
    (root / "rates.json").write_text("1\n")
    (root / "means.json").write_text(MEANS)
    (root / "dvc.yaml").write_text(yaml.safe_dump(pipeline()))
    run(root, "git", "init", "-q", "-b", "main")
    dvc(root, "init", "-q")
    (root / ".dvc" / "config").write_text(
        "[core]\n    remote = local\n    autostage = false\n    analytics = false\n['remote \"local\"']\n    url = ../.vidbridge/remote\n"
    )
    dvc(root, "repro", "-q")
    commit(root, "first run")
    # A tracking database with its tables but without a run: making it takes longer than most tests.
    with pytest.MonkeyPatch.context() as patch:
        forget(patch, "VIDBRIDGE_", "MLFLOW_")
        open_client(root)
    with closing(sqlite3.connect(root / DATABASE)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return root


@pytest.fixture
def project(dvc_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that a test may change, with an empty tracking store and nothing from the caller's environment."""
    for name in list(os.environ):
        if name.startswith(("VIDBRIDGE_", "MLFLOW_", "GIT_")) or name == "RANK":
            monkeypatch.delenv(name)
    root = tmp_path / "project"
    shutil.copytree(dvc_project, root)
    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(root))
    # Nobody's git identity: what runs in production must not need one.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    return root


@pytest.fixture(scope="session")
def template(dvc_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 to 7, an empty cache: everything comes from the remote. Do not change it, nor what it holds."""
    root = tmp_path_factory.mktemp("registered") / "project"
    shutil.copytree(dvc_project, root)
    with pytest.MonkeyPatch.context() as patch:
        forget(patch, "VIDBRIDGE_", "MLFLOW_", "GIT_")
        register(root)
    for folder in (".dvc/cache", "models"):
        shutil.rmtree(root / folder)
    return root


@pytest.fixture
def repro() -> Callable[[Path], None]:
    """Run the pipeline again after a change."""
    from dvc.repo import Repo

    def again(root: Path) -> None:
        # DVC resolves part of what it does against the working directory.
        with chdir(root), Repo(str(root)) as repo:
            repo.reproduce(all_pipelines=True)

    return again


@pytest.fixture
def save() -> Callable[[Path, str], str]:
    """Commit what is not ignored."""
    return commit


@pytest.fixture
def git_output() -> Callable[..., str]:
    return lambda root, *arguments: run(root, "git", *arguments)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real tracking server on a free port of the loopback interface; its URI."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder / "files")]
    with (folder / "log").open("wb") as log:
        # Its job runner would be four more processes that nobody uses.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"mlflow server did not start:\n{(folder / 'log').read_text()}")
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)
