"""Training on the verdicts of a judge at an endpoint: it learns, stops when the judge is gone, and
goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.domain.core.records import Sample
from stages.domain.core.replies import render_reply
from stages.domain.tasks.rewards import Referee, RewardRules
from stages.domain.tasks.scoring import reward
from stages.grpo.train import train_grpo
from stages.lib.judging.batch import JudgeUnavailableError, check_judged, score_replies
from stages.lib.judging.embedder import LexicalEmbedder
from stages.lib.judging.endpoint import EndpointJudge
from stages.lib.training.mixture import Example
from stages.params import OpenAIJudgeParams, load_params
from stages.runtime.endpoint import client
from stages.runtime.endpoint.settings import endpoint_settings
from tests.support.checkout import ROOT
from tests.support.judges.server import Asked, Fault, JudgeServer, judge_server
from tests.support.training.tiny import Paying, Seen, grpo_row, nothing, tasks_of


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    with judge_server() as running:
        yield running


@pytest.fixture
def rules() -> RewardRules:
    return load_params(ROOT / "params.yaml").rewards


REFERENCE = "abcdefghijklmnopqrstuvwxyz red green blue bar think answer it is a"


def formed(reply: str) -> str:
    """A random start keeps no format; its first character is its answer."""
    return reply.strip().strip("<>/")[:1] or "0"


def judge_of(server: JudgeServer, home: Path, allowed: float = 0.25) -> EndpointJudge:
    params = OpenAIJudgeParams(
        kind="openai", model="m", revision="1", temperature=0, max_tokens=64, seed=0, max_unavailable=allowed
    )
    environ = server.environment(VIDBRIDGE_JUDGE_CACHE=str(home / "judge"), VIDBRIDGE_JUDGE_RETRIES="0")
    return EndpointJudge(params, endpoint_settings(environ))


def sample_of(example: Example) -> Sample:
    """A caption's reference is all letters in which a random start may happen to reply; the judge
    finds a part of it there."""
    return Sample.model_validate(
        {
            "sample_id": example.sample_id,
            "task": "dark_event_infer",
            "split": "train",
            "clip_id": "c",
            "timeline": {"rate": "8", "segments": [{"clip_id": "c", "span": {"start": 0, "stop": 8}}]},
            "sampled_frames": 4,
            "question": "what happens ?",
            "reference": REFERENCE,
        }
    )


def train(
    folder: Path,
    examples: Sequence[Example],
    home: Path,
    seen: Seen,
    judge: EndpointJudge,
    rules: RewardRules,
    gauges: Callable[[Any, Any, Any], dict[str, float]] = nothing,
    told: list[tuple[int, int]] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    samples = {example.sample_id: sample_of(example) for example in examples}

    def rewarded(ids: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        said = [render_reply("x", formed(reply)) for reply in replies]
        scores = score_replies([samples[i] for i in ids], said, Referee(judge, LexicalEmbedder()), rules)
        return [reward(score, rules, ()) for score in scores]

    def on_masked(masked: int, rollouts: int) -> None:
        check_judged(judge, masked, rollouts, "a step of grpo@bridge")
        if told is not None:
            told.append((masked, rollouts))

    return train_grpo(
        folder,
        examples,
        grpo_row(**changes),
        stage="grpo@bridge",
        rewards=Paying(rewarded, gauges=gauges, on_masked=on_masked, tasks=tasks_of(examples)),
        seed=1,
        out=home / "out",
        scratch=home / "scratch",
        hooks=seen.hooks,
    )


def test_it_learns_from_verdicts_and_some_may_be_missing(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, server: JudgeServer, rules: RewardRules
) -> None:
    # Equal replies share a verdict, and which request comes first is not known: two faults may mask
    # many rollouts.
    judge = judge_of(server, tmp_path, allowed=0.75)
    server.faults.extend([Fault(status=500), Fault(content="no JSON")])
    train(folder, examples, tmp_path, seen, judge, rules, steps=3, save_steps=3)
    logged = dict(seen.metrics)
    assert logged[1]["masked_rollouts"] >= 2, "one unavailable, one invalid; equal replies share a verdict"
    assert logged[3]["masked_rollouts"] == 0
    assert (judge.usage["invalid"], judge.usage["unavailable"]) == (1, 1)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/final/model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_judge_that_is_gone_stops_training_which_goes_on_when_it_is_back(
    folder: Path, examples: list[Example], tmp_path: Path, server: JudgeServer, rules: RewardRules
) -> None:
    train(folder, examples, tmp_path / "whole", Seen(), judge_of(server, tmp_path / "whole"), rules)

    class Leaves(Seen):
        def on_checkpoint(self, checkpoint: Any, saved: Path) -> None:
            super().on_checkpoint(checkpoint, saved)
            if checkpoint.step == 4:
                server.always = Fault(status=503)

    home = tmp_path / "cut"
    (home / "judge").mkdir(parents=True)
    asked = server.requests
    with pytest.raises(
        JudgeUnavailableError, match=r"judge.max_unavailable: a step of grpo@bridge: .*HTTP 503.*last checkpoint"
    ):
        train(folder, examples, home, Leaves(), judge_of(server, home), rules)
    assert server.requests > asked
    assert not (home / "out").exists()
    server.always = None
    assert train(folder, examples, home, Seen(), judge_of(server, home), rules)["resumed_from"] == 4
    mine, theirs = (load_file(tmp_path / name / "out/final/model.safetensors") for name in ("cut", "whole"))
    for name, tensor in mine.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6), name


def test_where_a_fifth_of_the_calls_fail_nobody_earns_nothing_for_it(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, server: JudgeServer, rules: RewardRules
) -> None:
    judge = judge_of(
        server, tmp_path, allowed=0.9
    )  # equal replies share a verdict: a fifth of the questions may be many replies
    faults = [
        Fault(status=500),
        Fault(content="no JSON"),
        Fault(cut=True),
        Fault(content='{"reason": "x", "score": 9}'),
    ]
    turns: dict[
        str, int
    ] = {}  # of every five answers, in order of their first question, one fails whenever it is asked about

    def fails(asked: Asked) -> Fault | None:
        answer = asked.inside["answer"]
        if answer not in REFERENCE:
            return None
        turn = turns.setdefault(answer, len(turns))
        return faults[turn // 5 % 4] if turn % 5 == 0 else None

    server.fails = fails
    told: list[tuple[int, int]] = []
    rewards: list[tuple[str, float | None]] = []

    def kept(_: Sequence[str], replies: Sequence[str], values: Sequence[float | None]) -> dict[str, float]:
        rewards.extend(zip(replies, values, strict=True))
        return {}

    train(folder, examples, tmp_path, seen, judge, rules, steps=4, save_steps=4, gauges=kept, told=told)
    masked = [value for _, value in rewards].count(None)
    assert len(rewards) == 4 * 16
    assert told == [(sum(value is None for _, value in rewards[step * 16 : step * 16 + 16]), 16) for step in range(4)]
    assert 0 < masked < len(rewards)
    assert (judge.usage["invalid"] > 0, judge.usage["unavailable"] > 0) == (True, True)
    lost_worth = 0
    for reply, value in rewards:
        worth = (2.0 if formed(reply) == REFERENCE else 1.0 if formed(reply) in REFERENCE else 0.0) / 2
        assert value in (worth, None), "a number is always the judge's own"
        lost_worth += value is None and worth > 0
    assert lost_worth > 0, "a failure took something that was worth more than 0, and made no 0 of it"
