"""COIN (Tang et al., CVPR 2019): instructional videos whose steps are timed. One JSON file, ``COIN.json``.

Fields after the README of github.com/coin-dataset/annotations at 4450e37: under ``database`` an entry a YouTube id, with ``class``,
``subset`` ("training" or "testing"; the README's table says "validation") and ``annotation``: steps with ``segment`` ``[start, end]``
in seconds of the whole video and a ``label``. VidBridge-R1 took its DarkEventInfer events from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from stages.domain.records import Reject, Split
from stages.sources.annotation import Annotation, Found, Seconds, read_text, usable, validated
from stages.sources.documents import entries
from stages.sources.places import Places

FILE = "COIN.json"
#: COIN may be used for research only; the sentence stands in its README.
LICENCE = "COIN annotations: research only; videos: their authors'"
_SPLITS: dict[str, Split] = {"training": "train", "validation": "validation", "testing": "test"}


class _Step(BaseModel):
    segment: tuple[Seconds, Seconds]
    label: str = Field(min_length=1)


class _Entry(BaseModel):
    target: str = Field(alias="class", min_length=1)
    subset: Literal["training", "validation", "testing"]
    annotation: list[_Step]


def read_coin(folder: Path, name: str = FILE) -> tuple[list[Annotation], list[Reject]]:
    """The usable videos of a COIN folder, and what was set aside.

    Raises:
        SourceError: no such file, or it is no COIN document.
    """
    text = read_text(folder, name, "download it from the COIN project page")
    return usable(_rows(text, name, folder), folder, name)


def _rows(text: str, name: str, folder: Path) -> Iterator[Found]:
    places = Places(folder)
    for where, key, raw in entries(text, name, folder, below="database"):
        entry = validated(_Entry, raw, where, key)
        video = places.find([key], where)
        row = entry if isinstance(entry, Reject) else video if isinstance(video, Reject) else _annotation(entry, key, video, where)
        yield Found(where, row, frozenset() if isinstance(video, Reject) else frozenset([video]))


def _annotation(entry: _Entry, key: str, video: str, where: str) -> Annotation | Reject:
    events = [{"start": step.segment[0], "end": step.segment[1], "caption": step.label} for step in entry.annotation]
    raw = {
        "video": video,
        "id": key,
        "source": key,
        "split": _SPLITS[entry.subset],
        "label": entry.target,
        "licence": LICENCE,
        "events": events,
    }
    return validated(Annotation, raw, where, key)
