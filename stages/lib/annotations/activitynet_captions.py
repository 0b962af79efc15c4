"""Reader of ActivityNet Captions (Krishna et al., ICCV 2017): videos of minutes with timed,
described, possibly overlapping events.

Fields follow ``evaluate.py`` of github.com/ranjaykrishna/densevid_eval at 5759c13 and the files
that it reads: an object with an entry for each video (``v_`` and its YouTube id) with ``duration``,
``timestamps`` (pairs of seconds) and as many ``sentences``. The files ``train.json``,
``val_1.json`` and ``val_2.json`` are the splits; the two of validation describe the same videos.
``duration`` is the container's, a median .09 s more than that of its frames; a file that is longer
is another recording. The classes of the videos (MixVidQA pairs clips of different ones) come from
``activity_net.v1-3.min.json`` where it lies beside.
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
from stages.lib.annotations.placeholders import is_placeholder

FILE = "train.json"
#: Classes of the videos: under ``database`` an entry for each YouTube id, with labelled segments.
CLASSES = "activity_net.v1-3.min.json"


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
    files, labels = VideoFiles(folder), _labels(folder)
    split: Split | None = "train" if name.startswith("train") else "validation" if name.startswith("val") else None
    for where, key, raw in entries(text, name, folder):
        entry = validated(_Entry, raw, where, key)
        video = files.find([key, key.removeprefix("v_")], where)
        if isinstance(entry, Reject) or isinstance(video, Reject):
            problem = entry if isinstance(entry, Reject) else video
            assert isinstance(problem, Reject)
            yield Found(where, problem, frozenset() if isinstance(video, Reject) else frozenset([video]))
        else:
            yield _found(entry, key, video, where, split, labels.get(key.removeprefix("v_")))


def _labels(folder: Path) -> dict[str, str]:
    """The class of each video that has only one; empty if the file of the classes is not there."""
    if not (folder / CLASSES).is_file():
        return {}
    text = read_text(folder, CLASSES, "download it again")
    labels = {}
    for _, key, raw in entries(text, CLASSES, folder, below="database"):
        segments = raw.get("annotations") if isinstance(raw, dict) else None
        named = {s.get("label") for s in segments if isinstance(s, dict)} if isinstance(segments, list) else set()
        if len(named) == 1 and isinstance(label := named.pop(), str):
            labels[key] = label
    return labels


def _found(entry: _Entry, key: str, video: str, where: str, split: Split | None, label: str | None) -> Found:
    timed, problems = _timed(entry, key, where)
    events = [
        {"start": event.timestamps[0], "end": event.timestamps[1], "caption": event.sentences.strip()}
        for event in timed
    ]
    if events and all(map(is_placeholder, events)):
        detail = f"{key}: {events[0]['caption']!r} at [0, 1] stands for no annotation; leave the entry out"
        return Found(where, reject(where, "placeholder", detail), frozenset([video]))
    # Sentences start with a space, and some consist of it.
    sentences = (
        [text.strip() for text in entry.sentences if isinstance(text, str)] if isinstance(entry.sentences, list) else []
    )
    raw = {
        "video": video,
        "id": key,
        "source": key,
        "split": split,
        "label": label,
        "caption": " ".join(filter(None, sentences)) or None,
        "events": events,
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
