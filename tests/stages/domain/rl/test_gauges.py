"""Each gauge responds to the fault in its name, and not to a policy that does its task."""

from __future__ import annotations

import pytest

from stages.domain.core.records import Sample, TaskName
from stages.domain.core.replies import render_reply
from stages.domain.rl.gauges import GAUGES, alarms, judge_gap, measure, on_other_videos
from stages.domain.tasks.synthesis import synthesise
from tests.support.builders import SETTINGS, clip, rules

ROLLOUTS = 4


def _sample(task: TaskName) -> Sample:
    clips = [clip(), clip(1, colour="blue", shape="circle")]
    return next(s for _, samples, _ in synthesise(clips, task, SETTINGS, 8, 7) for s in samples)


def _gauges(
    task: TaskName, answers: list[str], rewards: list[float | None], thinking: str = "the red bar rises"
) -> dict[str, float]:
    replies = [render_reply(thinking, answer) for answer in answers]
    one = _sample(task)
    samples = [one.model_copy(update={"sample_id": f"prompt {n // ROLLOUTS}"}) for n in range(len(answers))]
    return measure(samples, replies, rewards, rules())


def test_an_honest_policy_raises_no_alarm() -> None:
    answers = ["the red bar rises then grows", "the red bar rises", "the red bar moves", "the red bar falls"]
    gauges = _gauges("caption", answers, [1.0, 0.5, 0.4, 0.6])
    assert alarms({name: value for name, value in gauges.items() if name != "length_reward_correlation"}) == {}
    assert gauges.keys() <= GAUGES.keys()


def test_length_that_is_paid_is_seen_within_a_prompt_only() -> None:
    longer = ["a", "a b", "a b c", "a b c d"]
    assert _gauges("caption", longer, [0.1, 0.2, 0.3, 0.4])["length_reward_correlation"] == pytest.approx(1.0)
    assert _gauges("caption", longer, [0.4, 0.3, 0.2, 0.1])["length_reward_correlation"] == pytest.approx(-1.0)
    # One prompt has long replies with high rewards, the other short ones with low rewards: within
    # each, length does not matter.
    two = [*["a b c d e"] * 4, *["a"] * 4]
    assert _gauges("caption", two, [1.0, 0.9, 1.0, 0.9, 0.1, 0.2, 0.1, 0.2])["length_reward_correlation"] == 0.0


def test_thinking_that_collapses() -> None:
    answers = ["the red bar rises"] * 4
    assert _gauges("dark_event_infer", answers, [1.0] * 4, thinking="ok")["empty_thinking"] == 1.0
    assert _gauges("dark_event_infer", answers, [1.0] * 4)["empty_thinking"] == 0.0


def test_lists_of_guesses() -> None:
    answers = [
        "the red bar rises or the red bar falls",
        "he sits, stands, or jumps",
        "he sits down and yawns",
        "the red bar rises",
    ]
    gauges = _gauges("dark_event_infer", answers, [0.0] * 4)
    assert gauges["enumeration"] == 0.5
    assert alarms(gauges)["enumeration"].startswith("enumeration 0.50, above 0.1: answers")


def test_keywords_beyond_what_events_need() -> None:
    answers = ["first then then next then finally", "the red bar rises then grows", "it rises, finally it grows", "x"]
    assert _gauges("caption", answers, [0.0] * 4)["keyword_stuffing"] == 0.25


def test_groups_that_teach_nothing_and_replies_that_were_not_scored() -> None:
    answers = ["the red bar rises"] * 8
    assert _gauges("caption", answers, [1.0] * 4 + [0.0, 1.0, 0.0, 0.0])["zero_variance_groups"] == 0.5
    unscored = _gauges("caption", answers[:4], [None] * 4)
    assert not {"zero_variance_groups", "length_reward_correlation"} & unscored.keys()
    partly = _gauges("caption", ["a", "a b", "a b c", "a b c d"], [0.1, None, 0.3, 0.4])
    assert partly["length_reward_correlation"] == pytest.approx(1.0, abs=0.02)


def test_malformed_replies_have_no_gauges_of_their_parts() -> None:
    gauges = measure([_sample("caption")] * 4, ["no tags"] * 4, [0.0] * 4, rules())
    assert gauges.keys() == {"length_reward_correlation", "zero_variance_groups"}


def test_what_other_videos_earn_is_a_share_of_what_theirs_earn() -> None:
    assert on_other_videos(0.8, 0.2, 0.8) == {"blank_video": 0.25, "shuffled_video": 1.0}
    assert on_other_videos(0.8, None, 0.4) == {"shuffled_video": 0.5}
    assert on_other_videos(0.0, 0.0, 0.0) == {}
    assert list(alarms(on_other_videos(0.5, 0.4, 0.5))) == ["blank_video", "shuffled_video"]


def test_the_gap_counts_replies_that_both_judges_could_judge() -> None:
    assert judge_gap([1.0, 1.0, None, 0.5], [0.5, 1.0, 0.0, None]) == {"judge_gap": 0.25}
    assert judge_gap([None], [1.0]) == {}
    assert list(alarms({"judge_gap": 0.2})) == ["judge_gap"]


def test_thinking_that_the_gate_refuses_is_counted_as_empty() -> None:
    asking = rules(min_thinking_words=4)
    reply = render_reply("so so so so so", "the red bar rises")
    assert measure([_sample("dark_event_infer")], [reply], [0.0], asking)["empty_thinking"] == 1.0
    assert measure([_sample("dark_event_infer")], [reply], [0.0], rules())["empty_thinking"] == 0.0
