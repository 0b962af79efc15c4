"""Mappings: which column becomes which field, in every form that tables are written in."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from stages.lib.annotations.formats import read_source
from tests.support.annotations.mapped import Mapped
from tests.support.annotations.reading import ingest_params


def test_columns_become_fields(mapped: Mapped) -> None:
    mapping = """
    video: "clips/{id}"
    id: id
    source: film
    split: part
    label: kind
    licence: {text: CC BY 4.0}
    caption: says.whole
    captions: [says.others, extra]
    subjects: {each: seen, name: who, attributes: looks, actions: does}
    others: ignore
    """
    row: dict[str, Any] = {
        "id": "x1",
        "film": 7,
        "part": "val",
        "kind": "cooking",
        "says": {"whole": "A man cooks.", "others": ["He cooks.", "A man cooks.", None]},
        "extra": "Onions fry.",
        "seen": [{"who": "man", "looks": ["tall"], "does": "cooks"}],
        "unknown": 1,
    }
    (found,), rejects = mapped(mapping, [row], "clips/x1.webm")
    assert (found.video, found.clip_id, found.source_id, found.split) == ("clips/x1.webm", "x1", "7", "validation")
    assert (found.label, found.licence) == ("cooking", "CC BY 4.0")
    assert (found.caption, found.captions) == ("A man cooks.", ("He cooks.", "Onions fry."))
    ((name, attributes, actions),) = [(one.name, one.attributes, one.actions) for one in found.subjects]
    assert (name, attributes, actions) == ("man", ("tall",), ("cooks",))
    assert [reject[:2] for reject in rejects] == [("rows.json:1", "repeated-part")]


@pytest.mark.parametrize(
    ("times", "start", "end", "seconds"),
    [
        ("seconds", 1.5, "2.25", ("1.5", "2.25")),
        ("milliseconds", 1500, "2250", ("1.5", "2.25")),
        ("{form: frames, rate: 30000/1001}", 30, 60, ("1001/1000", "1001/500")),
        ("{form: frames, rate: fps}", 30, "60", ("1.2", "2.4")),
        ("clock", "00:01:01.250", "1:02", ("61.25", "62")),
        ("clock", "0:00:39:000", "01:01:01,5", ("39", "3661.5")),
    ],
)
def test_forms_of_times(times: str, start: Any, end: Any, seconds: tuple[str, str], mapped: Mapped) -> None:
    mapping = f"""
    video: v
    events: {{start: from, end: to, caption: text}}
    times: {times}
    others: ignore
    """
    rows = [{"v": "a", "from": start, "to": end, "text": "it falls", "fps": 25}]
    (found,), rejects = mapped(mapping, rows)
    assert rejects == []
    assert [(event.start, event.end) for event in found.events] == [tuple(map(Fraction, seconds))]


@pytest.mark.parametrize(
    ("span", "parse"),
    [([1.5, 3], ""), ("1.5-3", ""), ("[1.5, 3.0]", ""), ("1.5 to 3", ""), ("['1.5', '3']", "parse: {span: python}")],
)
def test_two_times_in_one_column(span: Any, parse: str, mapped: Mapped) -> None:
    (found,), rejects = mapped(
        f"{{video: v, events: {{span: span, caption: t}}{', ' * bool(parse)}{parse}}}",
        [{"v": "a", "span": span, "t": "x"}],
    )
    assert rejects == []
    assert [(event.start, event.end) for event in found.events] == [(Fraction("1.5"), 3)]


@pytest.mark.parametrize(
    ("form", "answer", "letter"),
    [
        ("stated", "B", "B"),
        ("stated", "(B)", "B"),
        ("stated", "B. a cat", "B"),
        ("stated", "A Cat.", "B"),
        ("letter", "b) whatever", "B"),
        ("text", "a cat", "B"),
        ("index_from_0", 1, "B"),
        ("index_from_0", "1", "B"),
        ("index_from_0", "1.0", "B"),
        ("index_from_1", 2, "B"),
    ],
)
def test_forms_of_answers(form: str, answer: Any, letter: str, mapped: Mapped) -> None:
    mapping = f"{{video: v, qa: {{question: q, options: o, answer: a, answer_form: {form}}}}}"
    (found,), rejects = mapped(mapping, [{"v": "a", "q": "What?", "o": ["a dog", "a cat", "rain"], "a": answer}])
    assert rejects == []
    assert [one.answer for one in found.qa] == [letter]


@pytest.mark.parametrize(
    ("form", "answer", "said"),
    [
        ("index_from_0", 3, "3' names no option: there are 3, counted from 0"),
        ("index_from_0", -1, "names no option"),
        ("index_from_0", "B", "'B' is no index; the options count from 0"),
        ("index_from_1", 0, "names no option: there are 3, counted from 1"),
        ("letter", "D", "'D' names none of the letters A to C"),
        ("letter", "a cat and more", "names none of the letters"),
        ("text", "B", "'B' is no option, word for word"),
        ("stated", "a bird", "names no option"),
        ("stated", None, "names no option"),
    ],
)
def test_an_answer_of_another_form_is_set_aside(form: str, answer: Any, said: str, mapped: Mapped) -> None:
    mapping = f"{{video: v, caption: c, qa: {{question: q, options: o, answer: a, answer_form: {form}}}}}"
    row = {"v": "a", "c": "It rains.", "q": "What?", "o": ["a dog", "a cat", "rain"], "a": answer}
    (found,), ((where, reason, detail),) = mapped(mapping, [row])
    assert (found.caption, found.qa) == ("It rains.", ())
    assert (where, reason) == ("rows.json:1", "bad-question")
    assert said in detail
    assert "'What?'" in detail


def test_options_in_the_question_answers_in_tags_options_in_columns(mapped: Mapped) -> None:
    mapping = """
    video: v
    qa:
      - when: {kind: listed}
        question: q
        options: in_question
        answer: {of: a, tag: answer}
        rationale: {of: "think?", tag: think}
      - {when: {kind: columns}, question: q, options: ["o1", "o2", "o3?"], answer: a}
      - {when: {kind: object}, question: q, options: o, answer: a}
    open_qa: {when: {kind: open}, question: q, answer: {of: a, tag: answer}}
    """
    listed = "What falls?\nA. A cup\n(B) A book\nC) Rain\nAnswer with the letter."
    rows = [
        {"v": "a", "kind": "listed", "q": listed, "a": "<answer>B.</answer>", "think": "<think>It does.</think>"},
        {"v": "a", "kind": "columns", "q": "Who?", "o1": "he", "o2": "she", "a": "she"},
        {"v": "a", "kind": "object", "q": "Where?", "o": {"A": "here", "B": "there"}, "a": "A"},
        {"v": "a", "kind": "open", "q": "Why?", "a": "<answer> because </answer>"},
        {"v": "a", "kind": "listed", "q": "No options", "a": "<answer>B</answer>"},
        {"v": "a", "kind": "open", "q": "Why not?", "a": "no tags"},
    ]
    for row in rows:
        for column in {"o1", "o2", "o", "think"} - set(row):
            row[column] = None
    (found,), rejects = mapped(mapping, rows)
    assert [(one.question, one.options, one.answer, one.rationale) for one in found.qa] == [
        ("What falls?", ("A cup", "A book", "Rain"), "B", "It does."),
        ("Who?", ("he", "she"), "B", None),
        ("Where?", ("here", "there"), "A", None),
    ]
    assert [(one.question, one.answer) for one in found.open_qa] == [("Why?", "because")]
    assert [detail for *_, detail in rejects] == [
        "qa.0: need options A, B, … a line each, in this order; found none",
        "open_qa.0.a: 'no tags' has no <answer>…</answer>",
    ]


def test_nested_lists_know_the_row_around_them(mapped: Mapped) -> None:
    mapping = """
    rows: data.videos
    each: clips
    video: "{$outer.$key}"
    source: $outer.$key
    start: at.0
    end: at.1
    caption: "{$outer.title}: {text}"
    events: {each: "beats?", span: $value, caption: $outer.text, relative: part}
    """
    videos = {
        "film": {
            "title": "Film",
            "clips": [{"at": [10, 20], "text": "one", "beats": [[1, 2], [3, 4]]}, {"at": [20, 30], "text": "two"}],
        }
    }
    found, rejects = mapped(mapping, {"version": 1, "data": {"videos": videos}}, "film.mp4")
    assert rejects == []
    assert [(row.clip_id, row.source_id, row.caption) for row in found] == [
        ("film@10-20", "film", "Film: one"),
        ("film@20-30", "film", "Film: two"),
    ]
    assert [(event.start, event.end) for event in found[0].events] == [(11, 12), (13, 14)]


def test_lists_side_by_side_and_lists_that_do_not_fit(mapped: Mapped) -> None:
    mapping = "{video: v, events: {each: {at: times, says: texts}, span: at, caption: says}}"
    rows = [
        {"v": "a", "times": [[0, 1], [1, 2]], "texts": ["one", "two"]},
        {"v": "b", "times": [[0, 1]], "texts": []},
        {"v": "c", "times": 7, "texts": []},
    ]
    found, rejects = mapped(mapping, rows, "a.mp4 b.mp4 c.mp4")
    assert [len(row.events) for row in found] == [2, 0, 0]
    assert [reject[1:] for reject in rejects] == [
        ("bad-event", "events: 1 times and 0 texts: need as many; which belong together cannot be told"),
        ("bad-event", "times: need a list, found int (value 7)"),
    ]


def test_a_file_that_is_cut_already_and_a_whole_recording(mapped: Mapped) -> None:
    mapping = """
    patterns: {clip: '(?P<film>.+)_(?P<from>\\d+)_(?P<to>\\d+)'}
    video: [{path: clip, cut: true}, film]
    id: clip
    source: film
    start: from
    end: to
    events:
      - {each: in_part, span: $value, caption: {text: counted from the part}, relative: part}
      - {each: in_film, span: $value, caption: {text: counted from the film}}
    """
    rows = [
        {"clip": "aa_10_20", "in_part": [[1, 2]], "in_film": [[14, 15]]},
        {"clip": "bb_10_20", "in_part": [[1, 2]], "in_film": [[14, 15]]},
        {"clip": "odd", "in_part": [], "in_film": []},
    ]
    (cut, whole), rejects = mapped(mapping, rows, "aa_10_20.mp4 bb.mp4")
    assert (cut.video, cut.start, cut.length_s) == ("aa_10_20.mp4", None, 10)
    assert [(event.start, event.end) for event in cut.events] == [(1, 2), (4, 5)]
    assert (whole.video, whole.start, whole.end, whole.length_s) == ("bb.mp4", 10, 20, None)
    assert [(event.start, event.end) for event in whole.events] == [(11, 12), (14, 15)]
    assert [reject[:2] for reject in rejects] == [("rows.json:1", "bad-annotation")]
    assert "clip: 'odd' does not match the pattern" in rejects[0][2]


@pytest.mark.parametrize(
    ("video", "named", "there"),
    [
        ("v", "deep/er/x.mp4", "deep/er/x.mp4"),
        ("v", "./deep/x.mp4", "deep/x.mp4"),
        ("v", "x", "deep/er/x.webm"),
        ("v", "deep/x", "deep/x.mkv"),
        ("v", "LEwayCpIk20.78", "LEwayCpIk20.78.mp4"),
        ("{path: v, strip: /nas/sets/}", "/nas/sets/a/x.mp4", "a/x.mp4"),
        ("{path: v, add: videos/}", "x.mp4", "videos/x.mp4"),
        ("{path: v, find: name}", "/nas/of/others/x.mp4", "mine/x.mp4"),
        ("{path: v, find: stem}", "x.mp4", "mine/x.mp4.mp4"),
        ('"v_{v}"', "x", "v_x.avi"),
        ('["{v}", "v_{v}"]', "x", "v_x.avi"),
        ('"{v:06d}"', "7", "000007.mp4"),
    ],
)
def test_how_a_video_is_named(video: str, named: str, there: str, mapped: Mapped) -> None:
    (found,), rejects = mapped(f"{{video: {video}}}", [{"v": named}], there)
    assert (found.video, rejects) == (there, [])


def test_paths_that_leave_the_folder_are_refused_and_two_files_are_not_guessed_between(mapped: Mapped) -> None:
    rows = [{"v": "../a.mp4"}, {"v": "/etc/a.mp4"}, {"v": "a"}, {"v": "b"}, {"v": None}, {"v": "gone"}, {"v": []}]
    found, rejects = mapped("video: v", rows, "1/a.mp4 2/a.mkv b.mp4")
    assert [row.video for row in found] == ["b.mp4"]
    assert [reason for _, reason, _ in rejects if reason != "no-annotation"] == [
        "outside-folder",
        "outside-folder",
        "ambiguous-file",
        "no-video",
        "missing-file",
        "no-video",
    ]


def test_a_second_table_is_joined(mapped: Mapped, tmp_path: Any) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/answers.csv").write_text("key,right\nq1,B\nq2,A\n")
    mapping = """
    rows: questions
    joins:
      solution: {file: answers.csv, key: key, equals: qid}
      says: {rows: sentences, key: of, equals: v, many: true}
      names: {file: gone.txt, key: $key, equals: v, optional: true}
    video: v
    captions: says.*.text
    label: names.line
    qa: {question: q, options: o, answer: solution.right}
    ignore: [qid]
    """
    document = {
        "questions": [
            {"v": "a", "qid": "q1", "q": "What?", "o": ["one", "two"]},
            {"v": "b", "qid": "q9", "q": "What?", "o": ["one", "two"]},
        ],
        "sentences": [{"of": "a", "text": "first"}, {"of": "a", "text": "second"}],
    }
    (first, second), rejects = mapped(mapping, document, "a.mp4 b.mp4")
    assert ([one.answer for one in first.qa], first.caption, first.captions) == (["B"], "first", ("second",))
    assert (second.qa, second.caption, first.label) == ((), None, None)
    assert [reason for _, reason, _ in rejects] == ["bad-question"]


def test_conversations(mapped: Mapped) -> None:
    mapping = """
    video: video
    placeholders: [<video>, <image>]
    conversation:
      turns: turns
      role: from
      text: value
      user: [human]
      assistant: [gpt]
      system: [system]
      description: '(?i)describe (the video|it)\\.?'
    """
    turns = [
        ("system", "Be helpful."),
        ("human", "<video>\nDescribe the video."),
        ("gpt", "A man cooks.\nThen he eats."),
        ("human", "Why<image>  does he eat?"),
        ("gpt", "He is hungry."),
        ("human", "What?\nA. Soup\nB. Rice\nAnswer with the letter."),
        ("gpt", "B. Rice"),
        ("human", "What?\nA. Soup\nB. Rice"),
        ("gpt", "Bread"),
        ("gpt", "And more."),
        ("tool", "x"),
        ("human", "Is that all?"),
    ]
    rows = [{"video": "a", "turns": [{"from": role, "value": text} for role, text in turns]}]
    (found,), rejects = mapped(mapping, rows)
    assert found.caption == "A man cooks.\nThen he eats."
    assert [(one.question, one.answer) for one in found.open_qa] == [("Why does he eat?", "He is hungry.")]
    assert [(one.question, one.options, one.answer) for one in found.qa] == [("What?", ("Soup", "Rice"), "B")]
    assert [detail.split(":")[0] for *_, detail in rejects] == ["turns.8", "turns.9", "turns.10", "turns"]
    assert {reason for _, reason, _ in rejects} == {"bad-question"}


def test_messages_in_parts(tmp_path: Path) -> None:
    def turn(role: str, *parts: dict[str, str]) -> dict[str, Any]:
        return {"role": role, "content": list(parts)}

    asks = turn("user", {"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What falls?"})
    says = turn("assistant", {"type": "text", "text": "A cup."})
    picture = turn("user", {"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"})
    rows = [
        {"messages": [asks, says]},
        {"messages": [turn("system", {"type": "text", "text": "Be brief."}), {**asks}, {**says, "content": "A book."}]},
        {"messages": [picture, says]},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "a.mp4").touch()
    source = read_source(ingest_params(tmp_path, "messages", "rows.json"))
    (row,) = source.rows
    assert [(one.question, one.answer) for one in row.open_qa] == [
        ("What falls?", "A cup."),
        ("What falls?", "A book."),
    ]
    assert [reject.reason for reject in source.rejects] == ["no-video"]


def test_rows_that_a_rule_sets_aside_and_placeholders(mapped: Mapped) -> None:
    mapping = """
    reject: [{when: {kind: [image, audio]}, reason: no-video, why: "kind: only videos are read"}]
    video: v
    events: {span: at, caption: t}
    ignore: [kind]
    """
    rows = [
        {"v": "a", "kind": "image", "at": [0, 1], "t": "x"},
        {"v": "b", "kind": "video", "at": [0, 1], "t": "None"},
        {"v": "c", "kind": "video", "at": [0, 1], "t": "None of them moves"},
    ]
    found, rejects = mapped(mapping, rows, "a.mp4 b.mp4 c.mp4")
    assert [row.clip_id for row in found] == ["c"]
    assert rejects == [
        ("rows.json:1", "no-video", "kind: only videos are read"),
        ("rows.json:1", "placeholder", "b.mp4: 'None' at [0, 1] stands for no annotation; leave the row out"),
    ]


def test_splits_by_own_names_and_unknown_ones(mapped: Mapped) -> None:
    mapping = "{video: v, split: {of: part, names: {'fold[12]': train, held*: test}}}"
    rows = [{"v": "a", "part": "fold2"}, {"v": "b", "part": "Held-out"}, {"v": "c", "part": "val"}]
    found, ((_, reason, detail),) = mapped(mapping, rows, "a.mp4 b.mp4 c.mp4")
    assert [row.split for row in found] == ["train", "test"]
    assert (reason, detail) == ("bad-annotation", "part: 'val' is none of fold[12], held*")
