"""GRPO whose rollouts an engine draws: what it gets and gives, and what happens when it is gone.
The engine is a stand-in that speaks the real protocol and decodes as this project does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from stages.domain.rl.rollouts import RolloutGroup
from stages.errors import InputError
from stages.grpo.policy.engine import EngineRollouts
from stages.grpo.prompts.ahead import DrawsAhead, _Beside
from stages.lib.engine.errors import EngineError, EngineLost, PromptMismatch
from stages.lib.engine.process import LOST_VARIABLE, VARIABLE, when_lost
from stages.lib.engine.wire import Question, Reply, Sampling, Video
from stages.lib.engine_server.app import Died
from stages.lib.rows.jsonl import read_rows
from stages.lib.training.mixture import Example
from tests.support.checkout import IN_CHECKOUT, ROOT
from tests.support.servers.engine.stand_in import HfEngine, served
from tests.support.training.chosen import CHOSEN, partly_dead
from tests.support.training.tiny import LORA, Seen
from tests.support.training.trainers import Cut, Killed, grpo, history

# httpcore does not close a Unix socket that it could not connect.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROW: dict[str, Any] = {"prompts_per_step": 2, "steps": 4, "max_completion_tokens": 12}


class Noted(HfEngine):
    """Notes what it is asked, and which weights it has read; may end in the middle of a request."""

    def __init__(self, model: Path, *, dies_at: int | None = None) -> None:
        super().__init__(model)
        self.asked: list[tuple[int, int]] = []
        self.loaded: list[str] = []
        self._dies_at = dies_at

    async def generate(
        self, question: Question, videos: Sequence[Video], seeds: Sequence[str | None], sampling: Sampling
    ) -> tuple[list[int], list[Reply]]:
        self.asked.append((len(self.loaded), len(seeds)))
        if len(self.asked) == self._dies_at:
            raise Died("vLLM ended (out of memory)")
        return await super().generate(question, videos, seeds, sampling)

    async def load_weights(self, folder: Path) -> None:
        self.loaded.append(folder.name)
        await super().load_weights(folder)


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # whose path is short, as sockets need
        yield Path(folder) / "s"


@pytest.fixture
def by_engine(monkeypatch: pytest.MonkeyPatch, socket: Path) -> Callable[..., dict[str, Any]]:
    """Train with the engine at the socket."""

    def train(folder: Path, examples: list[Example], home: Path, seen: Seen | None = None, **changes: Any) -> Any:
        monkeypatch.setenv(VARIABLE, f"unix:{socket}")
        try:
            return grpo(folder, examples, home, seen or Seen(), reward=partly_dead, **{**ROW, **changes})
        finally:
            monkeypatch.delenv(VARIABLE)

    return train


def replies(home: Path) -> list[list[str]]:
    groups = read_rows(home / "out/rollouts.jsonl", RolloutGroup)
    return [[rollout.score.reply for rollout in group.rollouts] for group in groups]


def same(one: Path, other: Path, *, but: str | None = None) -> None:
    """Both trainings had the same rollouts, and learned the same but for rounding; ``but``: how the
    names of metrics begin that may differ."""
    assert replies(one) == replies(other)
    rows, expected = (
        [{name: value for name, value in row.items() if but is None or not name.startswith(but)} for row in logged]
        for logged in (history(one), history(other))
    )
    assert len(rows) == len(expected)
    for row, other_row in zip(rows, expected, strict=True):
        assert row == pytest.approx(other_row, rel=1e-3, abs=2e-5)
    left, right = (load_file(home / "out/final/model.safetensors") for home in (one, other))
    assert max((left[name] - right[name]).abs().max().item() for name in left) < 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora": LORA, "freeze": ["vision"]},
        {**CHOSEN, "epsilon_high": 0.28, "mixed": {"gamma": 0.1}},
        {"staleness": 2, "iterations": 2, "save_steps": 4},
    ],
    ids=["plain", "adapters", "chosen", "two-ahead"],
)
def test_an_engine_draws_what_the_training_would(
    folder: Path,
    examples: list[Example],
    tmp_path: Path,
    socket: Path,
    by_engine: Callable[..., Any],
    changes: dict[str, Any],
) -> None:
    engine, changes = Noted(folder), {"staleness": 1, **changes}
    with served(engine, at=socket):
        by_engine(folder, examples, tmp_path / "engine", **changes)
    grpo(folder, examples, tmp_path / "here", Seen(), reward=partly_dead, **{**ROW, **changes})
    same(tmp_path / "engine", tmp_path / "here")
    generations = 4 // changes.get("iterations", 1)
    assert [name.rpartition("-")[0] for name in engine.loaded] == [
        f"grpo.bridge-{n * changes.get('iterations', 1)}" for n in range(generations)
    ]
    assert {seeds for _, seeds in engine.asked} == {4}, "a group at once"
    if changes == {"staleness": 1}:
        assert [loaded for loaded, _ in engine.asked] == [1, 1, 1, 1, 2, 2, 3, 3], "by the weights of one step earlier"


def test_without_staleness_the_present_weights_draw(
    folder: Path, examples: list[Example], tmp_path: Path, socket: Path, by_engine: Callable[..., Any]
) -> None:
    engine = Noted(folder)
    with served(engine, at=socket):
        by_engine(folder, examples, tmp_path)
    assert [loaded for loaded, _ in engine.asked] == [1, 1, 2, 2, 3, 3, 4, 4]
    steps = history(tmp_path)
    assert [row["staleness"] for row in steps] == [0, 0, 0, 0]
    assert max(row["sampling/logp_difference/mean"] for row in steps) < 0.01


@pytest.mark.parametrize("lost_elsewhere", [False, True])
@pytest.mark.parametrize("decodes", [False, True])
def test_what_another_process_lost_is_decoded_by_all(lost_elsewhere: bool, decodes: bool) -> None:
    class OneOfTwo(DrawsAhead):
        def __init__(self) -> None:
            self._beside = _Beside()

        def _most_of_any_process(self, rows: int) -> int:
            assert decodes, "processes that wait, or fail, ask nobody"
            return max(rows, int(lost_elsewhere))

    trainer, engine = OneOfTwo(), cast(EngineRollouts, SimpleNamespace(decodes_when_lost=decodes))
    expected = None if decodes and lost_elsewhere else "drawn"
    assert trainer._unless_lost(engine, lambda: "drawn") == expected

    def lose() -> str:
        raise EngineLost("unix:x", "the engine ended", "look at its log")

    if decodes:
        assert trainer._unless_lost(engine, lose) is None
    else:
        with pytest.raises(EngineLost):
            trainer._unless_lost(engine, lose)
    assert trainer._beside is not None
    trainer._beside.end()


@pytest.mark.slow
@pytest.mark.parametrize("zero", [None, "zero3"])
def test_several_processes_have_one_engine(
    folder: Path, examples: list[Example], tmp_path: Path, socket: Path, by_engine: Callable[..., Any], zero: str | None
) -> None:
    row = {**ROW, "prompts_per_step": 4, "completions_per_device": 4, "staleness": 1}
    with served(Noted(folder), at=socket):
        by_engine(folder, examples, tmp_path / "one", **row)
    engine = Noted(folder)
    with served(engine, at=socket):
        engines = {} if zero is None else {"VIDBRIDGE_DEEPSPEED": str(ROOT / f"infra/deepspeed/{zero}.json")}
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.training.by_engine", tmp_path / "two", folder, json.dumps(row)],
            cwd=tmp_path,
            env={**IN_CHECKOUT, **engines, VARIABLE: f"unix:{socket}", "VIDBRIDGE_RANKS": "2"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(engine.loaded) == 4, "weights once a step, by the first process"
    # They are about the rows that pass through the loss, and rows that teach nothing fill the gaps
    # of processes with fewer others.
    same(tmp_path / "two", tmp_path / "one", but="sampling/")


def test_resumed_training_is_the_uninterrupted_one(
    folder: Path, examples: list[Example], tmp_path: Path, socket: Path, by_engine: Callable[..., Any]
) -> None:
    changes = {"staleness": 1, "steps": 6}
    with served(Noted(folder), at=socket):
        by_engine(folder, examples, tmp_path / "whole", **changes)
        with pytest.raises(Killed):
            by_engine(folder, examples, tmp_path / "cut", Cut(), **changes)
    with served(Noted(folder), at=socket):
        assert by_engine(folder, examples, tmp_path / "cut", **changes)["resumed_from"] == 4
    assert history(tmp_path / "cut") == history(tmp_path / "whole")
    one, other = (load_file(tmp_path / home / "out/final/model.safetensors") for home in ("cut", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_lost_engine_is_waited_for(
    staleness: int,
    folder: Path,
    examples: list[Example],
    tmp_path: Path,
    socket: Path,
    by_engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("stages.lib.engine.connection._RETRY_S", 0.05)
    with served(Noted(folder), at=socket):
        by_engine(folder, examples, tmp_path / "whole", staleness=staleness)
    done = threading.Event()

    def serve_twice() -> None:
        with served(Noted(folder, dies_at=6), at=socket) as first:
            serving.set()
            first.ended.wait(60)
        with served(Noted(folder), at=socket):
            done.wait(60)

    serving = threading.Event()
    thread = threading.Thread(target=serve_twice)
    thread.start()
    serving.wait(60)
    try:
        by_engine(folder, examples, tmp_path / "lost", staleness=staleness)
    finally:
        done.set()
        thread.join()
    assert history(tmp_path / "lost") == history(tmp_path / "whole")
    assert "waits for its rollout engine, as VIDBRIDGE_ROLLOUT_ENGINE_LOST says" in capsys.readouterr().err


@pytest.mark.parametrize("staleness", [0, 1])
def test_without_its_engine_a_training_decodes_or_fails(
    folder: Path,
    examples: list[Example],
    tmp_path: Path,
    socket: Path,
    by_engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    staleness: int,
) -> None:
    monkeypatch.setenv(LOST_VARIABLE, "fail")
    with served(Noted(folder, dies_at=6), at=socket), pytest.raises(EngineLost, match="out of memory"):
        by_engine(folder, examples, tmp_path / "failed", staleness=staleness)
    monkeypatch.setenv(LOST_VARIABLE, "hf")
    with served(Noted(folder, dies_at=6), at=socket):
        by_engine(folder, examples, tmp_path / "decoded", staleness=staleness)
    assert "rollouts are decoded here from now on" in capsys.readouterr().err
    steps = history(tmp_path / "decoded")
    assert [row["staleness"] for row in steps] == ([0, 0, 0, 0] if not staleness else [0, 1, 0, 1])


def test_other_prompts_end_training(
    folder: Path,
    examples: list[Example],
    tmp_path: Path,
    socket: Path,
    by_engine: Callable[..., Any],
) -> None:
    class Other(HfEngine):
        async def generate(self, *arguments: Any) -> tuple[list[int], list[Reply]]:
            read, drawn = await super().generate(*arguments)
            return read[1:], drawn

    with served(Other(folder), at=socket), pytest.raises(PromptMismatch, match="they part at token 0"):
        by_engine(folder, examples, tmp_path)
    with pytest.raises(EngineError, match="no engine answers there"):
        by_engine(folder, examples, tmp_path)


def test_variables() -> None:
    assert [when_lost({}), when_lost({LOST_VARIABLE: "hf"})] == ["wait", "hf"]
    with pytest.raises(InputError, match=r"VIDBRIDGE_ROLLOUT_ENGINE_LOST: 'retry' is unknown; set wait, hf or fail"):
        when_lost({LOST_VARIABLE: "retry"})
    assert not {VARIABLE, LOST_VARIABLE} & os.environ.keys()
