"""Reader of ActivityNet Captions (Krishna et al., ICCV 2017): videos of minutes with timed,
described, possibly overlapping events.

Fields follow ``evaluate.py`` of github.com/ranjaykrishna/densevid_eval at 5759c13 and the files
that it reads: an object with an entry for each video (``v_`` and its YouTube id) with ``duration``,
``timestamps`` (pairs of seconds) and as many ``sentences``. The files ``train.json``,
``val_1.json`` and ``val_2.json`` are the splits; the two of validation describe the same videos.
``duration`` is the container's, a median .09 s more than that of its frames; a file that is longer
is another recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stages.domain.core.records import Reject, Split
from stages.lib.annotations.annotation import Found, Seconds, annotated, each, read_text, reject, validated
from stages.lib.annotations.collect import Format, Source, usable
from stages.lib.annotations.files import VideoFiles, entries

FILE = "train.json"


class _Entry(BaseModel):
    duration: Seconds | None = None
    timestamps: Any
    sentences: Any


class _TimedSentence(BaseModel):
    timestamps: tuple[Seconds, Seconds]
    sentences: str


def read_activitynet_captions(folder: Path, name: str = FILE) -> Source:
    """Read the usable videos of an ActivityNet Captions folder, and the rejects.

    Raises:
        SourceError: the file does not exist, or is not such a document.
    """
    text = read_text(folder, name, "put train.json there, or name val_1.json in ingest.annotations")
    return usable(_rows(text, name, folder), folder, name)


def _rows(text: str, name: str, folder: Path) -> Iterator[Found]:
    files = VideoFiles(folder)
    split: Split | None = "train" if name.startswith("train") else "validation" if name.startswith("val") else None
    for where, key, raw in entries(text, name, folder):
        entry = validated(_Entry, raw, where, key)
        video = files.find([key, key.removeprefix("v_")], where)
        if isinstance(entry, Reject) or isinstance(video, Reject):
            problem = entry if isinstance(entry, Reject) else video
            assert isinstance(problem, Reject)
            yield Found(where, problem, frozenset() if isinstance(video, Reject) else frozenset([video]))
        else:
            yield _found(entry, key, video, where, split)


def _found(entry: _Entry, key: str, video: str, where: str, split: Split | None) -> Found:
    timed, problems = _timed(entry, key, where)
    # Sentences start with a space, and some consist of it.
    sentences = (
        [text.strip() for text in entry.sentences if isinstance(text, str)] if isinstance(entry.sentences, list) else []
    )
    raw = {
        "video": video,
        "id": key,
        "source": key,
        "split": split,
        "caption": " ".join(filter(None, sentences)) or None,
        "events": [
            {"start": event.timestamps[0], "end": event.timestamps[1], "caption": event.sentences.strip()}
            for event in timed
        ],
    }
    row, parts = annotated(raw, where, key, entry.duration)
    return Found(where, row, frozenset([video]), (*problems, *parts))


def _timed(entry: _Entry, key: str, where: str) -> tuple[list[_TimedSentence], list[Reject]]:
    """Pair each sentence with its times."""
    for field, value in (("timestamps", entry.timestamps), ("sentences", entry.sentences)):
        if not isinstance(value, list):
            return [], [reject(where, "bad-event", f"{key}.{field}: need a list, found {type(value).__name__}")]
    if len(entry.timestamps) != len(entry.sentences):
        counted = f"{len(entry.timestamps)} timestamps and {len(entry.sentences)} sentences"
        return [], [reject(where, "bad-event", f"{key}: {counted}: need as many; which belong together cannot be told")]
    pairs = [
        {"timestamps": times, "sentences": text} for times, text in zip(entry.timestamps, entry.sentences, strict=True)
    ]
    return each(_TimedSentence, pairs, where, f"{key}.events", "event")


FORMAT = Format("activitynet_captions", read_activitynet_captions, FILE)
