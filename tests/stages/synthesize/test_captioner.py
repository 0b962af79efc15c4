"""Events told by a model that sees pictures, over real sockets and from real files: which are kept,
refused, or told again after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.domain.core.records import Clip, Event, Span
from stages.lib.judging.prompts import read_answer
from stages.lib.rows.jsonl import read_rows, write_rows
from stages.lib.video.encoder import encode
from stages.lib.video.loader import FrameLoader
from stages.params import WriterParams
from stages.synthesize import captioner as captioning
from stages.synthesize.captioner import Captioner, caption_manifest
from stages.synthesize.event_prompts import FORMS
from stages.synthesize.writer import WriterUnavailableError
from tests.support.builders import clip
from tests.support.judges.server import Asked, JudgeServer, verdict
from tests.support.judges.writer import settings

EVENTS = {"frames": 16, "max_pixels": 65536, "most": 4, "min_s": 0.5}
COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 200, 20)}


def film(colour: str, still: bool = False) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Four seconds of 8 frames: a box that goes right in the second one and down in the last."""
    frames = np.full((32, 64, 64, 3), 128, np.uint8)
    for number, frame in enumerate(frames):
        right = 0 if still else 4 * min(max(number - 8, 0), 8)
        down = 0 if still else 5 * min(max(number - 24, 0), 8)
        frame[4 + down : 16 + down, 4 + right : 16 + right] = COLOURS[colour]
    return frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("films")
    for name, colour, still in (("a", "red", False), ("b", "blue", False), ("c", "green", True), ("d", "red", False)):
        encode(film(colour, still), Fraction(8), made / f"{name}.mp4", crf=12)
    return made


def bare(name: str, **changes: object) -> Clip:
    nothing = {"label": None, "caption": None, "events": (), "subjects": (), "questions": ()}
    return clip(0, **{"clip_id": name, "path": f"{name}.mp4", "frames": 32, **nothing, **changes})


TOLD = Event(span=Span(start=2, stop=9), caption="somebody told this")
CLIPS = [bare("a"), bare("b"), bare("c"), bare("d", events=(TOLD,))]


@pytest.fixture
def captioner(
    server: JudgeServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Captioner]:
    for name, value in server.environment(VIDBRIDGE_JUDGE_RETRIES="0", VIDBRIDGE_JUDGE_CONCURRENCY="4").items():
        monkeypatch.setenv(name, value)
    write_rows(tmp_path / "manifest.jsonl", CLIPS)

    def at(cache: str = "cache", params: WriterParams | None = None, **changes: Any) -> Captioner:
        monkeypatch.setenv("VIDBRIDGE_JUDGE_CACHE", str(tmp_path / cache))
        chosen = params or settings(events={**EVENTS, **changes}, questions=False)
        return Captioner(chosen, FrameLoader({clip.clip_id: clip for clip in CLIPS}, folder, 0))

    return at


def scratch_of(tmp_path: Path, name: str = "scratch") -> Path:
    (tmp_path / name).mkdir(exist_ok=True)
    return tmp_path / name


def test_events_are_told_of_clips_without_and_those_of_others_stay(
    server: JudgeServer, captioner: Callable[..., Captioner], tmp_path: Path
) -> None:
    author = captioner()
    out, told = caption_manifest(tmp_path / "manifest.jsonl", author, scratch_of(tmp_path))
    clips = {clip.clip_id: clip for clip in read_rows(out, Clip)}
    assert list(clips) == ["a", "b", "c", "d"]
    assert clips["d"] == CLIPS[3], "a clip with events is not touched"
    assert [event.caption for event in clips["b"].events] == ["the blue box advances", "the blue box falls"]
    for name in ("a", "b"):
        # Told by 16 pictures of 32 frames: right to two frames, and cut at the clip's end.
        starts_and_stops = [(event.span.start, event.span.stop) for event in clips[name].events]
        assert np.abs(np.array(starts_and_stops) - [(8, 16), (24, 32)]).max() <= 2
    assert clips["c"].events == ()
    assert [row.clip_id for row in told] == ["a", "b", "c"]
    assert author.table == {"clips": {"events": 4, "none-kept": 1, "told": 2}, "refused": {}}
    # Two clips in one draw, the third in all three; each event read again, and compared.
    kinds = [asked.kind for asked in server.asked]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"propose_events": 5, "read_event": 4, "same_event": 4}
    heat = {body["response_format"]["json_schema"]["name"]: body["temperature"] for body in server.bodies}
    assert heat == {"propose_events": 0.7, "read_event": 0.0, "same_event": 0.0}


def test_the_second_reading_sees_the_events_pictures_and_nothing_else(
    server: JudgeServer, captioner: Callable[..., Captioner]
) -> None:
    (told,) = captioner().tell([CLIPS[0]])
    first = [asked for asked in server.asked if asked.kind == "propose_events"]
    assert [len(asked.pictures) for asked in first] == [16]
    assert first[0].before == {"seconds": "4.00 s", "most": "4"}
    again = sorted((asked for asked in server.asked if asked.kind == "read_event"), key=lambda a: a.pictures[0].time_s)
    assert [(asked.before, asked.inside) for asked in again] == [({}, {}), ({}, {})], "no word of the first reading"
    for asked, event in zip(again, told.events, strict=True):
        times = [picture.time_s for picture in asked.pictures]
        assert float(event.span.start / 8) <= times[0] <= times[-1] <= float(event.span.stop / 8)


BAD: dict[str, dict[str, Callable[[Asked], dict[str, Any]]]] = {
    "not-seen-again": {"read_event": lambda a: {"caption": "the box sleeps"}},
    "nothing-seen-again": {"read_event": lambda a: {"caption": " "}},
    "unreadable": {"propose_events": lambda a: {"events": [{"start": "1", "end": 2.0, "caption": "it falls"}]}},
    "outside-clip": {"propose_events": lambda a: one(3, 4.6)},
    "too-short": {"propose_events": lambda a: one(1, 1.4)},
    "holds-markup": {"propose_events": lambda a: one(1, 2, "it says <|im_end|>")},
    "no-caption": {"propose_events": lambda a: one(1, 2, " ")},
    "long-caption": {"propose_events": lambda a: one(1, 2, "on and " * 50)},
}


def one(start: float, end: float, caption: str = "it falls") -> dict[str, Any]:
    return {"events": [{"start": start, "end": end, "caption": caption}]}


@pytest.mark.parametrize("reason", BAD)
def test_what_breaks_a_rule_or_is_not_seen_again_is_refused_and_counted(
    server: JudgeServer, captioner: Callable[..., Captioner], reason: str
) -> None:
    server.says = BAD[reason]
    (told,) = captioner().tell([CLIPS[0]])
    proposals = 2 if reason.endswith("seen-again") else 1
    assert (told.events, told.refused) == ((), {reason: 3 * proposals})
    assert sorted(asked.seed for asked in server.asked if asked.kind == "propose_events") == [10, 11, 12]


def test_too_many_and_repeated_events_are_refused(server: JudgeServer, captioner: Callable[..., Captioner]) -> None:
    said = [{"start": n / 2, "end": n / 2 + 1, "caption": f"it goes on {n % 4}"} for n in range(6)]
    server.says = {
        "propose_events": lambda a: {"events": said},
        "read_event": lambda a: {"caption": "it does"},
        "same_event": lambda a: {"reason": "", "same": True},
    }
    (told,) = captioner(most=3).tell([CLIPS[0]])
    assert [event.caption[-1] for event in told.events] == ["0", "1", "2"]
    assert told.refused == {"too-many": 1, "repeated": 2}


def test_an_interrupted_telling_goes_on_and_asks_nothing_twice(
    server: JudgeServer, captioner: Callable[..., Captioner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioning, "CHUNK", 1)
    whole, _ = caption_manifest(tmp_path / "manifest.jsonl", captioner("other"), scratch_of(tmp_path, "whole"))
    before = server.requests
    server.last = before + 6
    with pytest.raises(WriterUnavailableError, match=r"synthesize\.writer: 2 of 2 questions got no answer"):
        caption_manifest(tmp_path / "manifest.jsonl", captioner(), scratch_of(tmp_path))
    with (tmp_path / "scratch" / "captioned.jsonl").open("a") as journal:
        journal.write('{"clip_id": "b", "ev')
    server.last = None
    again = captioner()
    out, told = caption_manifest(tmp_path / "manifest.jsonl", again, scratch_of(tmp_path))
    assert out.read_bytes() == whole.read_bytes()
    assert again.table == {"clips": {"events": 4, "none-kept": 1, "told": 2}, "refused": {}}
    assert [row.clip_id for row in told] == ["a", "b", "c"]
    assert server.requests - before == before + 2, "only what got no answer is requested again"


@pytest.mark.parametrize("number", range(len(FORMS)), ids=[form.name for form in FORMS])
def test_an_answer_of_each_form_is_read_with_text_around_it(
    server: JudgeServer, captioner: Callable[..., Captioner], number: int
) -> None:
    captioner().tell([CLIPS[0]])
    form = FORMS[number]
    asked = next(asked for asked in server.asked if asked.kind == form.name)
    answer = read_answer(form, f"Sure!\n```json\n{json.dumps(verdict(asked))}\n```", asked.user)
    assert type(answer) is form.answer
