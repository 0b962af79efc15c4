"""Judges by task: each reply goes to the judge of its task, at its own address, and counts are kept
apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.costs.calls import calls_of
from flows.costs.rates import Rates
from flows.repro.preflight import endpoints
from flows.repro.steps import Plan, PlanStep, StageMeta
from stages.domain.core.frames import Frames
from stages.domain.core.records import Sample
from stages.domain.core.replies import render_reply
from stages.domain.tasks.rewards import Referee
from stages.grpo.rewards import JudgedRewards
from stages.lib.judging.batch import JudgeUnavailableError, check_step, score_replies, usages_of
from stages.lib.judging.build import held_out_of, referee_of
from stages.lib.judging.embedder import LexicalEmbedder
from stages.lib.judging.endpoint import EndpointJudge
from stages.lib.judging.rule import RuleJudge
from stages.lib.validation.watch import watch_of
from stages.params import Params, ParamsError, parse_params
from stages.runtime.endpoint.settings import JudgeError
from stages.tools.suites.examiner import EndpointExaminer, RuleExaminer, examiner_of
from tests.support.builders import SAMPLES, rules
from tests.support.checkout import ROOT
from tests.support.judges.server import KEY, Fault, JudgeServer, judge_server
from tests.support.training.tiny import grpo_row
from tests.support.training.watched import settings

RULE = {"kind": "rule", "full_share": 0.8, "partial_share": 0.4}
READER = {
    "kind": "openai", "model": "referee", "revision": "r1", "temperature": 0.0, "max_tokens": 200, "seed": 0,
    "max_unavailable": 0.25,
}  # fmt: skip
DARK, TOLD, STRUCTURED = SAMPLES["dark_event_infer"], SAMPLES["caption"], SAMPLES["structured_caption"]


def planned(params: Params, root: Path, stage: str = "evaluate@base") -> dict[str, int | None]:
    meta = StageMeta(kind="evaluate", retries=0, timeout_s=1, warm=False)
    plan = Plan("summary", (PlanStep(stage, "will run", (), (), (), meta),))
    return {call.who: call.at_most for call in calls_of(root, params, plan)[stage]}


def never_called(sample: Sample) -> Frames:
    raise AssertionError(sample)


def parsed(judge: dict[str, Any], **changes: Any) -> Params:
    raw = yaml.safe_load((ROOT / "infra/recipes/tiny.yaml").read_text(encoding="utf-8"))
    return parse_params({**raw, "judge": judge, **changes})


def by_task(default: dict[str, Any], **tasks: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "by_task", "default": default, "tasks": tasks}


@pytest.fixture
def second() -> Iterator[JudgeServer]:
    with judge_server() as running:
        yield running


@pytest.fixture(autouse=True)
def at(monkeypatch: pytest.MonkeyPatch, server: JudgeServer, tmp_path: Path) -> None:
    for name in ("HELD_OUT_JUDGE", "JUDGE_CAPTION", "HELD_OUT_JUDGE_CAPTION"):
        monkeypatch.delenv(f"VIDBRIDGE_{name}_URL", raising=False)
    usual = {"VIDBRIDGE_JUDGE_CACHE": str(tmp_path / "cache"), "VIDBRIDGE_JUDGE_RETRIES": "0"}
    for name, value in server.environment(**usual).items():
        monkeypatch.setenv(name, value)


def test_each_task_has_its_judge_and_address(
    server: JudgeServer, second: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDBRIDGE_JUDGE_CAPTION_URL", second.url)
    monkeypatch.setenv("VIDBRIDGE_JUDGE_CAPTION_KEY", KEY)
    told = {**READER, "model": "reader"}
    referee = referee_of(parsed(by_task(READER, caption=told, structured_caption=told)))
    assert [judge.name for judge in referee.judges] == ["referee@r1", "reader@r1"]
    assert referee.of("structured_caption").judge is referee.of("caption").judge
    samples = [TOLD, DARK, TOLD, SAMPLES["mcqa"]]
    replies = [render_reply("x", text) for text in (TOLD.reference, DARK.reference, "the red bar rises", "A")]
    scores = score_replies(samples, replies, referee, rules())
    assert [score.sample_id for score in scores] == [sample.sample_id for sample in samples]
    assert (scores[1].value, scores[0].parts["precision"], scores[2].parts["precision"]) == (1.0, 1.0, 1.0)
    assert {asked.kind for asked in server.asked} == {"covers"}
    assert {asked.kind for asked in second.asked} == {"events", "entailed"}
    assert {body["model"] for body in second.bodies} == {"reader"}
    usage = usages_of(referee)
    assert usage["judge/requests"] == server.requests
    assert usage["judge_caption/requests"] == second.requests


def test_a_rule_may_judge_what_a_model_need_not(server: JudgeServer) -> None:
    referee = referee_of(parsed(by_task(RULE, caption=READER)))
    assert isinstance(referee.of("dark_event_infer").judge, RuleJudge)
    assert isinstance(referee.of("caption").judge, EndpointJudge)
    score_replies([DARK], [render_reply("x", DARK.reference)], referee, rules())
    assert server.requests == 0
    params = parsed(by_task(RULE, caption=READER))
    assert isinstance(examiner_of(params.judges.of("caption")[0]), EndpointExaminer)
    assert isinstance(examiner_of(params.judges.of("dark_event_infer")[0]), RuleExaminer)


def test_a_table_of_one_judge_is_that_judge() -> None:
    params = parsed(by_task(RULE, caption=RULE))
    assert len(params.judges.all) == 1
    assert referee_of(params).by_task == {}


def test_held_out_judges_may_differ_by_task_too(server: JudgeServer) -> None:
    held_out = {"share": 1.0, "judge": by_task(RULE, caption={**READER, "model": "other"})}
    params = parsed(by_task(RULE, caption=READER), held_out_judge=held_out)
    referee = referee_of(params)
    second = held_out_of(params, referee)
    assert second is not None
    rewards = JudgedRewards(params, "general", [DARK, TOLD], referee, second)
    replies = [render_reply("x", sample.reference) for sample in (DARK, TOLD)]
    assert rewards.score([DARK.sample_id, TOLD.sample_id], replies).gauges["judge_gap"] == 0
    assert {body["model"] for body in server.bodies} == {"referee", "other"}
    assert usages_of(second, "held_out_judge")["held_out_judge_caption/requests"] > 0
    assert list(endpoints(params, judged=True, written=False).items()) == [
        ("JUDGE", "judge.tasks.caption.kind is 'openai'")
    ], "all of them at one address"


def test_a_step_may_lack_what_its_judges_allow_in_their_shares(server: JudgeServer) -> None:
    params = parsed(by_task(RULE, caption=READER))
    referee = Referee(RuleJudge(0.8, 0.4), LexicalEmbedder(), referee_of(params).by_task)
    weights = {"dark_event_infer": 3.0, "caption": 1.0}  # 3/4 of 0, 1/4 of .25: a sixteenth
    check_step(referee, weights, 1, 16, "a step")
    server.always = Fault(status=503)
    score_replies([TOLD], [render_reply("x", "y")], referee, rules())
    with pytest.raises(JudgeUnavailableError, match=r"2 of 16 .* 6% are allowed; last error: HTTP 503.*JUDGE_URL"):
        check_step(referee, weights, 2, 16, "a step")


def test_a_measurement_may_lack_what_the_judges_of_its_tasks_allow() -> None:
    params = parsed(by_task(RULE, caption=READER))
    row = grpo_row(watch=settings())
    watch = watch_of(
        row,
        [DARK, DARK, DARK, TOLD],
        label="grpo@bridge",
        texts=params.prompt,
        load=never_called,
        referee=referee_of(params),
        rules=params.rewards,
        batch_size=4,
        seed=1,
    )
    assert watch is not None
    asking = watch.measure.args[0]  # type: ignore[attr-defined]
    asking.check(1, 16, "a measurement")  # a quarter of the samples at .25: a sixteenth
    with pytest.raises(JudgeUnavailableError, match=r"a measurement: 2 of 16 .* 6% are allowed"):
        asking.check(2, 16, "a measurement")


def test_the_plan_counts_watched_and_sampled_replies_by_judge(tmp_path: Path) -> None:
    both = by_task({**READER, "model": "other"}, caption=READER, structured_caption=READER)
    raw = parsed(both).model_dump(mode="json")
    sampled = {"replies": 4, "temperature": 1.0}
    watch = {"every": 550, "samples_per_task": 10, "max_new_tokens": 8, "sampled": sampled, "keep": "last"}
    raw["evaluation"]["sampled"] = sampled
    raw["sft"]["cold-start"]["watch"] = watch | {"judge": both, "rewards": raw["rewards"], "own_tasks": None}
    watched = parse_params(raw)
    assert planned(watched, tmp_path) == {"judge": 7 * 240 * 2, "judge_caption": 7 * 240 * (22 + 11)}
    # At steps 0, 550 and 1100, a greedy reply and four sampled ones to each of ten samples a task.
    assert planned(watched, tmp_path, "sft@cold-start") == {"judge": 3 * 50 * 2, "judge_caption": 3 * 50 * (22 + 11)}
    assert watched.sft["cold-start"].steps == 1100


def test_each_judge_is_counted_at_the_mixture_that_asks_it_most(tmp_path: Path) -> None:
    def counted(judge: dict[str, Any], sampler: Any) -> dict[str, int]:
        raw = parsed(judge).model_dump(mode="json")
        raw["grpo"]["general"]["sampler"] = sampler
        found = planned(parse_params(raw), tmp_path, "grpo@general")
        return {who: count for who, count in found.items() if count is not None}

    other, ratio = {**READER, "model": "other"}, {"live_decay": 0.9, "least_live": 0.25}
    both = by_task(other, caption=READER, structured_caption=READER)
    plain, sampled = counted(both, "mixture"), counted(both, ratio)
    assert plain.keys() == sampled.keys() == {"judge", "judge_caption"}
    assert sampled["judge"] > 1.5 * plain["judge"], "not only the captions' judge"
    assert sampled["judge_caption"] > 1.5 * plain["judge_caption"]
    alone = counted(READER, ratio)["judge"]
    assert max(sampled.values()) <= alone < sum(sampled.values())


def test_the_plan_counts_questions_by_judge(tmp_path: Path) -> None:
    params = parsed(by_task(RULE, caption=READER))
    assert planned(params, tmp_path) == {"judge_caption": 3 * 240 * 22}
    both = parsed(by_task({**READER, "model": "other"}, caption=READER, structured_caption=READER))
    assert planned(both, tmp_path) == {"judge": 3 * 240 * 2, "judge_caption": 3 * 240 * (22 + 11)}
    rates = Rates(calls_per_1000={"judge": 0.6, "judge_caption": 0.1, "held_out_judge": 2.0})
    assert [rates.price(who) for who in ("judge", "judge_caption", "judge_qa", "held_out_judge_caption", "writer")] == [
        0.6, 0.1, 0.6, 2.0, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (by_task(RULE, nothing=RULE), "judge.tasks.nothing"),
        (by_task(RULE, mcqa=RULE), "judge.tasks: 'mcqa' is scored by rule, no judge reads it; remove it"),
        (by_task(RULE, qa=RULE), "judge.tasks: 'qa' is not synthesised"),
        (by_task(RULE, caption={**READER, "seed": -1}), "judge.tasks.caption.seed: "),
        ({"kind": "by_task", "default": RULE, "tasks": {}}, "judge.tasks: "),
        (by_task(by_task(RULE, caption=READER), caption=READER), "judge.default: "),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(judge: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as raised:
        parsed(judge)
    assert message in str(raised.value)


def test_messages_name_the_judge_of_the_task(monkeypatch: pytest.MonkeyPatch, server: JudgeServer) -> None:
    monkeypatch.delenv("VIDBRIDGE_JUDGE_URL")
    with pytest.raises(JudgeError, match=r"VIDBRIDGE_JUDGE_URL: not set, and judge.tasks.caption.kind is 'openai'"):
        referee_of(parsed(by_task(RULE, caption=READER)))
    monkeypatch.setenv("VIDBRIDGE_JUDGE_CAPTION_URL", server.url)
    monkeypatch.setenv("VIDBRIDGE_JUDGE_CAPTION_KEY", KEY)
    referee = referee_of(parsed(by_task(RULE, caption=READER)))
    server.always = Fault(status=404)
    with pytest.raises(JudgeError, match=r"VIDBRIDGE_JUDGE_CAPTION_URL.*judge.tasks.caption.model"):
        score_replies([TOLD], [render_reply("x", "y")], referee, rules())
