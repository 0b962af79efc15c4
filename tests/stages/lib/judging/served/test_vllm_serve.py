"""Judge, held-out judge and writer against `vllm serve` with a small published language model,
SmolLM2-135M-Instruct: the wire and the schema, not its judgement.

vLLM holds the model to the schema of ``response_format``, so an answer is invalid only where it is
cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.domain.core.records import Record, Sample, Verdict
from stages.domain.tasks.synthesis import synthesise
from stages.lib.judging.endpoint import EndpointJudge
from stages.lib.judging.prompts import Coverage, Question, Rightness, ask_covers, ask_right
from stages.runtime.endpoint.settings import Role, endpoint_settings
from stages.synthesize.writer import Writer, write_questions
from tests.support.builders import SAMPLES, SETTINGS, clip
from tests.support.checkout import ROOT
from tests.support.judges.client import judge_params
from tests.support.judges.writer import settings
from tests.support.servers.engine.real import NEEDED
from tests.support.servers.vllm import serving

#: `make test-vllm` installs the package with the weights, and writes them in this form.
MODEL = ROOT / ".tools/smollm/model"
NAME = "smollm2-135m-instruct"
MAX_TOKENS = 160
DARK, MIXED = SAMPLES["dark_event_infer"], SAMPLES["mix_vid_qa"]

pytestmark = [
    *NEEDED,
    pytest.mark.skipif(not (MODEL / "config.json").is_file(), reason=f"{MODEL} is missing; make test-vllm writes it"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("vllm") / "log"
    with serving([".", "--served-model-name", NAME, "--dtype", "float32"], MODEL, log, 2048) as address:
        yield address


@pytest.fixture
def environ(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    values = {
        "VIDBRIDGE_JUDGE_URL": url,
        "VIDBRIDGE_HELD_OUT_JUDGE_URL": url,
        "VIDBRIDGE_JUDGE_CACHE": str(tmp_path / "cache"),
        "VIDBRIDGE_JUDGE_TIMEOUT_S": "300",
        "VIDBRIDGE_JUDGE_RETRIES": "0",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


def tokens(questions: list[Question]) -> int:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    return sum(
        len(tokenizer.apply_chat_template(q.messages, add_generation_prompt=True, return_dict=True)["input_ids"])
        for q in questions
    )


@pytest.mark.parametrize("role", ["JUDGE", "HELD_OUT_JUDGE"])
def test_verdicts_of_a_small_model(environ: dict[str, str], role: Role) -> None:
    """The question reaches it whole, and what it writes is a verdict, unless it is cut off."""
    judge = EndpointJudge(judge_params(model=NAME, max_tokens=MAX_TOKENS), endpoint_settings(environ, role))
    questions: dict[Question, type[Record]] = {
        ask_covers(DARK, DARK.reference): Coverage,
        ask_right(MIXED, MIXED.reference): Rightness,
    }
    answers = judge.ask(list(questions))
    assert judge.usage["prompt_tokens"] == tokens(list(questions))
    assert (judge.usage["requests"], judge.usage["unavailable"]) == (2, 0)
    for question, answer in answers.items():
        if isinstance(answer, Verdict):
            assert answer.outcome == "invalid"
            assert "cut off after judge.max_tokens" in answer.reason
        else:
            assert isinstance(answer, questions[question])
    read = sum(not isinstance(answer, Verdict) for answer in answers.values())
    judge.ask(list(questions))
    assert judge.usage["cache_hits"] == read


def test_a_question_of_a_small_model(environ: dict[str, str]) -> None:
    """A proposal is read or cut off, and what is kept or refused of it is counted."""
    clips = {
        c.clip_id: c for c in (clip(0, "red", "bar", ("rises", "grows")), clip(1, "green", "bar", ("falls", "shrinks")))
    }
    mixed = [s for _, samples, _ in synthesise(list(clips.values()), "mix_vid_qa", SETTINGS, 8, 7) for s in samples][:1]
    author = Writer(settings(model=NAME, max_tokens=MAX_TOKENS, tries=1))
    (row,) = write_questions(mixed, clips.__getitem__, author)
    assert isinstance(row, Sample)
    assert (author.propose.usage["requests"], author.propose.usage["unavailable"]) == (1, 0)
    assert author.check.usage["unavailable"] == 0
    cut_off = author.propose.usage["invalid"] + author.check.usage["invalid"]
    assert author.tally.refused["unreadable"] <= cut_off
    assert sum(author.tally.questions.values()) == 1
    assert (author.tally.questions["written"], sum(author.tally.refused.values())) in ((1, 0), (0, 1))
