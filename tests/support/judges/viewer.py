"""What a model that sees pictures says in the tests: where a coloured thing on grey ground goes,
picture by picture."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

#: Colours by which of red, green and blue is high.
COLOURS = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow", (0, 1, 1): "cyan"}
#: Share of the picture's side that it must move by between two pictures.
STEP = 0.02


class Shown(NamedTuple):
    time_s: float
    jpeg: bytes


class Place(NamedTuple):
    colour: str
    right: float
    down: float


def pictures_of(parts: Sequence[dict[str, Any]]) -> tuple[Shown, ...]:
    """The pictures of a message, each with its caption before it; AssertionError if they are
    otherwise."""
    assert len(parts) % 2 == 0
    shown = []
    for caption, picture in zip(parts[::2], parts[1::2], strict=True):
        assert caption["type"] == "text"
        assert picture["type"] == "image_url"
        kind, _, content = picture["image_url"]["url"].partition(";base64,")
        assert kind == "data:image/jpeg"
        shown.append(Shown(float(caption["text"].removesuffix(" s")), base64.b64decode(content, validate=True)))
    assert [picture.time_s for picture in shown] == sorted(picture.time_s for picture in shown)
    return tuple(shown)


def place(jpeg: bytes) -> Place | None:
    """Colour and centre of the coloured thing; None if there is none."""
    pixels = np.asarray(Image.open(BytesIO(jpeg)).convert("RGB")).astype(int)
    coloured = pixels.max(-1) - pixels.min(-1) > 90
    if coloured.mean() < 0.002:
        return None
    mean = pixels[coloured].mean(axis=0)
    colour = COLOURS.get(tuple(int(value > mean.max() * 0.6) for value in mean), "grey")
    rows, columns = np.nonzero(coloured)
    return Place(colour, columns.mean() / pixels.shape[1], rows.mean() / pixels.shape[0])


def events_in(shown: Sequence[Shown]) -> Iterator[dict[str, Any]]:
    """Runs of pictures between which the thing goes one way."""
    seen = [place(picture.jpeg) for picture in shown]
    ways = [_way(before, after) for before, after in pairwise(seen)]
    for way, steps in groupby(range(len(ways)), key=ways.__getitem__):
        numbers = list(steps)
        first = seen[numbers[0]]
        if way is not None and first is not None:
            start, end = shown[numbers[0]].time_s, shown[numbers[-1] + 1].time_s
            yield {"start": start, "end": end, "caption": f"the {first.colour} box {way}"}


def event_of(shown: Sequence[Shown]) -> str:
    """What it does from the first picture to the last; empty if nothing."""
    first, last = place(shown[0].jpeg), place(shown[-1].jpeg)
    way = _way(first, last)
    return f"the {first.colour} box {way}" if first is not None and way is not None else ""


def _way(before: Place | None, after: Place | None) -> str | None:
    if before is None or after is None or before.colour != after.colour:
        return None
    right, down = after.right - before.right, after.down - before.down
    if max(abs(right), abs(down)) < STEP:
        return None
    if abs(right) > abs(down):
        return "advances" if right > 0 else "retreats"
    return "falls" if down > 0 else "rises"
