"""The judge at an endpoint, over real sockets: its requests, parsing and retries."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from stages.domain.core.records import Sample
from stages.domain.core.replies import render_reply
from stages.domain.tasks.scoring import reward
from stages.lib.judging.batch import JudgeUnavailableError, check_judged, score_replies, usage_of
from stages.lib.judging.prompts import Question, ask_covers
from stages.lib.judging.rule import RuleJudge
from stages.runtime.endpoint import client
from stages.runtime.endpoint.client import retry_after_s
from stages.runtime.endpoint.settings import JudgeError, endpoint_settings
from tests.support.builders import SAMPLES, referee, rules
from tests.support.judges.client import endpoint_judge
from tests.support.judges.server import KEY, Fault, JudgeServer

DARK = SAMPLES["dark_event_infer"]


def test_every_verdict_is_read(server: JudgeServer, tmp_path: Path) -> None:
    judge = endpoint_judge(server, tmp_path)
    assert [judge.covers(DARK, text).score for text in (DARK.reference, "the red bar", "it sleeps")] == [2.0, 1.0, 0.0]
    mixed = SAMPLES["mix_vid_qa"]
    assert [judge.right(mixed, text).score for text in (mixed.reference, "it sleeps")] == [1.0, 0.0]
    assert judge.extract_events("it rises then it falls") == ("it rises", "it falls")
    assert [judge.entailed(event, "it rises then it falls").score for event in ("it falls", "it sleeps")] == [1.0, 0.0]
    assert judge.covers(DARK, "x").judge == "referee@r1"
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("referee", 0.0, 200, 0)


def test_the_truth_scores_the_maximum_and_a_batch_is_asked_in_two_rounds(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pause_s = 0.02
    samples = [SAMPLES[task] for task in ("dark_event_infer", "mix_vid_qa", "mcqa", "caption")]
    replies = [render_reply("x", sample.reference) for sample in samples]
    judge = endpoint_judge(server, tmp_path)
    asked: list[int] = []
    ask = judge.ask

    def counted(questions: Collection[Question]) -> Any:
        asked.append(len(questions))
        return ask(questions)

    monkeypatch.setattr(judge, "ask", counted)
    scores = score_replies(samples, replies, referee(judge), rules())
    assert [score.value for score in scores[:3]] == [1.0, 1.0, 1.0]
    assert len(asked) == 2, "events, then which of them are entailed"
    assert score_replies(samples, replies, referee(judge), rules()) == scores
    assert score_replies(samples, ["no format"] * 4, referee(judge), rules())[0].value == 0.0


def test_the_rule_judge_scores_a_batch_as_it_scores_one_by_one() -> None:
    judge = RuleJudge(0.8, 0.4)
    (score,) = score_replies([DARK], [render_reply("x", DARK.reference)], referee(judge), rules())
    assert score.value == 1.0
    assert usage_of(judge) == {}
    check_judged(judge, 0, 1, "a step")


def test_reference_events_are_extracted_once(server: JudgeServer, tmp_path: Path) -> None:
    caption = SAMPLES["caption"].model_copy(update={"events": ()})
    replies = [render_reply("x", f"the red bar rises then it does {n}") for n in range(8)]
    score_replies([caption] * 8, replies, referee(endpoint_judge(server, tmp_path)), rules())
    score_replies([caption] * 8, replies, referee(endpoint_judge(server, tmp_path)), rules())
    assert set(server.times_asked().values()) == {1}
    assert (
        sum(asked.kind == "events" and asked.inside["description"] == caption.reference for asked in server.asked) == 1
    )


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_requests_are_under_way_and_no_more(server: JudgeServer, tmp_path: Path, concurrency: int) -> None:
    server.pause_s = 0.05
    judge = endpoint_judge(server, tmp_path, {"VIDBRIDGE_JUDGE_CONCURRENCY": str(concurrency)})
    answers = judge.ask([ask_covers(DARK, f"answer {n}") for n in range(12)])
    assert len(answers) == server.requests == 12
    assert server.most_under_way == concurrency


PASSING = {
    "429": Fault(status=429),
    "500": Fault(status=500),
    "503": Fault(status=503, body=b"<html>busy</html>"),
    "cut": Fault(cut=True),
    "slow": Fault(pause_s=4),
    "body cut short": Fault(missing_bytes=50),
}


def patience(name: str) -> dict[str, str]:
    """Only a slow answer is given up. A good one has two seconds, however loaded the machine is."""
    return {"VIDBRIDGE_JUDGE_TIMEOUT_S": "2"} if name == "slow" else {}


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_tried_again(server: JudgeServer, tmp_path: Path, name: str) -> None:
    server.faults.extend([PASSING[name]] * 2)
    judge = endpoint_judge(server, tmp_path, patience(name))
    assert judge.covers(DARK, DARK.reference).score == 2.0
    assert judge.usage["retries"] == 2


@pytest.mark.parametrize("name", PASSING)
def test_what_does_not_pass_is_unavailable_and_not_kept(server: JudgeServer, tmp_path: Path, name: str) -> None:
    server.faults.extend([PASSING[name]] * 2)
    judge = endpoint_judge(server, tmp_path, {**patience(name), "VIDBRIDGE_JUDGE_RETRIES": "1"})
    (score,) = score_replies([DARK], [render_reply("x", DARK.reference)], referee(judge), rules())
    assert score.value is None
    assert reward(score, rules(), ()) is None
    assert "unavailable" in score.reason
    assert judge.last_error
    assert judge.covers(DARK, DARK.reference).score == 2.0, "asked again"


INVALID = {
    "malformed body": Fault(body=b"{not json"),
    "another body": Fault(body=b'{"hello": 1}'),
    "no choice": Fault(body=b'{"choices": []}'),
    "no content": Fault(mute=True),
    "truncated JSON": Fault(content='{"reason": "good", "sco'),
    "cut off at the limit": Fault(content='{"reason": "good", "score": 2}', finish="length"),
    "wrong schema": Fault(content='{"verdict": 2}'),
    "no reason": Fault(content='{"score": 2}'),
    "a score in words": Fault(content='{"reason": "good", "score": "2"}'),
    "true for 1": Fault(content='{"reason": "good", "score": true}'),
    "a score with a fraction": Fault(content='{"reason": "good", "score": 1.5}'),
    "no such score": Fault(content='{"reason": "good", "score": 3}'),
    "text behind it": Fault(content='{"reason": "good", "score": 2} is too much'),
    "thinking that does not end": Fault(content='<think>{"reason": "good", "score": 2}'),
    "two verdicts": Fault(content='{"reason": "good", "score": 2}{"reason": "good", "score": 2}'),
    "a bare number": Fault(content="2"),
    "a list of two": Fault(content='[{"reason": "good", "score": 2}, {"reason": "bad", "score": 0}]'),
    "words": Fault(content="2 points, well done"),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_cannot_be_read_is_invalid_and_never_a_score(server: JudgeServer, tmp_path: Path, name: str) -> None:
    server.faults.append(INVALID[name])
    judge = endpoint_judge(server, tmp_path)
    verdict = judge.covers(DARK, DARK.reference)
    assert (verdict.outcome, verdict.score) == ("invalid", None)
    assert judge.usage["invalid"] == 1
    assert judge.covers(DARK, DARK.reference).score == 2.0, "it was not kept"


def test_what_a_judge_puts_around_its_verdict_is_kept_and_read_again(server: JudgeServer, tmp_path: Path) -> None:
    server.faults.append(
        Fault(content='<think>It is.</think>\n```json\n{"reason": "good", "score": 1.0, "sure": true}\n```<|im_end|>')
    )
    for _ in range(2):
        assert endpoint_judge(server, tmp_path).covers(DARK, DARK.reference).score == 1.0
    assert server.requests == 1, "the second time it comes from the cache"


def test_more_events_than_ten_are_invalid(server: JudgeServer, tmp_path: Path) -> None:
    server.always = Fault(content=json.dumps({"events": [f"event {n}" for n in range(11)]}))
    (score,) = score_replies(
        [SAMPLES["caption"]], [render_reply("x", "many")], referee(endpoint_judge(server, tmp_path)), rules()
    )
    assert score.value is None
    assert "invalid" in score.reason


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (400, "judge.max_tokens"),
        (401, "set VIDBRIDGE_JUDGE_KEY"),
        (403, "VIDBRIDGE_JUDGE_KEY"),
        (404, "ends with /v1"),
        (301, "URL"),
    ],
)
def test_a_wrong_set_up_ends_at_once(server: JudgeServer, tmp_path: Path, status: int, remedy: str) -> None:
    server.always = Fault(status=status, body=f'{{"error": "what about {KEY}"}}'.encode())
    judge = endpoint_judge(server, tmp_path, {"VIDBRIDGE_JUDGE_CONCURRENCY": "2"})
    with pytest.raises(JudgeError, match=remedy) as raised:
        judge.ask([ask_covers(DARK, f"answer {n}") for n in range(20)])
    assert KEY not in str(raised.value)
    assert server.requests <= 4, "no retries, and the rest is not asked"


def test_retry_after_is_honoured(server: JudgeServer, tmp_path: Path) -> None:
    server.faults.append(Fault(status=429, headers={"Retry-After": "1"}))
    assert endpoint_judge(server, tmp_path).covers(DARK, DARK.reference).score == 2.0
    assert server.arrivals[1] - server.arrivals[0] >= 1.0


def test_an_endpoint_that_wants_an_hour_of_rest_is_not_waited_for(server: JudgeServer, tmp_path: Path) -> None:
    server.always = Fault(status=429, headers={"Retry-After": "3600"})
    begun = time.monotonic()
    verdict = endpoint_judge(server, tmp_path).covers(DARK, "x")
    assert verdict.outcome == "unavailable"
    assert "asks to wait 3600 s" in verdict.reason
    assert time.monotonic() - begun < 5


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after_s("7") == 7.0
    assert retry_after_s("-7") == retry_after_s("") == retry_after_s("soon") == 0.0
    assert 50 < retry_after_s(format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)) <= 60


def test_pauses_double_and_vary(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.2)
    server.faults.extend([Fault(status=500)] * 3)
    endpoint_judge(server, tmp_path, {"VIDBRIDGE_JUDGE_RETRIES": "3"}).covers(DARK, "x")
    pauses = [after - before for before, after in zip(server.arrivals, server.arrivals[1:], strict=False)]
    for pause, most in zip(pauses, (0.2, 0.4, 0.8), strict=True):
        assert most / 2 <= pause < most + 0.25


def test_an_endpoint_that_is_down_is_given_up_for_the_batch(server: JudgeServer, tmp_path: Path) -> None:
    server.always = Fault(status=500)
    environ = {"VIDBRIDGE_JUDGE_CONCURRENCY": "2", "VIDBRIDGE_JUDGE_RETRIES": "0"}
    judge = endpoint_judge(server, tmp_path, environ)
    replies = [render_reply("x", f"answer {n}") for n in range(40)]
    scores = score_replies([DARK] * 40, replies, referee(judge), rules())
    assert [score for score in scores if score.value is not None] == []
    assert server.requests < 10
    assert judge.usage["unavailable"] == 40
    server.always = None
    assert all(score.value is not None for score in score_replies([DARK] * 40, replies, referee(judge), rules())), (
        "the next batch asks again"
    )


def test_too_many_without_a_verdict_stop_the_stage(server: JudgeServer, tmp_path: Path) -> None:
    judge = endpoint_judge(server, tmp_path, max_unavailable=0.25)
    check_judged(judge, 2, 8, "a step of grpo@bridge")
    server.always = Fault(status=503)
    judge.covers(DARK, "x")
    with pytest.raises(JudgeUnavailableError) as raised:
        check_judged(judge, 3, 8, "a step of grpo@bridge")
    for part in (
        "judge.max_unavailable",
        "a step of grpo@bridge",
        "3 of 8",
        "38%",
        "25%",
        "HTTP 503",
        "resumes from its last checkpoint",
    ):
        assert part in str(raised.value)


def test_tokens_and_hits_are_counted(server: JudgeServer, tmp_path: Path) -> None:
    judge = endpoint_judge(server, tmp_path)
    judge.covers(DARK, "a")
    judge.covers(DARK, "a")
    assert usage_of(judge) == {
        "judge/cache_hits": 1.0,
        "judge/cached_tokens": 60.0,
        "judge/completion_tokens": 7.0,
        "judge/prompt_tokens": 100.0,
        "judge/questions": 2.0,
        "judge/requests": 1.0,
    }


def test_the_key_is_nowhere(
    server: JudgeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    said = []
    with caplog.at_level(logging.DEBUG):
        judge = endpoint_judge(server, tmp_path)
        said.append(repr(judge.__dict__))
        server.faults.extend(
            [Fault(status=500, body=KEY.encode()), Fault(cut=True), Fault(body=f"{KEY}".encode()), Fault()]
        )
        said += [repr(judge.covers(DARK, text)) for text in "abc"]
        for status in (400, 401, 403, 404, 418):
            server.faults.append(
                Fault(status=status, body=json.dumps({"error": f"Incorrect API key {KEY[:9]}***, {KEY}"}).encode())
            )
            with pytest.raises(JudgeError) as raised:
                judge.covers(DARK, f"status {status}")
            said += [str(raised.value), repr(raised.value), repr(raised.getrepr(style="long", showlocals=False))]
            assert status not in (401, 403) or KEY[:9] not in str(raised.value), "not even a part of it"
    kept = b"".join(path.read_bytes() for path in (tmp_path / "judge").iterdir())
    assert b"reason" in kept, "this is the cache"
    assert KEY.encode() not in kept
    assert caplog.text, "something was logged"
    out, errors = capfd.readouterr()
    assert KEY not in "".join([*said, caplog.text, out, errors])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("URL", "", "VIDBRIDGE_JUDGE_URL: not set, and judge.kind is 'openai'"),
        ("URL", "127.0.0.1:8000/v1", "not a plain http:// or https:// address"),
        ("URL", "http://me:secret@host/v1", "put the key into VIDBRIDGE_JUDGE_KEY"),
        ("URL", "http://host:port/v1", "not a plain http"),
        ("KEY", "sec\u2028secret", "VIDBRIDGE_JUDGE_KEY: holds a space, a line break"),
        ("KEY", "secret secret", "VIDBRIDGE_JUDGE_KEY: holds a space, a line break"),
        (
            "CONCURRENCY",
            "0",
            "VIDBRIDGE_JUDGE_CONCURRENCY: '0' is not valid; set a whole number >= 1, or unset it (32)",
        ),
        ("CONCURRENCY", "2.5", "VIDBRIDGE_JUDGE_CONCURRENCY: '2.5'"),
        ("TIMEOUT_S", "0", "VIDBRIDGE_JUDGE_TIMEOUT_S: '0' is not valid; set a number of seconds above 0"),
        ("TIMEOUT_S", "nan", "VIDBRIDGE_JUDGE_TIMEOUT_S: 'nan'"),
        ("RETRIES", "-1", "VIDBRIDGE_JUDGE_RETRIES: '-1'"),
    ],
)
def test_what_the_environment_may_say(name: str, value: str, message: str) -> None:
    with pytest.raises(JudgeError) as raised:
        endpoint_settings({"VIDBRIDGE_JUDGE_URL": "http://127.0.0.1:1/v1", f"VIDBRIDGE_JUDGE_{name}": value})
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)


def test_without_a_key_none_is_sent() -> None:
    where = endpoint_settings({"VIDBRIDGE_JUDGE_URL": "http://127.0.0.1:1/v1/"})
    assert where.url == "http://127.0.0.1:1/v1"
    assert "authorization" not in client.open_client(where).headers


def test_a_reference_is_quoted_as_a_reply_is(server: JudgeServer, tmp_path: Path) -> None:
    sample = Sample.model_validate({**DARK.model_dump(mode="json"), "reference": "\ue000 \u202e<|im_end|>"})
    assert endpoint_judge(server, tmp_path).covers(sample, sample.reference).score == 2.0
