"""Words of any script: English is unchanged, and text without spaces is counted, filtered and
scored like its English counterpart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.domain.core.records import Event, Score, Span
from stages.domain.core.replies import render_reply
from stages.domain.core.words import words
from stages.domain.rl.gauges import measure
from stages.domain.rl.shaping import LengthReward, length_paid
from stages.domain.tasks.dark_event_infer import refusal
from stages.domain.tasks.rewards import keyword_count
from stages.lib.judging.embedder import LexicalEmbedder
from stages.params import load_params
from stages.synthesize.question_rules import flaw, mentions_notes
from stages.synthesize.text_only import TextOnlyGuesser
from tests.support.builders import JUDGE, SAMPLES, SETTINGS, clip, rules
from tests.support.checkout import ROOT


def english(text: str) -> tuple[str, ...]:
    """The rule of version 0.1, on which every score of English text depends."""
    return tuple("".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split())


ENGLISH = st.text(
    st.one_of(st.characters(max_codepoint=0x7E), st.sampled_from("’‘“”–—…éèüñçøßÉ½²™€°")), max_size=80
)  # fmt: skip


@given(ENGLISH)
def test_english_is_parted_as_it_was(text: str) -> None:
    assert words(text) == english(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一个人走进了房间。", "一 个 人 走 进 了 房 间"),
        ("穿T恤的3个人，and a dog", "穿 t 恤 的 3 个 人 and a dog"),
        ("猫がソファで寝ている", "猫 が ソファ で 寝 て い る"),
        ("ﾈｺ ＡＢＣ", "ネコ abc"),  # half-width and full-width
        ("한 남자가 방에 들어간다.", "한 남자가 방에 들어간다"),
        ("คนเดินเข้าไปในห้อง", "คน เดิน เข้า ไป ใน ห้อง"),
        ("एक आदमी कमरे में आता है।", "एक आदमी कमरे में आता है"),  # vowel signs are not letters, and do not split a word
        ("رجلٌ يدخل", "رجلٌ يدخل"),
        ("cafe\u0301", "café"),
        ("ຄົນຍ່າງ", "ຄົ ນ ຍ່ າ ງ"),
        ("❤️ 1️⃣ 。、", "1"),
    ],
)
def test_words_of_other_scripts(text: str, expected: str) -> None:
    assert words(text) == tuple(expected.split(" "))


@given(st.text(max_size=60))
def test_a_word_is_whole_and_stays_what_it_is(text: str) -> None:
    found = words(text)
    assert [word for word in found if not word.strip()] == []
    assert words(" ".join(found)) == found


EVENTS = ["一个人走进房间", "他在沙发上坐下", "男の人が部屋に入る", "ผู้ชายเดินเข้าห้อง", "한 남자가 방에 들어간다"]


@pytest.mark.parametrize("caption", EVENTS)
def test_events_of_any_script_pass_the_filter_of_the_papers_recipe(caption: str) -> None:
    settings = SETTINGS.dark_event_infer
    assert settings is not None
    published = load_params(ROOT / "infra/recipes/vidbridge-r1.yaml").synthesize.tasks.dark_event_infer
    assert published is not None
    filters = published.events.model_copy(update={"min_s": 0})
    settings = settings.model_copy(update={"events": filters})
    event = Event(span=Span(start=2, stop=6), caption=caption)
    assert refusal(clip(events=(event,)), event, settings, 8) is None


@pytest.mark.parametrize(
    ("reference", "near", "other"),
    [
        ("A person walks into the room", "A person walks into the big room.", "A dog swims."),
        ("一个人走进房间", "一个人走进了房间。", "一只狗在游泳。"),
        ("男の人が部屋に入る", "男の人が大きな部屋に入る。", "犬が泳いでいる。"),
        ("ผู้ชายเดินเข้าไปในห้อง", "ผู้ชายเดินเข้าไปในห้องใหญ่", "สุนัขว่ายน้ำ"),
        ("남자가 방에 들어간다", "남자가 큰 방에 들어간다.", "개가 수영한다."),
    ],
)
def test_a_near_answer_is_paid_and_another_is_not_in_every_script(reference: str, near: str, other: str) -> None:
    dark, mixed = (
        SAMPLES[task].model_copy(update={"reference": reference}) for task in ("dark_event_infer", "mix_vid_qa")
    )
    assert [JUDGE.covers(dark, text).score for text in (reference, near, other)] == [2.0, 2.0, 0.0]
    assert [JUDGE.right(mixed, text).score for text in (reference, near, other)] == [1.0, 1.0, 0.0]
    assert [JUDGE.entailed(reference, text).score for text in (reference, near, other)] == [1.0, 1.0, 0.0]
    alike = LexicalEmbedder().similarities([reference], [reference, near, other])[0]
    assert alike[0] == 1.0 > alike[1] > 0.6 > 0.4 > alike[2]


def test_a_length_is_counted_in_every_script() -> None:
    rule = LengthReward(weight=1.0, min_words=6, max_words=20, min_share=0.5)
    for thinking in ("a man walks into the room", "一个人走进房间", "男の人が部屋に入る"):
        score = Score(sample_id="s", task="caption", reply=render_reply(thinking, "x"), format_ok=True, value=1.0)
        assert length_paid(score, rule) == 1.0


def test_gauges_count_in_every_script() -> None:
    samples = [SAMPLES["dark_event_infer"]] * 2
    gauges = measure(
        samples,
        [render_reply("我看见一个人", text) for text in ("他坐下或者站起来", "走、坐、跳")],
        [0.0, 1.0],
        rules(),
    )
    assert (gauges["empty_thinking"], gauges["enumeration"]) == (0.0, 1.0)
    assert keyword_count("他走进来，然后坐下，然后睡觉", rules(temporal_phrases=("然后",))) == 2
    assert keyword_count("先first走then坐, not strengthen", rules()) == 2


def test_the_text_only_guesser_uses_words_of_its_neighbours_in_every_script() -> None:
    def told(number: int, first: str, second: str) -> object:
        return clip(
            number,
            label=None,
            events=(
                Event(span=Span(start=2, stop=6), caption=first),
                Event(span=Span(start=10, stop=14), caption=second),
            ),
        )

    seen = [told(n, f"{'水杯' if n % 2 else '篮球'}出现{n}", "喝水" if n % 2 else "投篮") for n in range(8)]
    guesser = TextOnlyGuesser(seen)  # type: ignore[arg-type]
    new = clip(9, label=None, events=(
        Event(span=Span(start=2, stop=6), caption="桌上有水杯"), Event(span=Span(start=10, stop=14), caption="?")
    ))  # fmt: skip
    assert guesser.guess(new, new.events[1]) == "喝水"


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("第一个视频里的人做了什么？", "他坐下", "names-a-position"),
        ("另一段片段里发生了什么？", "他坐下", "names-a-position"),
        ("最初の動画で何が起こりますか", "座る", "names-a-position"),
        ("在the second clip里发生了什么？", "他坐下", "names-a-position"),
        ("穿红衣服的人坐下了吗？", "坐下了", "gives-itself-away"),
        ("穿红衣服的人先做了什么？", "他打开了门", None),
        ("男の人は最初に何をしますか", "ドアを開ける", None),
    ],
)
def test_a_written_question_is_held_to_the_same_rules_in_every_script(
    question: str, answer: str, reason: str | None
) -> None:
    assert flaw(question, answer) == reason


@pytest.mark.parametrize("thinking", ["根据字幕，他坐下", "这个caption说他坐下", "注釈によると彼は座る"])
def test_notes_are_found_in_every_script(thinking: str) -> None:
    assert mentions_notes(thinking, "一个人坐下")
    assert not mentions_notes("我看见他坐下", "一个人坐下")


def test_the_lexical_embedder_knows_no_words_in_punctuation() -> None:
    assert np.array_equal(LexicalEmbedder().similarities(["。"], ["。", "！"]), [[1.0, 0.0]])
