"""Rewards: the truth scores the maximum, any text stays in range, the published exploits are closed
by `hardened`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stages.baselines.constant import constant_reply
from stages.domain.core.records import Sample, Score, Verdict
from stages.domain.core.replies import parse_analysis, parse_reply, render_analysis, render_reply
from stages.domain.tasks import TASK_NAMES
from stages.domain.tasks.rewards import hardened_bonus, published_bonus
from stages.domain.tasks.scoring import objectives, reward, score_reply
from stages.lib.judging.rule import RuleJudge
from stages.lib.rows.jsonl import read_rows, write_rows
from tests.support.builders import JUDGE, REFEREE, SAMPLES, referee, rules, truth
from tests.support.texts import CAPTIONS, TEXTS


def test_a_reply_that_was_not_judged_is_read_back_as_such(tmp_path: Path) -> None:
    scores = [Score(sample_id="x", task="caption", reply="y", format_ok=True, value=value) for value in (None, 0.0)]
    write_rows(tmp_path / "predictions.jsonl", scores)
    assert read_rows(tmp_path / "predictions.jsonl", Score) == scores


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_truth_scores_the_maximum(task: str) -> None:
    score = score_reply(SAMPLES[task], truth(SAMPLES[task]), REFEREE, rules())
    assert score.format_ok
    assert score.value == 1.0


@pytest.mark.parametrize("task", ["dark_event_infer", "mix_vid_qa", "caption", "structured_caption"])
def test_the_careless_teacher_scores_less_than_the_truth(task: str) -> None:
    trace = SAMPLES[task].trace
    assert trace is not None
    assert trace.careless_answer is not None
    score = score_reply(SAMPLES[task], render_reply(trace.thinking, trace.careless_answer), REFEREE, rules())
    assert score.value is not None
    assert score.value < 1.0


@pytest.mark.parametrize("task", TASK_NAMES)
@given(thinking=TEXTS, answer=TEXTS)
def test_any_reply_stays_in_range_and_scores_the_same_twice(task: str, thinking: str, answer: str) -> None:
    sample = SAMPLES[task]
    if task == "structured_caption" and len(thinking) % 2:
        thinking = render_analysis(sample.subjects)
    reply = render_reply(thinking, answer)
    score = score_reply(sample, reply, REFEREE, rules())
    assert score.value is not None
    assert 0.0 <= score.value <= 1.0
    assert score_reply(sample, reply, REFEREE, rules()) == score


@given(TEXTS)
def test_bare_text_without_the_format_scores_nothing(text: str) -> None:
    if parse_reply(text) is None:
        assert score_reply(SAMPLES["caption"], text, REFEREE, rules()).value == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think><answer>b</answer> and more",
        "so <think>a</think><answer>b</answer>",
        "<answer>b</answer><think>a</think>",
        "<think>a</think><answer>b</answer><answer>c</answer>",
        "<think>a<think></think><answer>b</answer>",
        "<think>a</think> x <answer>b</answer>",
        "<think>a</think><answer> </answer>",
        "<think>a</think><answer>b",
    ],
)
def test_the_format_gate_refuses(text: str) -> None:
    assert parse_reply(text) is None


def test_the_format_gate_lets_white_space_pass() -> None:
    assert parse_reply("\n<think> a </think>\n<answer>b</answer>\n") == ("a", "b")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("the red bar rises", 2.0),
        ("the red bar moves", 1.0),
        ("the red circle rises", 1.0),
        ("the blue circle rises", 0.0),
        ("the red bar grows", 0.0),
        ("the red bar rises then grows then falls", 0.0),
        ("rises", 1.0),
        ("nothing", 0.0),
    ],
)
def test_dark_event_verdicts(answer: str, score: float) -> None:
    sample = SAMPLES["dark_event_infer"]
    assert sample.reference == "the red bar rises"
    assert JUDGE.covers(sample, answer).score == score


def test_mixed_answers_must_be_exact() -> None:
    sample = SAMPLES["mix_vid_qa"].model_copy(update={"reference": "the red bar rises"})
    assert [
        JUDGE.right(sample, text).score
        for text in ("the red bar rises", "the red bar moves", "the red bar rises and falls")
    ] == [1, 0, 0]


def test_open_text_is_judged_by_content_words() -> None:
    sample = SAMPLES["dark_event_infer"].model_copy(update={"reference": "The rabbit crawls out of the burrow."})
    scores = [
        JUDGE.covers(sample, text).score
        for text in ("a rabbit crawls out of its burrow", "the rabbit sleeps", "a rabbit in a burrow")
    ]
    assert scores == [2.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("reference", "answer", "covers"),
    [
        ("The dog chases the cat", "The dog chases the cat.", 2.0),
        ("The dog chases the cat", "the cat chases the dog", 0.0),
        (
            "The dog chases the cat",
            "The cat is chased by the dog",
            1.0,
        ),  # a stem of another form does not count as swapped
        ("The rabbit jumps over the log", "The rabbit does not jump over the log", 0.0),
        ("The rabbit jumps over the log", "The rabbit doesn’t jump over the log", 0.0),
        ("The rabbit does not jump", "The rabbit does not jump", 2.0),
        ("The rabbit does not jump", "The rabbit jumps", 0.0),
        ("The rabbit jumps over the log", "the rabbit jumps over the log or sleeps", 0.0),
        ("The rabbit jumps over the log", "The rabbit jumps over the log, eats, sleeps, hides", 0.0),
        ("The rabbit jumps over the log", "The rabbit jumps over the log. The rabbit sleeps. The rabbit eats.", 0.0),
        ("The rabbit jumps over the log", "The rabbit, which is grey, jumps over the log", 2.0),
        ("The boy crawls out, smiling, of the burrow", "the boy, smiling, crawls out of the burrow", 2.0),
        ("A man cooks in the kitchen", "In the kitchen a man cooks", 2.0),
        ("狗追猫", "猫追狗", 0.0),
        ("狗追猫", "猫被狗追", 2.0),
        ("狗追猫", "狗没有追猫", 0.0),
        ("狗追猫", "狗不断追猫", 2.0),
        ("狗追猫", "狗追猫或者睡觉", 0.0),
    ],
)
def test_the_right_words_in_a_wrong_answer_earn_nothing(reference: str, answer: str, covers: float) -> None:
    dark, mixed = (
        SAMPLES[task].model_copy(update={"reference": reference}) for task in ("dark_event_infer", "mix_vid_qa")
    )
    assert JUDGE.covers(dark, answer).score == covers
    assert JUDGE.right(mixed, answer).score == float(covers == 2.0)


def test_a_caption_that_denies_an_event_does_not_entail_it() -> None:
    caption = "A dog barks. The rabbit does not jump over the log. The cat chases the mouse, which no one sees."
    events = ("a dog barks", "the rabbit jumps over the log", "the mouse chases the cat")
    assert [JUDGE.entailed(event, caption).score for event in events] == [1.0, 0.0, 0.0]


@given(answer=TEXTS)
def test_verdicts_on_the_generated_world_do_not_look_at_words(answer: str) -> None:
    """No rule for real text applies there: negations and order change no score."""
    blunt = RuleJudge(full_share=0.8, partial_share=0.4)
    object.__setattr__(blunt, "_wrong", None)
    for sample in (SAMPLES["dark_event_infer"], SAMPLES["mix_vid_qa"]):
        assert blunt.covers(sample, answer) == JUDGE.covers(sample, answer)
        assert blunt.right(sample, answer) == JUDGE.right(sample, answer)


@pytest.mark.parametrize(
    ("text", "hardened", "published"),
    [
        ("they strengthen the mayor", 0.0, -0.2),  # contains "then", and "may"
        ("first a then b finally c", 0.4, 0.4),
        ("first a then b, possibly c", -0.2, -0.2),
        ("a then b then c", 0.4, 0.2),  # as published each phrase counts once
        ("may a, may b, might c", -0.6, -0.4),
    ],
)
def test_hardened_counts_whole_words_and_paper_counts_as_released(text: str, hardened: float, published: float) -> None:
    reference = "first a then b finally c"
    assert hardened_bonus(text, reference, 1.0, rules()) == pytest.approx(hardened)
    assert published_bonus(text, rules()) == pytest.approx(published)


def test_a_phrase_that_holds_another_counts_once_and_in_a_script_without_spaces_too() -> None:
    which = rules(temporal_phrases=("begin with", "to begin with", "然后"))
    assert hardened_bonus("to begin with he sits", "然后 然后", 1.0, which) == pytest.approx(0.2)
    assert hardened_bonus("他坐下然后站起来", "然后 然后", 1.0, which) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "caption",
    [
        "first the blue circle falls then finally shrinks",
        "first the red bar then finally the red bar",
        "then then then",
    ],
)
def test_order_pays_nothing_in_a_wrong_caption(caption: str) -> None:
    score = score_reply(SAMPLES["caption"], render_reply("x", caption), REFEREE, rules())
    assert score.parts["recall"] == 0.0
    assert score.parts["native"] == 0.0
    assert objectives(score)["keywords"] == 0.0


def test_order_does_not_make_up_for_an_event_that_did_not_happen() -> None:
    told = "first the red bar rises then finally grows"
    score = score_reply(SAMPLES["caption"], render_reply("x", f"{told} next the blue circle falls"), REFEREE, rules())
    assert (score.parts["recall"], score.parts["precision"]) == (1.0, pytest.approx(2 / 3))
    assert score.value is not None
    assert score.value < 1.0


@given(reference=CAPTIONS)
def test_the_reference_scores_the_maximum_whatever_its_words(reference: str) -> None:
    sample = SAMPLES["caption"].model_copy(update={"reference": reference, "events": ()})
    score = score_reply(sample, render_reply("x", reference), REFEREE, rules())
    assume(score.parts["recall"] == 1.0 == score.parts["precision"])  # otherwise it has no event
    assert score.value == 1.0


@given(text=TEXTS, reference=CAPTIONS, recalls=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_the_bonus_rises_with_recall_and_stays_under_the_reference_and_the_cap(
    text: str, reference: str, recalls: tuple[float, float]
) -> None:
    less, more = (hardened_bonus(text, reference, recall, rules()) for recall in sorted(recalls))
    assert less <= more <= min(hardened_bonus(reference, reference, 1.0, rules()), 0.4)
    assert hardened_bonus(text, reference, 0.0, rules()) <= 0.0


@given(text=TEXTS, reference=CAPTIONS, more=st.sampled_from(["might", "possibly", "may"]))
def test_hedging_never_pays(text: str, reference: str, more: str) -> None:
    assert hardened_bonus(f"{text} {more}", reference, 1.0, rules()) <= hardened_bonus(text, reference, 1.0, rules())


def test_paper_scoring_can_be_exploited_and_hardened_cannot() -> None:
    sample = SAMPLES["caption"]
    plain = "the red bar rises and the red bar grows"
    stuffed = "first the red bar rises then the red bar grows finally"
    hedged = "the red bar moves might may possibly might"
    paper, hardened = rules(scoring="paper"), rules()

    def native(text: str, which: object) -> float:
        return score_reply(sample, render_reply("x", text), REFEREE, which).parts["native"]  # type: ignore[arg-type]

    assert native(plain, paper) == pytest.approx(1.5)
    assert native(stuffed, paper) == pytest.approx(1.9)
    assert native(hedged, paper) < 0
    assert native(stuffed, hardened) == native(sample.reference, hardened)
    assert native(hedged, hardened) == 0.0


def test_a_caption_without_events_has_precision_zero() -> None:
    assert score_reply(SAMPLES["caption"], render_reply("x", "the red bar"), REFEREE, rules()).parts["precision"] == 0.0


def test_structured_thinking_must_be_json_of_that_shape() -> None:
    sample = SAMPLES["structured_caption"]
    for thinking in ("not json", "[]", '{"subjects": [{"name": "bar", "colour": "red"}]}', '{"subjects": 3}'):
        score = score_reply(sample, render_reply(thinking, sample.reference), REFEREE, rules())
        assert (score.format_ok, score.value) == (False, 0.0)
    half = render_reply('{"subjects":[{"name":"bar","attributes":["red"],"actions":["rises"]}]}', sample.reference)
    parts = score_reply(sample, half, REFEREE, rules()).parts
    assert parts["attribute_f1"] == 1.0
    assert parts["action_f1"] == pytest.approx(2 / 3)
    assert parts["caption"] == 1.0


def test_analysis_round_trip() -> None:
    subjects = SAMPLES["structured_caption"].subjects
    analysis = parse_analysis(render_analysis(subjects))
    assert analysis is not None
    assert analysis.subjects == subjects


def test_a_judge_that_is_unavailable_never_scores_zero() -> None:
    class Down(RuleJudge):
        def covers(self, sample: Sample, answer: str) -> Verdict:
            return Verdict(outcome="unavailable", reason="timed out", judge="remote")

    score = score_reply(
        SAMPLES["dark_event_infer"], truth(SAMPLES["dark_event_infer"]), referee(Down(0.8, 0.4)), rules()
    )
    assert (score.format_ok, score.value) == (True, None)
    assert "timed out" in score.reason
    assert reward(score, rules(), ()) is None


def test_native_rewards_keep_the_scale_of_the_task() -> None:
    score = score_reply(SAMPLES["dark_event_infer"], truth(SAMPLES["dark_event_infer"]), REFEREE, rules())
    assert reward(score, rules(scale="native"), ()) == 2.0
    assert reward(score, rules(), ()) == 1.0


def test_the_constant_reply_is_the_best_on_what_could_be_judged() -> None:
    train = [SAMPLES["mcqa"].model_copy(update={"reference": letter}) for letter in "ABBC"]
    unjudged = {"C": None}
    values = {"A": 0.25, "B": 0.5, "C": 1.0} | unjudged
    best = constant_reply(
        train, lambda sample: sample.reference, lambda _, replies: [values[reply] for reply in replies], 7
    )
    assert best == "B"
    once = iter([1.0, None, None, None])
    best = constant_reply(
        train, lambda s: s.reference, lambda _, r: [next(once, 0.0) if x == "C" else 0.5 for x in r], 7
    )
    assert best == "C", "a reply that no judge could score counts neither way"


def test_completeness_and_naturalness_replace_coverage() -> None:
    sample, which = SAMPLES["structured_caption"], rules(caption_scorer="completeness_naturalness")

    def parts(caption: str) -> dict[str, float]:
        return score_reply(sample, render_reply(render_analysis(sample.subjects), caption), REFEREE, which).parts

    assert parts(sample.reference)["native"] == 2.0
    assert (parts("the red bar rises")["completeness"], parts("the red bar rises")["naturalness"]) == (0.5, 1.0)
    babble = parts("the red bar rises the red bar rises the red bar rises the red bar rises")
    assert babble["completeness"] == 0.5
    assert babble["naturalness"] < 0.5
    assert parts("the red bar")["caption"] == 0.0, "a text without an event is not a caption"
    other = parts("the blue circle falls")
    assert (other["naturalness"], other["caption"]) == (1.0, 0.0), "fluent, and of another video"
    which = rules(scoring="paper", caption_scorer="completeness_naturalness")
    assert parts("the blue circle falls")["caption"] == 0.5, "as published"


@given(caption=TEXTS)
def test_no_caption_is_more_complete_and_natural_than_the_reference(caption: str) -> None:
    sample = SAMPLES["structured_caption"]
    reply = render_reply(render_analysis(sample.subjects), caption)
    score = score_reply(sample, reply, REFEREE, rules(caption_scorer="completeness_naturalness"))
    assert score.value is not None
    assert 0.0 <= score.value <= 1.0


def test_as_published_the_format_counts_beside_the_structured_caption() -> None:
    sample, paper = SAMPLES["structured_caption"], rules(scoring="paper")
    assert score_reply(sample, truth(sample), REFEREE, paper).parts["native"] == 3.0
    nothing = score_reply(sample, render_reply('{"subjects":[]}', "the blue circle falls"), REFEREE, paper)
    assert nothing.parts["native"] == 1.0
    assert score_reply(sample, render_reply("no JSON", sample.reference), REFEREE, paper).parts["native"] == 0.0
