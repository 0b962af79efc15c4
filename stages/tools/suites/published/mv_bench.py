"""MVBench (arXiv 2311.17005): twenty kinds of temporal questions; accuracy, by kind.

Example row of ``json/action_antonym.json``: ``{"video": "86604.mp4", "question": "What is the
action …?", "candidates": ["Not sure.", "Something falling like a rock", …], "answer": "Something
falling like a rock"}``. A row may have ``start`` and ``end``, in seconds: the part of the video
that is used. Rows have no id: the id of a prediction is ``action_antonym/0``, the file's name and
the row's index in it, from 0.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, model_validator

from stages.domain.core.prompts import PromptTexts, render_prompt, render_question
from stages.tools.suites.published.benchmark import (
    QUESTION_FRAMES,
    Benchmark,
    Item,
    Mark,
    Measure,
    PublishedRow,
    Questions,
    Scoring,
    Words,
)
from stages.tools.suites.published.choices import (
    letter,
    lmms_eval_answer,
    lmms_eval_spoken,
    strict_choice,
    vlmevalkit_right,
)
from stages.tools.suites.published.files import Raw, collect_questions, parse_row, rows

#: VLMEvalKit marks a prediction with this text as failed, and its table then counts it as right.
_KIT_FAIL_MESSAGE = "Failed to obtain answer via API."


#: Source of each task's videos (``data_list`` of mvbench.ipynb, OpenGVLab/Ask-Anything at 4dd8210).
#: Equal names of one source are one file, used by several tasks; STAR and STA both cut theirs out
#: of Charades' recordings, under the recordings' names. For a task that is not listed equal names
#: count as one file.
SOURCES = {
    "action_sequence": "charades",
    "action_prediction": "charades",
    "object_interaction": "charades",
    "action_localization": "charades",
    "object_existence": "clevrer",
    "moving_direction": "clevrer",
    "moving_count": "clevrer",
    "moving_attribute": "clevrer",
    "counterfactual_inference": "clevrer",
    "object_shuffle": "perception",
    "action_count": "perception",
    "state_change": "perception",
    "character_order": "perception",
    "action_antonym": "ssv2",
    "fine_grained_action": "moments_in_time",
    "unexpected_action": "funqa",
    "scene_transition": "scene_qa",
    "fine_grained_pose": "nturgbd",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa",
}


#: Tasks whose files are parts of recordings: the part of a file's name that is the recording's.
#: FunQA's videos (``test_humor/H_T_1227_0000_0191.mp4``: frames), TVQA's episodes
#: (``castle_s07e04_seg02_clip_14``), MoVQA's films (``Top010_04755.mp4``), and NTU RGB+D's takes,
#: each seen by three cameras (``S010C002P017R002A005_rgb.avi``).
RECORDINGS = {
    "unexpected_action": re.compile(r"(\w+)_\d+_\d+\.\w+$"),
    "episodic_reasoning": re.compile(r"(.+)_seg\d+_clip_\d+"),
    "scene_transition": re.compile(r"(Top\d+)_\d+"),
    "fine_grained_pose": re.compile(r"(S\d+)C\d+(P\d+R\d+A\d+)"),
}


class Row(PublishedRow):
    video: Words
    question: Words
    candidates: list[Words] = Field(min_length=2, max_length=26)
    answer: str
    start: float | None = Field(default=None, allow_inf_nan=False)
    end: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _answer_is_a_candidate(self) -> Row:
        if self.answer not in self.candidates:
            raise ValueError(f"answer {self.answer!r} is not one of the candidates")
        return self

    @model_validator(mode="after")
    def _part_has_two_ends(self) -> Row:
        if (self.start is None) != (self.end is None):
            raise ValueError(
                f"start {self.start}, end {self.end}: a part of a video needs both, the whole of it neither"
            )
        return self


def read(path: Path) -> Questions[Row]:
    return collect_questions(rows(path, FILES), lambda raw: [_item(raw, parse_row(Row, raw))], _id)


def _id(raw: Raw) -> str:
    return f"{raw.stem}/{raw.number}"


def recording_of(task: str, video: str) -> str:
    """Name of the recording that a task's file is of; the file's, where names do not tell."""
    pattern = RECORDINGS.get(task)
    found = None if pattern is None else pattern.search(video)
    return video if found is None else "".join(found.groups())


def _item(raw: Raw, row: Row) -> Item[Row]:
    return Item(
        item_id=_id(raw),
        # Folders of different sources have files of the same name.
        video=f"{raw.stem}/{row.video}",
        units=(f"{SOURCES.get(raw.stem, '')}/{recording_of(raw.stem, row.video)}",),
        categories={"task": raw.stem},
        frames=QUESTION_FRAMES,
        part_s=None if row.start is None or row.end is None else (row.start, row.end),
        options=tuple(row.candidates),
        truth=letter(row.candidates.index(row.answer)),
        row=row,
    )


def prompt(item: Item[Row], texts: PromptTexts) -> str:
    return render_prompt(render_question(item.row.question, item.options, texts), texts)


def _strict(item: Item[Row], reply: str) -> Mark:
    chosen = strict_choice(reply, item.options)
    # Compared by its words: if two options are the same, either letter is right.
    return Mark({"right": float(chosen is not None and item.options[ord(chosen) - ord("A")] == item.row.answer)})


def _lmms_eval(item: Item[Row], reply: str) -> Mark:
    spoken = lmms_eval_spoken(reply)
    right = lmms_eval_answer(spoken) == lmms_eval_answer(item.truth)
    return Mark({"right": float(right)}, counted=spoken != "")


def _vlmevalkit(item: Item[Row], reply: str) -> Mark:
    first = item.options.index(item.row.answer)
    last = len(item.options) - 1 - item.options[::-1].index(item.row.answer)
    right = _KIT_FAIL_MESSAGE in reply or vlmevalkit_right(reply, item.options, last, first)
    return Mark({"right": float(right)})


FILES = ("json/*.json", "*.json", "*.jsonl", "*.parquet")
BENCHMARK = Benchmark(
    name="mvbench",
    record="field names: OpenGVLab/MVBench, as both read it; compat: lmms-eval at 75571cf, VLMEvalKit at e8e78f0"
    " (exact matching)",
    files=FILES,
    read=read,
    prompt=prompt,
    measures=(Measure("accuracy", ("right",), 100),),
    by_rule=(
        Scoring("strict", "one option, reasoning taken away; anything else is wrong", _strict),
        Scoring(
            "compat: lmms-eval",
            "the first word that is a letter A to E, the article too; empty replies left out",
            _lmms_eval,
        ),
        Scoring(
            "compat: VLMEvalKit",
            "the first word holds the letter or is held by it, else inferred; empty is right",
            _vlmevalkit,
        ),
    ),
)
