"""kill -9 in mid-ingest, of a worker and of the whole stage: the manifest is the same as if nothing
had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from stages.domain.core.records import SPLITS, Clip, Sample
from stages.domain.tasks import TASK_NAMES
from stages.domain.tasks.synthesis import synthesise
from stages.ingest.examine import journal_file
from stages.lib.rows.jsonl import read_rows
from stages.params import load_params
from stages.synthesize import shards
from stages.synthesize.shards import synthesise_manifest
from tests.support.checkout import ROOT

CLIPS = 240
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["corpus"] |= {"train_clips": CLIPS - 20, "validation_clips": 10, "test_clips": 10}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.yaml").write_text("stages: {}\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True, timeout=60)
    assert _start(folder, "corpus").wait(120) == 0
    return folder


def _start(folder: Path, verb: str) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VIDBRIDGE_")} | {"VIDBRIDGE_WORKERS": "2"}
    with (folder / f"{verb}.log").open("wb") as log:
        command = [sys.executable, "-m", "stages", verb]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def _journal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder / journal_file(load_params().ingest)


def _until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def _examined(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def _workers(stage: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(stage.pid).children(recursive=True):
        # A worker's ffmpeg may have ended between the two questions.
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.fixture(scope="module")
def whole(project: Path) -> bytes:
    """The manifest of an ingest that nobody kills."""
    assert _start(project, "ingest").wait(120) == 0
    return (project / "data/clips/manifest.jsonl").read_bytes()


@pytest.fixture
def undisturbed(project: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The same, and nothing examined yet."""
    _journal(project, monkeypatch).unlink(missing_ok=True)
    (project / "data/clips/manifest.jsonl").unlink(missing_ok=True)
    return whole


def test_a_killed_worker_is_replaced(project: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = _journal(project, monkeypatch)
    stage = _start(project, "ingest")
    _until(lambda: _examined(journal) > 10)
    victim = _workers(stage)[0]
    victim.kill()
    assert stage.wait(120) == 0, (project / "ingest.log").read_text()
    assert (project / "data/clips/manifest.jsonl").read_bytes() == undisturbed
    assert (project / "data/clips/rejects.jsonl").read_bytes() == b""


def test_a_killed_ingest_goes_on_where_it_was(
    project: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = _journal(project, monkeypatch)
    stage = _start(project, "ingest")
    _until(lambda: _examined(journal) > 10)
    workers = _workers(stage)
    os.kill(stage.pid, signal.SIGKILL)
    stage.wait(10)
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert len(gone) == 2, f"no worker outlives its stage: {alive}"
    assert not (project / "data/clips/manifest.jsonl").exists()
    known = _examined(journal)
    assert 10 < known < CLIPS
    with journal.open("a") as torn:
        torn.write('{"video": "videos/tr')
    assert _start(project, "ingest").wait(120) == 0
    said = (project / "ingest.log").read_text()
    assert f"{known:,} of {CLIPS:,} files were examined before" in said
    assert (project / "data/clips/manifest.jsonl").read_bytes() == undisturbed


def test_a_killed_synthesis_makes_only_the_shards_that_are_missing(
    project: Path,
    tmp_path: Path,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shards, "SHARD_CLIPS", 50)
    manifest, scratch, out = tmp_path / "manifest.jsonl", tmp_path / "scratch", tmp_path / "out"
    manifest.write_bytes(undisturbed)
    scratch.mkdir()
    params = load_params(ROOT / "params.yaml")
    made = synthesise_manifest(manifest, params.synthesize, params.seed, scratch, out)
    files = {path: path.read_bytes() for path in sorted(out.rglob("*.jsonl"))}
    times = {path: path.stat().st_mtime_ns for path in scratch.glob("clips-*.json")}
    assert len(times) == 5
    missing = sorted(times)[2]
    missing.unlink()
    (scratch / "clips-000000200-000000240.unfinished").write_text('{"rows": {"trai')
    capsys.readouterr()
    assert synthesise_manifest(manifest, params.synthesize, params.seed, scratch, out) == made
    assert "4 of 5 shards were made before" in capsys.readouterr().out
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {missing}
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.jsonl"))} == files
    # Shards and workers change nothing: the same as clip by clip in one process.
    clips = read_rows(manifest, Clip)
    for task in TASK_NAMES:
        whole = [
            s for _, samples, _ in synthesise(clips, task, params.synthesize.tasks, 8, params.seed) for s in samples
        ]
        read = [s for split in SPLITS for s in read_rows(out / split / f"{task}.jsonl", Sample)]
        assert sorted(read, key=lambda s: s.sample_id) == sorted(whole, key=lambda s: s.sample_id)
