"""Rollouts for people: their selection, and a page that displays any reply without executing it."""

from __future__ import annotations

import base64
import io
import re
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from stages.domain.core.frames import Frames
from stages.domain.core.records import Sample, Score
from stages.domain.core.replies import render_reply
from stages.domain.rl.rollouts import PROMPTS_PER_TASK, Rollout, RolloutGroup, shown_groups
from stages.lib.rows.jsonl import read_rows, write_rows
from stages.pages.render import film_strip
from stages.pages.rollouts import rollout_page
from stages.params import Params, load_params
from tests.support.checkout import ROOT

HOSTILE = '</script></style></details><img src=x onerror=alert(1)><a href="http://evil.example/">\'{{ 7 * 7 }}'


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


def sample(task: str, number: int) -> Sample:
    return Sample.model_validate(
        {
            "sample_id": f"{task}/{number}",
            "task": task,
            "split": "train",
            "clip_id": "c",
            "timeline": {"rate": "8", "segments": [{"clip_id": "c", "span": {"start": 0, "stop": 16}}]},
            "sampled_frames": 8,
            "question": "what happens ?",
            "reference": "the red bar rises",
        }
    )


def rollout(
    of: Sample, reply: str, value: float | None, advantage: float, reason: str = "covers the reference"
) -> Rollout:
    score = Score(sample_id=of.sample_id, task=of.task, reply=reply, format_ok=True, value=value, reason=reason)
    return Rollout(score=score, paid={} if value is None else {"task": value}, advantage=advantage)


def frames(size: tuple[int, int], count: int = 8) -> Frames:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return Frames(pixels, tuple(range(count)), count, Fraction(8))


def test_which_are_kept_has_nothing_to_do_with_what_was_said(params: Params) -> None:
    samples = [sample(task, n) for task in ("mcqa", "caption") for n in range(6)]
    by_id = {s.sample_id: s for s in samples}

    def kept(step: int, order: list[Sample], reply: str) -> list[RolloutGroup]:
        drawn = [rollout(s, f"{reply} {n}", len(reply) / 9, n - 0.5) for s in order for n in range(2)]
        return shown_groups(step, drawn, 2, by_id, params.prompt)

    groups = kept(4, samples, "good")
    assert [group.task for group in groups] == ["mcqa"] * PROMPTS_PER_TASK + ["caption"] * PROMPTS_PER_TASK
    assert [[r.score.reply for r in group.rollouts] for group in groups] == [["good 0", "good 1"]] * 4
    assert groups[0].prompt == f"what happens ?\n{params.prompt.instruction}"
    other = kept(4, Random(1).sample(samples, len(samples)), "bad")
    assert [group.sample_id for group in other] == [group.sample_id for group in groups]
    assert [group.sample_id for group in kept(8, samples, "good")] != [group.sample_id for group in groups]
    twice = kept(4, [samples[0], *samples[:1]], "good")
    assert [group.sample_id for group in twice] == ["mcqa/0"], "a prompt that was drawn twice is shown once"


def test_a_rollout_that_was_not_judged_is_read_back_as_such(params: Params, tmp_path: Path) -> None:
    of = sample("mix_vid_qa", 0)
    groups = shown_groups(
        3, [rollout(of, "x", None, 0.0), rollout(of, "y", 1.0, 0.0)], 2, {of.sample_id: of}, params.prompt
    )
    write_rows(tmp_path / "rollouts.jsonl", groups)
    assert read_rows(tmp_path / "rollouts.jsonl", RolloutGroup) == groups
    assert [r.score.value for r in groups[0].rollouts] == [None, 1.0]


class _Elements(HTMLParser):
    """Content that a browser sees: elements with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_what_was_said_and_does_none_of_it(params: Params) -> None:
    of = sample("dark_event_infer", 0)
    said = [
        rollout(of, render_reply("it rises", "the red bar rises"), 1.0, 1.5).model_copy(update={"written": True}),
        rollout(of, HOSTILE, 0.0, -0.75, HOSTILE),
        rollout(of, HOSTILE, 0.0, -0.75, HOSTILE),
        rollout(of, render_reply("", "maybe"), None, 0.0, "HTTP 503"),
    ]
    (group,) = shown_groups(12, said, 4, {of.sample_id: of}, params.prompt)
    hostile = group.model_copy(update={"sample_id": HOSTILE, "prompt": HOSTILE, "reference": HOSTILE})
    page = rollout_page("grpo@bridge", 12, [group, hostile], [frames((64, 64))] * 2)
    elements = _Elements(page)
    assert {tag for tag, _ in elements.found}.isdisjoint({"script", "a", "iframe", "link", "form", "object"})
    assert all(not name.startswith("on") for _, attributes in elements.found for name in attributes)
    pictures = [attributes["src"] or "" for tag, attributes in elements.found if tag == "img"]
    assert len(pictures) == 2
    assert [source for source in pictures if not source.startswith("data:image/png;base64,")] == []
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)
    (policy,) = [a["content"] for tag, a in elements.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert re.fullmatch(r"default-src 'none'; img-src data:; style-src 'sha256-[\w+/=]+'", policy or "")
    assert elements.text.count(HOSTILE) == 2 * 2 + 3, "twice said and why, and once id, prompt and truth"
    for words in (
        "it rises",
        "+1.50",
        "-0.75",
        "2 of 4 rollouts",
        "reward 1.00",
        "not judged: HTTP 503",
        "1 of 4 not judged",
        "written, not sampled",
    ):
        assert words in elements.text
    assert elements.text.index("+1.50") < elements.text.index("+0.00") < elements.text.index("-0.75"), (
        "what helped most is first"
    )
    assert "nothing is learned" not in elements.text
    assert elements.text.count("written, not sampled") == 2, "once a group"


def test_a_prompt_that_teaches_nothing_says_so(params: Params) -> None:
    of = sample("mcqa", 0)
    (group,) = shown_groups(
        2, [rollout(of, render_reply("x", "A"), 0.0, 0.0)] * 4, 4, {of.sample_id: of}, params.prompt
    )
    text = _Elements(rollout_page("grpo@bridge", 2, [group], [frames((64, 64))])).text
    assert "nothing is learned from it" in text
    assert "4 of 4 rollouts" in text


def test_a_film_strip_keeps_small_frames_exactly_and_large_ones_small() -> None:
    def picture(address: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))

    small = frames((64, 48), count=9)
    strip = np.asarray(picture(film_strip(small.pixels)))
    assert strip.shape == (2 * 64 + 2, 8 * 48 + 7 * 2, 3), "eight in a row"
    assert np.array_equal(strip[:64, 50:98], small.pixels[1])
    assert np.array_equal(strip[66:, :48], small.pixels[8])
    large = film_strip(frames((720, 1280), count=6).pixels)
    assert large.startswith("data:image/jpeg;base64,")
    assert picture(large).size == (4 * (213 + 8) - 8, 2 * (120 + 8) - 8), "four in a row"
