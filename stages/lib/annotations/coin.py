"""Reader of COIN (Tang et al., CVPR 2019): instructional videos with timed steps. One JSON file,
``COIN.json``.

Fields follow the README of github.com/coin-dataset/annotations at 4450e37: under ``database`` an
entry per YouTube id, with ``class``, ``subset`` ("training" or "testing"; the README's table says
"validation"), ``duration`` and ``annotation``: steps with ``segment`` ``[start, end]`` in seconds
of the whole video and a ``label``. A file that is longer than ``duration`` is another recording, to
which the times do not apply. VidBridge-R1 took its DarkEventInfer events from COIN.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from stages.domain.core.records import Reject, Split
from stages.lib.annotations.annotation import Found, Seconds, annotated, each, read_text, validated
from stages.lib.annotations.collect import Format, Source, usable
from stages.lib.annotations.files import VideoFiles, entries

FILE = "COIN.json"
#: COIN may be used for research only, according to its README.
LICENCE = "COIN annotations: research only; videos: their authors'"
_SPLITS: dict[str, Split] = {"training": "train", "validation": "validation", "testing": "test"}


class _Step(BaseModel):
    segment: tuple[Seconds, Seconds]
    label: str


class _Entry(BaseModel):
    target: str = Field(alias="class", min_length=1)
    subset: Literal["training", "validation", "testing"]
    duration: Seconds | None = None
    annotation: Any


def read_coin(folder: Path, name: str = FILE) -> Source:
    """Read the usable videos of a COIN folder, and the rejects.

    Raises:
        SourceError: the file does not exist, or is not a COIN document.
    """
    text = read_text(folder, name, "download it from the COIN project page")
    return usable(_rows(text, name, folder), folder, name)


def _rows(text: str, name: str, folder: Path) -> Iterator[Found]:
    files = VideoFiles(folder)
    for where, key, raw in entries(text, name, folder, below="database"):
        entry = validated(_Entry, raw, where, key)
        video = files.find([key], where)
        if isinstance(entry, Reject) or isinstance(video, Reject):
            problem = entry if isinstance(entry, Reject) else video
            assert isinstance(problem, Reject)
            yield Found(where, problem, frozenset() if isinstance(video, Reject) else frozenset([video]))
        else:
            yield _found(entry, key, video, where)


def _found(entry: _Entry, key: str, video: str, where: str) -> Found:
    steps, problems = each(_Step, entry.annotation, where, f"{key}.annotation", "event")
    raw = {
        "video": video,
        "id": key,
        "source": key,
        "split": _SPLITS[entry.subset],
        "label": entry.target,
        "licence": LICENCE,
        "events": [{"start": step.segment[0], "end": step.segment[1], "caption": step.label} for step in steps],
    }
    row, parts = annotated(raw, where, key, entry.duration)
    return Found(where, row, frozenset([video]), (*problems, *parts))


FORMAT = Format("coin", read_coin, FILE)
