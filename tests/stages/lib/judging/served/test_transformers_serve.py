"""The judge's client against a third-party server: `transformers serve`, with two small language
models made here.

It accepts the field ``response_format`` and ignores it (5.23): only the prompt guides the model's
output.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flows.processes.prefect_server import free_port
from stages.domain.core.records import Verdict
from stages.domain.core.replies import render_reply
from stages.domain.tasks.scoring import reward
from stages.lib.judging.batch import score_replies
from stages.lib.judging.endpoint import EndpointJudge
from stages.lib.judging.prompts import Coverage, Question, ask_covers, ask_right
from stages.runtime.endpoint.settings import endpoint_settings
from tests.support.builders import SAMPLES, referee, rules
from tests.support.judges.client import judge_params
from tests.support.servers.program import running

DARK, MIXED = SAMPLES["dark_event_infer"], SAMPLES["mix_vid_qa"]
FULL, NONE = ask_covers(DARK, DARK.reference), ask_covers(DARK, "the blue circle sleeps")
ANSWERS = {
    FULL: json.dumps({"reason": "it is the event", "score": 2}),
    NONE: json.dumps({"reason": "another event", "score": 0}),
}
START_S = 120


def make(folder: Path, steps: int) -> Path:
    """A Qwen2 of 40 k parameters; after ``steps`` of training it answers as ``ANSWERS`` has it,
    after none it babbles."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    from stages.base.tokenizer import train_tokenizer
    from stages.lib.models.chat import chat_template

    texts = [f"{message['content']} {answer}" for question, answer in ANSWERS.items() for message in question.messages]
    tokenizer = train_tokenizer(texts * 2, (), 1024)
    tokenizer.chat_template = chat_template("qwen2_vl")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                initializer_range=32**-0.5,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimiser.zero_grad()
            for question, answer in ANSWERS.items():
                asked = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, return_dict=True)[
                    "input_ids"
                ]
                said = tokenizer(answer + tokenizer.eos_token)["input_ids"]
                ids, labels = torch.tensor([asked + said]), torch.tensor([[-100] * len(asked) + said])
                model(input_ids=ids, labels=labels).loss.backward()
            optimiser.step()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    """Address of a server that loads any model that a request names; the models are made while it
    starts."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    env = os.environ | {"HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    health = f"http://127.0.0.1:{port}/health"
    with running([*command, "--device", "cpu"], health, home / "log", env=env, start_s=START_S) as wait:
        make(home / "learned", 25)
        make(home / "babbling", 0)
        wait()
        yield f"http://127.0.0.1:{port}/v1"


def judge_at(url: str, model: Path, cache: Path) -> EndpointJudge:
    environ = {"VIDBRIDGE_JUDGE_URL": url, "VIDBRIDGE_JUDGE_CACHE": str(cache), "VIDBRIDGE_JUDGE_RETRIES": "0"}
    return EndpointJudge(judge_params(model=str(model), max_tokens=60), endpoint_settings(environ))


def tokens(model: Path, questions: list[Question]) -> int:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = [
        tokenizer.apply_chat_template(q.messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        for q in questions
    ]
    return sum(len(ids) for ids in asked)


def test_a_verdict_that_a_served_model_writes_is_read_and_counted(url: str, home: Path, tmp_path: Path) -> None:
    model = home / "learned"
    judge = judge_at(url, model, tmp_path)
    assert judge.ask([FULL, NONE]) == {
        FULL: Coverage(reason="it is the event", score=2),
        NONE: Coverage(reason="another event", score=0),
    }
    assert judge.usage["prompt_tokens"] == tokens(model, [FULL, NONE])
    assert 20 < judge.usage["completion_tokens"] <= 2 * 60
    replies = [render_reply("x", DARK.reference), render_reply("x", "the blue circle sleeps")]
    scores = score_replies([DARK, DARK], replies, referee(judge), rules())
    assert [score.value for score in scores] == [1.0, 0.0]
    assert (judge.usage["requests"], judge.usage["cache_hits"]) == (2, 2)


def test_what_a_served_model_babbles_is_invalid_and_no_score(url: str, home: Path, tmp_path: Path) -> None:
    judge = judge_at(url, home / "babbling", tmp_path)
    questions = [FULL, ask_right(MIXED, MIXED.reference)]
    for verdict in judge.ask(questions).values():
        assert isinstance(verdict, Verdict)
        assert (verdict.outcome, verdict.score) == ("invalid", None)
    assert judge.usage["prompt_tokens"] == tokens(home / "babbling", questions)
    assert judge.usage["completion_tokens"] > 0
    assert (judge.usage["invalid"], judge.usage["unavailable"]) == (2, 0)
    (score,) = score_replies([DARK], [render_reply("x", DARK.reference)], referee(judge), rules())
    assert (score.format_ok, score.value, reward(score, rules(), ())) == (True, None, None)


def test_a_model_that_the_server_lacks_is_unavailable(url: str, home: Path, tmp_path: Path) -> None:
    verdict = judge_at(url, home / "nowhere", tmp_path).covers(DARK, DARK.reference)
    assert (verdict.outcome, verdict.score) == ("unavailable", None)
