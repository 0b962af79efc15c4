"""Prompts and answer formats of the captioner of events: a first reading of the whole clip, a
second one of an event's own pictures, and their comparison."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import ConfigDict, Field

from stages.domain.core.records import Record
from stages.lib.judging.prompts import AS_JSON, FENCED, Form, Picture, Question, fenced

#: Longest caption, in characters: one sentence.
LONGEST_CAPTION = 300
Caption = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]


class ProposedEvent(Record):
    start: Seconds
    end: Seconds
    caption: Caption


class ProposedEvents(Record):
    events: tuple[ProposedEvent, ...]


class SeenEvent(Record):
    """What happens in some pictures."""

    model_config = ConfigDict(json_schema_extra={"description": "What happens in some pictures."})

    caption: str


class SameEvent(Record):
    """Verdict on two descriptions."""

    model_config = ConfigDict(json_schema_extra={"description": "Two descriptions of one part of a video."})

    reason: str
    same: bool


_ONE_EVENT = (
    " An event is one action or change, and who or what does it, in one short sentence in the present tense (the man"
    " pours milk into a bowl). Looks, place and mood alone are no events, and neither are movements of the camera, cuts"
    " and writing on the screen."
)
_PROPOSE = Form(
    "propose_events",
    "You list the events of a video. You see pictures of it in their order; before each stands the second at which it"
    " is shown."
    + _ONE_EVENT
    + " List at most `most` of them by their start, with start and end in seconds of the video, which lasts `seconds`."
    " List only what the pictures show to begin or to go on there, and leave out what goes on all the time. If nothing"
    " happens, the list is empty." + AS_JSON + '{"events": [{"start": number, "end": number, "caption": …}]}.',
    ProposedEvents,
)
_READ = Form(
    "read_event",
    "You tell what happens in a part of a video. You see pictures of that part in their order; before each stands the"
    " second at which it is shown."
    + _ONE_EVENT
    + " Tell the one event of these pictures; if nothing happens in them, the caption is empty."
    + AS_JSON
    + '{"caption": …}.',
    SeenEvent,
)
_SAME = Form(
    "same_event",
    "Two people have told what happens in one part of a video. You decide whether they tell the same event."
    + FENCED
    + " They do when the same person, animal or thing does the same in both, in whatever words; one may tell more than"
    " the other. They do not when who does it, what is done or what it is done to differs, or when one tells no event."
    + AS_JSON
    + '{"reason": one short sentence, "same": true or false}.',
    SameEvent,
)
#: All forms of requests to a captioner.
FORMS: tuple[Form, ...] = (_PROPOSE, _READ, _SAME)


def ask_for_events(pictures: tuple[Picture, ...], length_s: Fraction, most: int, draw: int) -> Question:
    """Request the events of a clip that these pictures show."""
    question = fenced(_PROPOSE, {"seconds": seconds(length_s), "most": str(most)}, {}, draw)
    return question._replace(pictures=pictures)


def ask_what_happens(pictures: tuple[Picture, ...]) -> Question:
    """Request what these pictures show, without a word of what they are thought to show."""
    return fenced(_READ, {}, {})._replace(pictures=pictures)


def ask_if_same(first: str, second: str) -> Question:
    """Request whether two captions tell one event."""
    return fenced(_SAME, {}, {"first": first, "second": second})


def seconds(time: Fraction) -> str:
    return f"{float(time):.2f} s"
