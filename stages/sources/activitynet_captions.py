"""ActivityNet Captions (Krishna et al., ICCV 2017): videos of minutes whose events are timed and described, overlaps allowed.

Fields after ``evaluate.py`` of github.com/ranjaykrishna/densevid_eval at 5759c13 and the files that it reads: an object with an entry for
each video (``v_`` and its YouTube id) with ``duration``, ``timestamps`` (pairs of seconds) and as many ``sentences``. The files
``train.json``, ``val_1.json`` and ``val_2.json`` are the splits; the two of validation describe the same videos.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field, model_validator

from stages.domain.records import Reject, Split
from stages.sources.annotation import Annotation, Found, Seconds, read_text, usable, validated
from stages.sources.documents import entries
from stages.sources.places import Places

FILE = "train.json"


class _Entry(BaseModel):
    duration: Seconds
    timestamps: list[tuple[Seconds, Seconds]]
    sentences: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _as_many(self) -> _Entry:
        if len(self.timestamps) != len(self.sentences):
            raise ValueError(f"{len(self.timestamps)} timestamps and {len(self.sentences)} sentences: need as many")
        return self


def read_activitynet_captions(folder: Path, name: str = FILE) -> tuple[list[Annotation], list[Reject]]:
    """The usable videos of an ActivityNet Captions folder, and what was set aside.

    Raises:
        SourceError: no such file, or it is no such document.
    """
    text = read_text(folder, name, "put train.json there, or name val_1.json in ingest.annotations")
    return usable(_rows(text, name, folder), folder, name)


def _rows(text: str, name: str, folder: Path) -> Iterator[Found]:
    places = Places(folder)
    split: Split | None = "train" if name.startswith("train") else "validation" if name.startswith("val") else None
    for where, key, raw in entries(text, name, folder):
        entry = validated(_Entry, raw, where, key)
        video = places.find([key, key.removeprefix("v_")], where)
        row = (
            entry
            if isinstance(entry, Reject)
            else video
            if isinstance(video, Reject)
            else _annotation(entry, key, video, where, split)
        )
        yield Found(where, row, frozenset() if isinstance(video, Reject) else frozenset([video]))


def _annotation(entry: _Entry, key: str, video: str, where: str, split: Split | None) -> Annotation | Reject:
    # Sentences come with a space in front, and some hold nothing else.
    told = [(times, sentence.strip()) for times, sentence in zip(entry.timestamps, entry.sentences, strict=True)]
    raw = {
        "video": video,
        "id": key,
        "source": key,
        "split": split,
        "caption": " ".join(sentence for _, sentence in told if sentence) or None,
        "events": [{"start": start, "end": end, "caption": sentence} for (start, end), sentence in told],
    }
    return validated(Annotation, raw, where, key)
