"""Several machines, as two "nodes" on loopback: how they meet, what they compare, and that one ends
with the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest

from stages.lib.models.load import save_model
from stages.runtime.ranks import coming, meeting
from stages.runtime.ranks import nodes as nodes_module
from stages.runtime.ranks.coming import come, follow
from stages.runtime.ranks.distributed import _free_port
from stages.runtime.ranks.meeting import lead
from stages.runtime.ranks.nodes import SWITCHES, Job, Nodes, NodesError, nodes_of
from stages.runtime.ranks.placement import placement
from tests.support.checkout import ROOT
from tests.support.training.compared import furthest, history
from tests.support.training.tiny import tiny

TWO = {"VIDBRIDGE_NODES": "2", "VIDBRIDGE_RDZV": "10.0.0.1:29400"}


def test_nodes_are_read_from_the_environment() -> None:
    assert nodes_of({}) is None
    assert nodes_of({"VIDBRIDGE_NODES": "1", "VIDBRIDGE_RDZV": "unused"}) is None
    assert nodes_of({**TWO, "VIDBRIDGE_NODE": "1"}) == Nodes(2, 1, "10.0.0.1", 29400, 600.0)
    six = nodes_of({**TWO, "VIDBRIDGE_RDZV": "[fd00::1]:29400", "VIDBRIDGE_RDZV_TIMEOUT_S": "5"})
    assert six is not None
    assert (six.host, six.address, six.patience_s) == ("fd00::1", "[fd00::1]:29400", 5.0)
    both = placement({**TWO, "VIDBRIDGE_RANKS": "3"})
    assert (both.ranks, both.ranks_here) == (6, 3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"VIDBRIDGE_NODES": "two"}, "VIDBRIDGE_NODES: 'two' is not a number of machines; set a whole number >= 1"),
        ({"VIDBRIDGE_NODES": "²"}, "VIDBRIDGE_NODES: '²' is not a number of machines"),
        ({"VIDBRIDGE_NODE": "2"}, "VIDBRIDGE_NODE: 2 of 2 nodes .*; number them from 0 to 1"),
        ({"VIDBRIDGE_RDZV": ""}, "VIDBRIDGE_RDZV: '' is not an address, and 2 nodes are to meet; set HOST:PORT"),
        ({"VIDBRIDGE_RDZV": "host:port"}, "VIDBRIDGE_RDZV: 'host:port' is not an address"),
        ({"VIDBRIDGE_RDZV_TIMEOUT_S": "0"}, "VIDBRIDGE_RDZV_TIMEOUT_S: '0' is not a number of seconds"),
    ],
)
def test_wrong_settings_are_named(changed: dict[str, str], said: str) -> None:
    with pytest.raises(NodesError, match=said):
        nodes_of({**TWO, **changed})


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Nodes, Nodes]:
    """Both nodes of a meeting, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIDBRIDGE_SCRATCH", raising=False)
    monkeypatch.setattr(nodes_module, "code_digest", lambda _: "code")  # two seconds
    for each in (meeting, coming):
        monkeypatch.setattr(each, "BEAT_S", 0.1)
    port = _free_port()
    return Nodes(2, 0, "127.0.0.1", port, 20.0), Nodes(2, 1, "127.0.0.1", port, 20.0)


def job(code: str, *arguments: str, ranks: int = 1, files: dict[str, Path] | None = None) -> Job:
    """A job whose processes of a node are one that runs this code."""
    return Job("stages", arguments, ranks, files or {}, lambda port: [sys.executable, "-c", code, str(port)])


def both(leads: Nodes, comes: Nodes, one: Job, other: Job) -> list[int | NodesError]:
    """Run one job on each node; the exit status or the error of each."""
    ended: dict[int, int | NodesError] = {}

    def run(nodes: Nodes, its: Job) -> None:
        try:
            ended[nodes.number] = come(nodes, its, {}) if nodes.number else lead(nodes, its, {}, 4711)
        except NodesError as error:
            ended[nodes.number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in ((leads, one), (comes, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [ended[0], ended[1]]


WRITES = "import sys; open(sys.argv[1] + sys.argv[0], 'a').write('x')"


def test_nodes_start_together_with_one_port(two: tuple[Nodes, Nodes], tmp_path: Path) -> None:
    assert both(*two, job(WRITES, "sft", "a"), job(WRITES, "sft", "a")) == [0, 0]
    assert (tmp_path / "4711-c").read_text() == "xx"
    assert list((tmp_path / ".vidbridge/scratch").iterdir()) == [], "no mark is left behind"


def test_differences_are_named_on_both(two: tuple[Nodes, Nodes], tmp_path: Path) -> None:
    for other, said in (
        (job("", "sft", "b"), "stage: is 'stages sft b', and 'stages sft a' on the first node (node 1)"),
        (job("", "sft", "a", ranks=2), "VIDBRIDGE_RANKS: is '2', and '1' on the first node (node 1)"),
    ):
        for error in both(*two, job("", "sft", "a"), other):
            assert str(error).startswith(said)
    three = Nodes(3, 1, two[1].host, two[1].port, 20.0)
    for error in both(two[0], three, job("", "sft", "a"), job("", "sft", "a")):
        assert str(error).startswith("VIDBRIDGE_NODES: is '3', and '2' on the first node (node 1); make them equal")
    configs = [tmp_path / name for name in ("mine.json", "other.json")]
    for path in configs:
        path.write_text(path.name)
    mine, other = (job("", "sft", "a", files={"VIDBRIDGE_DEEPSPEED": path}) for path in configs)
    assert "VIDBRIDGE_DEEPSPEED: differs from the first node" in str(both(*two, mine, other)[0])
    without = job("", "sft", "a")
    for one, another in ((mine, without), (without, mine)):
        for error in both(*two, one, another):
            assert str(error).startswith("VIDBRIDGE_DEEPSPEED: differs from the first node"), "set on one alone"


def test_variables_that_change_the_computation_are_compared(
    two: tuple[Nodes, Nodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    unset = job("", "x").setup(two[1])
    monkeypatch.setenv("VIDBRIDGE_SEQUENCE_RANKS", "2")
    assert job("", "x").setup(two[1]) == {**unset, "VIDBRIDGE_SEQUENCE_RANKS": "2"}


def test_a_node_that_fails_ends_the_other(two: tuple[Nodes, Nodes]) -> None:
    started = time.monotonic()
    first, second = both(*two, job("import time; time.sleep(60)", "x"), job("import sys; sys.exit(3)", "x"))
    assert second == 3
    assert str(first).startswith("node 1: its processes ended with status 3, so training ended on all nodes; see")
    first, second = both(*two, job("import sys; sys.exit(3)", "x"), job("import time; time.sleep(60)", "x"))
    assert first == 3
    assert str(second) == "node 0: training ended there; see its output"
    assert time.monotonic() - started < 40


def test_a_silent_node_ends_the_other(two: tuple[Nodes, Nodes], monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a machine loses its power: no connection is closed."""
    monkeypatch.setattr(meeting, "SILENT_S", 0.5)
    ended: list[object] = []

    def leads() -> None:
        try:
            ended.append(lead(two[0], job("import time; time.sleep(60)", "x"), {}, 4711))
        except NodesError as error:
            ended.append(error)

    thread = threading.Thread(target=leads)
    thread.start()
    said = {"node": 1, "who": "me", "setup": job("", "x").setup(two[1])}
    coming._answer(two[1], said)
    thread.join(30)
    assert str(ended[0]).startswith("node 1: was silent for 0.5 s, so training ended on all nodes")


def test_nobody_comes(two: tuple[Nodes, Nodes]) -> None:
    leads, comes = (Nodes(2, number, "127.0.0.1", two[0].port, 1.0) for number in (0, 1))
    with pytest.raises(NodesError, match=r"VIDBRIDGE_NODES: 2, and in 1 s node 1 did not come to 127.0.0.1:\d+; start"):
        lead(leads, job("", "x"), {}, 4711)
    with pytest.raises(NodesError, match=r"VIDBRIDGE_RDZV: 127.0.0.1:\d+ did not answer in 1 s: .*refused"):
        come(comes, job("", "x"), {})
    elsewhere = Nodes(2, 0, "192.0.2.1", two[0].port, 1.0)  # an address of documentation, nobody's
    with pytest.raises(NodesError, match=r"VIDBRIDGE_RDZV: 192.0.2.1:\d+ cannot be listened at: .*this machine"):
        lead(elsewhere, job("", "x"), {}, 4711)


@pytest.mark.parametrize("said", [[], {}, {"node": "1", "who": "x", "setup": []}])
def test_a_strangers_request_is_refused(two: tuple[Nodes, Nodes], said: Any) -> None:
    with (
        meeting._open(meeting._Meeting(two[0], job("", "x"), 4711, "token", {})),
        pytest.raises(HTTPError, match="400"),
    ):
        coming.ask(two[1], said)


def test_a_folder_of_its_own_is_refused(
    two: tuple[Nodes, Nodes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coming, "_SHARED_S", 0.1)
    monkeypatch.setenv("VIDBRIDGE_SCRATCH", str(tmp_path / "mine"))
    with pytest.raises(NodesError, match=r"VIDBRIDGE_SCRATCH: .*mine is not the folder of the first node"):
        coming._check_shared("token")


def test_a_node_follows_the_first_one(two: tuple[Nodes, Nodes]) -> None:
    """Each training once, and only rows that it has."""
    ran: list[tuple[str, ...]] = []

    def run(arguments: Any) -> int:
        ran.append(tuple(arguments))
        return come(two[1], job("", *arguments), {})

    def known(arguments: Any) -> bool:
        return list(arguments) != ["sft", "foreign"]

    told: list[str] = []

    def following() -> None:
        try:
            follow(two[1], run, known)
        except NodesError as error:
            told.append(str(error))

    thread = threading.Thread(target=following, daemon=True)
    thread.start()
    for row in ("a", "b"):
        assert lead(two[0], job("", "sft", row), {}, 4711) == 0
    impatient = Nodes(2, 0, two[0].host, two[0].port, 3.0)
    with pytest.raises(NodesError, match="node 1 did not come"):
        lead(impatient, job("", "sft", "foreign"), {}, 4711)
    thread.join(10)
    assert ran == [("sft", "a"), ("sft", "b")]
    assert told == ["sft foreign: is no training of this project; use the first node's params.yaml"]


def errors_of(home: Path, number: int) -> Path:
    """What a node wrote to its standard error."""
    return home / f"errors-{number}.txt"


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start tests.support.training.trajectory as a node; what is left of it is killed."""
    started: list[subprocess.Popen[bytes]] = []
    address = f"127.0.0.1:{_free_port()}"

    def node(number: int, home: Path, *arguments: object, nodes: int = 2, ranks: int = 1) -> subprocess.Popen[bytes]:
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "VIDBRIDGE_RANKS": str(ranks),
            "VIDBRIDGE_NODES": str(nodes),
            "VIDBRIDGE_NODE": str(number),
            "VIDBRIDGE_RDZV": address,
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.support.training.trajectory"]
        with errors_of(home, number).open("wb") as errors:
            process = subprocess.Popen(
                [*command, *map(str, (home, *arguments))],
                cwd=home,
                env=environ,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield node
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()


@pytest.mark.slow
def test_two_nodes_write_the_out_of_one(tmp_path: Path, start: Start) -> None:
    """Two nodes of a process each, and two processes of one: the same weights and numbers, to the
    last bit."""
    for name in ("sampled", "one", "two", "shared"):
        (tmp_path / name).mkdir()
    save_model(*tiny("qwen2_5_vl"), tmp_path / "shared/base")
    rows = ("sft", "grpo")
    for processes in (
        # Rollouts are sampled by one process, for all.
        [partial(start, 0, tmp_path / "sampled", nodes=1)],
        [partial(start, 0, tmp_path / "one", nodes=1, ranks=2)],
        [partial(start, number, tmp_path / "two") for number in (0, 1)],
    ):
        homes = [begin.args[1] for begin in processes]
        for number, process in enumerate([begin(tmp_path / "shared", *rows) for begin in processes]):
            assert process.wait(400) == 0, errors_of(homes[number], number).read_text()[-4000:]
    for row in (*rows, *(f"{row}-resumed" for row in rows)):
        one, two = (tmp_path / name / row / "out" for name in ("one", "two"))
        assert history(two) == history(one)
        assert furthest(two / "final", one / "final") == 0.0
    told = json.loads((tmp_path / "two/told.json").read_text())
    assert told["grpo-resumed"]["resumed_from"] == 2


@pytest.mark.slow
def test_a_node_that_is_killed_ends_the_other(tmp_path: Path, start: Start) -> None:
    (tmp_path / "shared").mkdir()
    save_model(*tiny("qwen2_5_vl"), tmp_path / "shared/base")
    first, second = (start(number, tmp_path, tmp_path / "shared", "sft") for number in (0, 1))
    deadline = time.monotonic() + 120
    while not (children := psutil.Process(second.pid).children(recursive=True)) or len(children) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(second.pid, signal.SIGKILL)  # the launcher, and torch's agent
    assert first.wait(120) != 0
    assert "node 1" in errors_of(tmp_path, 0).read_text()
    _, alive = psutil.wait_procs(children, 30)
    assert alive == [], "its processes end with it"
