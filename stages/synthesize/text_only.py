"""Guesser of dark events from text alone: if it succeeds, a model need not look at the video, and
the sample teaches nothing.

The guesser knows the annotation of a clip except the dark event itself: its class, its other
events, and which of them come before and after. It is naive Bayes over those hints (Manning,
Raghavan and Schütze, *Introduction to Information Retrieval*, 2008, section 13.2, with add-one
smoothing), fitted on the events of other clips; its guess is the most likely caption among them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from stages.domain.core.records import Clip, Event
from stages.domain.core.words import words


class TextOnlyGuesser:
    """Guesser of a clip's event from the rest of its annotation."""

    def __init__(self, clips: Iterable[Clip]) -> None:
        self._captions: Counter[str] = Counter()
        self._hints: dict[str, Counter[str]] = defaultdict(Counter)
        for clip in clips:
            for event in clip.events:
                caption = event.caption.casefold()
                self._captions[caption] += 1
                for hint in _hints(clip, event):
                    self._hints[hint][caption] += 1

    @property
    def fitted_on(self) -> int:
        """Number of events that it was fitted on."""
        return self._captions.total()

    def guess(self, clip: Clip, event: Event) -> str:
        """Return the most likely caption of this event.

        Raises:
            ValueError: it was fitted on no event.
        """
        if not self._captions:
            raise ValueError("clips: none has an event, so there is nothing to guess from")
        kinds = len(self._captions)
        scores: dict[str, float] = {}
        hints = [self._hints[hint] for hint in _hints(clip, event) if hint in self._hints]
        for caption, seen in self._captions.items():
            scores[caption] = math.log(seen) + sum(math.log((hint[caption] + 1) / (seen + kinds)) for hint in hints)
        # Ties are broken alphabetically, so that the result does not depend on the order of clips.
        return min(scores, key=lambda caption: (-scores[caption], caption))


def _hints(clip: Clip, event: Event) -> Iterator[str]:
    events = clip.events
    index = events.index(event)
    last = len(events) - 1
    yield f"place {'only' if last == 0 else 'first' if index == 0 else 'last' if index == last else 'middle'}"
    if clip.label is not None:
        yield f"label {clip.label}"
    for side, neighbours in (("before", events[:index][-1:]), ("after", events[index + 1 :][:1])):
        for other in neighbours:
            yield f"{side} {other.caption.casefold()}"
            yield from (f"{side} word {word}" for word in set(words(other.caption)))
