"""Whether a dark event can be told from words alone: if it can, a model need not look at the video, and the sample teaches nothing.

The guesser knows all that is said about a clip except what happens in the dark: its class, its other events, and which of them come
before and after. It is naive Bayes over those hints (Manning, Raghavan and Schütze, *Introduction to Information Retrieval*, 2008,
section 13.2, with add-one smoothing), fitted on other clips' events; its guess is the likeliest caption it has seen.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from stages.domain.core.records import Clip, Event
from stages.domain.core.words import words


class TextOnlyGuesser:
    """Guesses a clip's event from the rest of its annotation."""

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
        """Events it has seen."""
        return self._captions.total()

    def guess(self, clip: Clip, event: Event) -> str:
        """The likeliest caption of this event.

        Raises:
            ValueError: it was fitted on nothing.
        """
        if not self._captions:
            raise ValueError("clips: none has an event, so there is nothing to guess from")
        kinds = len(self._captions)
        scores: dict[str, float] = {}
        hints = [self._hints[hint] for hint in _hints(clip, event) if hint in self._hints]
        for caption, seen in self._captions.items():
            scores[caption] = math.log(seen) + sum(math.log((hint[caption] + 1) / (seen + kinds)) for hint in hints)
        # Of equals the first in the alphabet: nothing may hang on the order in which clips came.
        return min(scores, key=lambda caption: (-scores[caption], caption))


def _hints(clip: Clip, event: Event) -> Iterator[str]:
    events = clip.events
    place = events.index(event)
    yield f"place {'only' if len(events) == 1 else 'first' if place == 0 else 'last' if place == len(events) - 1 else 'middle'}"
    if clip.label is not None:
        yield f"label {clip.label}"
    for side, beside in (("before", events[:place][-1:]), ("after", events[place + 1 :][:1])):
        for other in beside:
            yield f"{side} {other.caption.casefold()}"
            yield from (f"{side} word {word}" for word in set(words(other.caption)))
