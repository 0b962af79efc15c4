"""Ranks as forks: what each is told, and how they end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.lib.models.load import save_model
from stages.runtime.ranks import distributed
from stages.runtime.ranks.distributed import launch
from stages.runtime.ranks.placement import Placement
from tests.support.checkout import ROOT
from tests.support.training.shards import ROWS
from tests.support.training.tiny import tiny

Start = Callable[[str], "subprocess.Popen[bytes]"]

RANKS = """
import os, signal, sys, time
from pathlib import Path
from stages.runtime.ranks.forking import fork_ranks
home = Path(sys.argv[1])
status = fork_ranks(2, 4000, {"VIDBRIDGE_RANKS": "2"})
rank = os.environ.get("RANK")
if status is not None:
    sys.exit(status)
told = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "VIDBRIDGE_RANKS")
(home / rank).write_text(" ".join(os.environ[name] for name in told))
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start two ranks that go on with the given code; what is left of them is killed."""
    started: list[subprocess.Popen[bytes]] = []

    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    def with_code(rest: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RANKS + rest, str(tmp_path)]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environ))
        return started[-1]

    yield with_code
    for process in started:
        process.kill()
        process.wait()


def appear(*paths: Path) -> None:
    deadline = time.monotonic() + 30
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_rank_is_told_its_place(tmp_path: Path, start: Start) -> None:
    assert start("").wait(30) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["0 2 4000 2", "1 2 4000 2"]


def test_a_rank_that_fails_ends_the_other(start: Start) -> None:
    assert start("sys.exit(3) if rank == '1' else time.sleep(60)").wait(30) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_ranks_once(tmp_path: Path, start: Start, number: signal.Signals) -> None:
    rest = """
told = []
signal.signal(NUMBER, lambda *_: told.append(1))
(home / f"ready{rank}").write_text("x")
while not told: time.sleep(0.02)
time.sleep(0.3)
(home / f"told{rank}").write_text(str(len(told)))
""".replace("NUMBER", str(int(number)))
    process = start(rest)
    appear(tmp_path / "ready0", tmp_path / "ready1")
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert [(tmp_path / f"told{rank}").read_text() for rank in "01"] == ["1", "1"]


def test_ranks_end_with_a_process_that_was_killed(tmp_path: Path, start: Start) -> None:
    process = start(
        "(home / f'pid{rank}').write_text(str(os.getpid()))\nwhile True: time.sleep(0.05)",
    )
    pids = [tmp_path / f"pid{rank}" for rank in "01"]
    appear(*pids)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid.read_text()}").exists() and "Z" not in state(pid.read_text()) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_two_idle_cores_share_two_shards(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[tuple[int, str]] = []

    def forked(count: int, _port: int, extra: dict[str, str]) -> int:
        started.append((count, extra["VIDBRIDGE_RANKS"]))
        return 0

    for name in ("VIDBRIDGE_RANKS", "VIDBRIDGE_DEEPSPEED", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "placement", lambda: Placement(1, None, 0))
    monkeypatch.setattr(distributed, "fork_ranks", forked)
    monkeypatch.setattr(distributed, "can_fork", lambda: True)
    monkeypatch.setattr(distributed, "idle_cores", lambda _: 2)
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: False)
    for shards in (1, 4):  # a sum of four depends on who takes which
        assert launch("stages", ("sft", "x"), shards=shards) is None
    assert launch("stages", ("sft", "x"), shards=2) == 0
    assert started == [(2, "2")]
    assert "sft x: two processes, one for each shard of a step, since 2 cores are idle" in capsys.readouterr().out
    monkeypatch.setattr(distributed, "idle_cores", lambda _: 1)
    assert launch("stages", ("sft", "x"), shards=2) is None
    monkeypatch.setattr(distributed, "idle_cores", lambda _: 2)
    monkeypatch.setenv("VIDBRIDGE_RANKS", "1")
    assert launch("stages", ("sft", "x"), shards=2) is None
    assert started == [(2, "2")]


@pytest.mark.slow
def test_one_process_and_two_write_the_same_bytes(tmp_path: Path) -> None:
    """Weights, and everything else in a stage's out, where a step has two shards; with dropout,
    too."""
    save_model(*tiny("qwen2_5_vl"), tmp_path / "base")
    for ranks in ("1", "2"):
        (tmp_path / ranks).mkdir()
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.support.training.shards", str(tmp_path / ranks)],
            cwd=tmp_path / ranks,
            env=os.environ | {"PYTHONPATH": str(ROOT), "VIDBRIDGE_RANKS": ranks, "CUDA_VISIBLE_DEVICES": ""},
            timeout=400,
            check=True,
        )
    for row in ROWS:
        one, two = (
            {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
            for out in (tmp_path / "1" / row / "out", tmp_path / "2" / row / "out")
        )
        assert Path("final/model.safetensors") in one
        assert one == two
        assert one[Path("final/model.safetensors")] != (tmp_path / "base/model.safetensors").read_bytes()
