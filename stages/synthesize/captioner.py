"""Captioner: a model that sees pictures tells the events of clips whose annotation has none; an
event is kept only if a second reading agrees.

The first reading sees the whole clip and proposes events with times. The second one sees the
pictures of one event alone, and is told nothing of the first. The same model then compares both
captions, without pictures. Answers are cached like those of the writer, and clips that are done
stand in a journal, so that a synthesis that was killed goes on there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError
from tqdm import tqdm

from stages.domain.core.records import Clip, Event, Record, Span, Timeline, folded
from stages.domain.core.timeline import plain, sample_indices
from stages.lib.judging.prompts import Picture
from stages.lib.rows.jsonl import iterate_rows, write_rows
from stages.params import EventParams, WriterParams
from stages.runtime.endpoint.pictures import fitted, jpeg_url
from stages.synthesize.event_prompts import (
    LONGEST_CAPTION,
    ProposedEvent,
    ProposedEvents,
    SameEvent,
    SeenEvent,
    ask_for_events,
    ask_if_same,
    ask_what_happens,
    seconds,
)
from stages.synthesize.question_rules import holds_markup
from stages.synthesize.writer import answers_of, endpoints_of, usage_at

#: Number of clips processed together; their pictures are in memory.
CHUNK = 32
#: Quality of the pictures at which the loss is hardly visible.
JPEG_QUALITY = 92
#: An event may end behind the clip by this much: the model's clock rounds.
BEYOND_S = Fraction(1, 2)


class Reader(Protocol):
    """The part of :class:`~stages.lib.video.loader.FrameLoader` that is used."""

    def frames(self, timeline: Timeline, indices: Sequence[int]) -> npt.NDArray[np.uint8]: ...


class Captioned(Record):
    """Events told of one clip. ``refused``: number of proposed events, or of proposals, that were
    not kept, by reason."""

    clip_id: str
    events: tuple[Event, ...] = ()
    refused: dict[str, int] = Field(default_factory=dict)


class Captioner:
    """Tells events of clips.

    Args:
        loader: reads the frames of clips.

    Raises:
        JudgeError: the environment does not set the endpoint.
    """

    def __init__(self, params: WriterParams, loader: Reader) -> None:
        assert params.events is not None
        self._params, self._events, self._loader = params, params.events, loader
        self._propose, self._check = endpoints_of(params)
        self.clips: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    @property
    def table(self) -> dict[str, dict[str, int]]:
        """Counts for ``summary.json``: clips by what came of them, events kept, and refused
        proposals by reason."""
        return {"clips": dict(sorted(self.clips.items())), "refused": dict(sorted(self.refused.items()))}

    @property
    def usage(self) -> dict[str, float]:
        """Requests so far and their cost, for metrics."""
        return usage_at((self._propose, self._check), "captioner")

    def __str__(self) -> str:
        """Text for people: ``events of 30 clips told, 2 without; refused: 5 not-seen-again``."""
        refused = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.refused.items())) or "none"
        told, untold = self.clips["told"], self.clips["none-kept"]
        return f"{self.clips['events']:,} events of {told:,} clips told, {untold:,} clips without; refused: {refused}"

    def count(self, done: Captioned) -> None:
        self.clips["told" if done.events else "none-kept"] += 1
        self.clips["events"] += len(done.events)
        self.refused.update(done.refused)

    def tell(self, clips: Sequence[Clip]) -> list[Captioned]:
        """Tell the events of clips that have none; each depends on its own clip alone.

        Raises:
            WriterUnavailableError: the endpoint left a request unanswered.
            JudgeError: the endpoint refuses such requests.
            VideoError: a clip cannot be read.
        """
        kept: dict[int, tuple[Event, ...]] = {}
        refused: list[Counter[str]] = [Counter() for _ in clips]
        shown = [self._pictures(clip, sample_indices(clip.frames, self._events.frames)) for clip in clips]
        for draw in range(self._params.tries):
            waiting = [n for n in range(len(clips)) if n not in kept]
            asked = {
                n: ask_for_events(shown[n], clips[n].frames / clips[n].rate, self._events.most, draw) for n in waiting
            }
            candidates: dict[tuple[int, int], Event] = {}
            for n, answer in answers_of(self._propose, asked).items():
                if not isinstance(answer, ProposedEvents):
                    refused[n]["unreadable"] += 1
                    continue
                for event in _usable(answer.events, clips[n], self._events, refused[n]):
                    candidates[n, len(candidates)] = event
            agreed = self._read_again(clips, candidates, refused)
            for n in waiting:
                if events := tuple(event for (of, _), event in agreed.items() if of == n):
                    kept[n] = events
        return [
            Captioned(clip_id=clip.clip_id, events=kept.get(n, ()), refused=dict(sorted(refused[n].items())))
            for n, clip in enumerate(clips)
        ]

    def _read_again(
        self, clips: Sequence[Clip], candidates: Mapping[tuple[int, int], Event], refused: Sequence[Counter[str]]
    ) -> dict[tuple[int, int], Event]:
        """Return the events of which a second reading tells the same."""
        asked = {key: ask_what_happens(self._inside(clips[key[0]], event.span)) for key, event in candidates.items()}
        told = {
            key: answer.caption.strip()
            for key, answer in answers_of(self._check, asked).items()
            if isinstance(answer, SeenEvent)
        }
        compared = {key: ask_if_same(candidates[key].caption, caption) for key, caption in told.items() if caption}
        verdicts = answers_of(self._check, compared)
        agreed = {}
        for key, event in candidates.items():
            verdict = verdicts.get(key)
            if isinstance(verdict, SameEvent) and verdict.same:
                agreed[key] = event
            elif key not in told or (key in compared and not isinstance(verdict, SameEvent)):
                refused[key[0]]["unreadable"] += 1
            else:
                refused[key[0]]["not-seen-again" if key in compared else "nothing-seen-again"] += 1
        return agreed

    def _inside(self, clip: Clip, span: Span) -> tuple[Picture, ...]:
        count = min(self._events.frames, span.frames)
        return self._pictures(clip, [span.start + index for index in sample_indices(span.frames, count)])

    def _pictures(self, clip: Clip, indices: Sequence[int]) -> tuple[Picture, ...]:
        distinct = list(dict.fromkeys(indices))
        pixels = self._loader.frames(plain(clip.clip_id, clip.frames, clip.rate), distinct)
        return tuple(
            Picture(
                seconds((index + Fraction(1, 2)) / clip.rate),
                jpeg_url(fitted(frame, self._events.max_pixels), JPEG_QUALITY),
            )
            for index, frame in zip(distinct, pixels, strict=True)
        )


def _usable(proposed: Iterable[ProposedEvent], clip: Clip, params: EventParams, refused: Counter[str]) -> list[Event]:
    """Convert proposed events to frames, in order of their start; those that break a rule are
    counted."""
    events: list[Event] = []
    captions: set[str] = set()
    length_s = clip.frames / clip.rate
    shortest = max(Fraction(1), Fraction(str(params.min_s)) * clip.rate)
    for event in proposed:
        # Through the shortest decimal: 0.1 means a tenth.
        start_s, end_s = (Fraction(str(time)) for time in (event.start, event.end))
        caption = " ".join(event.caption.split())
        start = round(max(start_s, Fraction(0)) * clip.rate)
        stop = round(min(end_s, length_s) * clip.rate)
        if not caption or len(caption) > LONGEST_CAPTION:
            refused["no-caption" if not caption else "long-caption"] += 1
        elif holds_markup(caption):
            refused["holds-markup"] += 1
        elif start_s < -BEYOND_S or end_s > length_s + BEYOND_S:
            refused["outside-clip"] += 1
        elif stop - start < shortest:
            refused["too-short"] += 1
        elif folded(caption) in captions:
            refused["repeated"] += 1
        elif len(events) == params.most:
            refused["too-many"] += 1
        else:
            captions.add(folded(caption))
            events.append(Event(span=Span(start=start, stop=stop), caption=caption))
    return sorted(events, key=lambda event: (event.span.start, event.span.stop))


def caption_manifest(manifest: Path, captioner: Captioner, scratch: Path) -> tuple[Path, list[Captioned]]:
    """Write a manifest in ``scratch`` whose clips without events have those that were told; clips
    with events are unchanged and never shown to the model.

    Returns:
        The new manifest, and what was told of each clip without events, in the manifest's order.

    Raises:
        WriterUnavailableError, JudgeError, VideoError: see :meth:`Captioner.tell`; call again, and
            only missing clips are told.
    """
    journal, out = scratch / "captioned.jsonl", scratch / "captioned-manifest.jsonl"
    done = _read_journal(journal)
    for row in done.values():
        captioner.count(row)
    told_before = frozenset(done)

    def bare() -> Iterator[Clip]:
        return (clip for clip in iterate_rows(manifest, Clip) if not clip.events and clip.clip_id not in told_before)

    waiting, total = bare(), sum(1 for _ in bare())
    with (
        journal.open("a", encoding="utf-8") as lines,
        tqdm(desc="tell events", total=total, unit="clip", mininterval=1) as bar,
    ):
        while chunk := list(islice(waiting, CHUNK)):
            for row in captioner.tell(chunk):
                lines.write(row.model_dump_json(exclude_none=True) + "\n")
                captioner.count(row)
                done[row.clip_id] = row
            lines.flush()
            bar.update(len(chunk))
    told: list[Captioned] = []
    write_rows(out, _with_events(manifest, done, told))
    return out, told


def _with_events(manifest: Path, done: Mapping[str, Captioned], told: list[Captioned]) -> Iterator[Clip]:
    for clip in iterate_rows(manifest, Clip):
        row = None if clip.events else done[clip.clip_id]
        if row is not None:
            told.append(row)
        yield clip if row is None else clip.model_copy(update={"events": row.events})


def _read_journal(journal: Path) -> dict[str, Captioned]:
    """Read what was told before. A last line that a kill cut short is skipped, and ended."""
    if not journal.is_file():
        return {}
    text = journal.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        with journal.open("a", encoding="utf-8") as lines:
            lines.write("\n")
    rows: dict[str, Captioned] = {}
    for line in text.split("\n"):
        with suppress(ValidationError):
            row = Captioned.model_validate_json(line)
            rows[row.clip_id] = row
    return rows
