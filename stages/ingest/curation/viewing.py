"""Look at every frame while a file is decoded: shot boundaries, and a few numbers on one picture of
each half second, from which clips and parts of them are compared and flagged.

Shot boundaries are those of PySceneDetect's adaptive detector. The perceptual hash is the usual one
of the discrete cosine transform (Zauner, *Implementation and Benchmarking of Perceptual Image Hash
Functions*, 2010): 8 x 8 low frequencies of the grey picture at 32 x 32, each above or below their
median.
"""

from __future__ import annotations

import base64
import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

from stages.domain.core.records import Record, Span
from stages.ingest.curation.watching import SMALL_PX
from stages.lib.video.probe import Probe

#: A picture is described every half second, and at least this many times in a file.
EVERY_S, AT_LEAST = Fraction(1, 2), 16
#: Shortest shot: a boundary within it of the last one is a flash.
SHORTEST_SHOT_S = Fraction(1, 2)
#: How many times the change between two frames must exceed the mean of those around it, and the
#: least change, in levels of 255.
CUT_RATIO, CUT_CHANGE = 3.0, 15.0
#: Weights of hue, saturation, brightness and edges in that change. The hue of grey and the
#: saturation of dark pixels jump at every key frame.
CUT_WEIGHTS = (0.0, 0.5, 1.0, 0.0)
#: Side of the grid of mean colours, and of the blocks in which change is measured, in cells.
COLOURS, BLOCKS = 4, 16
#: A pixel up to this brightness is black; rows of bars have at most one in fifty brighter ones, and
#: border on rows of which half is brighter.
BLACK, SPECKS, LIT = 24, 0.02, 0.5
#: In place of a bar's width: the picture is too dark at that side to tell.
UNKNOWN = 255
#: A picture with less contrast (standard deviation of its brightness) has no hash worth comparing.
FLAT = 4

Bytes = npt.NDArray[np.uint8]

_FIELDS = {"hash": 8, "colours": 3 * COLOURS**2, "contrast": 1, "brightest": 1, "change": 1, "bars": 4}
_WIDTH = sum(_FIELDS.values())


class Viewed(Record):
    """Shots and pictures of a file. All numbers count frames as a
    :class:`~stages.domain.core.records.Clip` does."""

    #: First frames of all shots but the first.
    shots: tuple[int, ...]
    #: Frames of which there is a picture, ascending.
    at: tuple[int, ...]
    #: Numbers on these pictures, a row each, in base64; see :class:`Pictures`.
    pictures: str

    def shots_in(self, part: Span) -> tuple[int, ...]:
        """First frames of the shots that start inside the part, counted from its start."""
        return tuple(shot - part.start for shot in self.shots if part.start < shot < part.stop)

    def pictures_in(self, part: Span) -> Pictures:
        """Pictures of the part; of one that holds none, the picture that is nearest to it."""
        at = np.array(self.at)
        first, stop = int(np.searchsorted(at, part.start)), int(np.searchsorted(at, part.stop))
        if first == stop:
            first = int(np.argmin(np.abs(at - (part.start + part.stop) // 2)))
            stop = first + 1
        rows = np.frombuffer(base64.b64decode(self.pictures), np.uint8).reshape(-1, _WIDTH)
        return Pictures(at[first:stop] - part.start, rows[first:stop])


class Pictures:
    """Numbers on the pictures of a clip.

    Attributes:
        at: frames [n].
        hash: perceptual hash, uint64 [n].
        colours: mean blue, green and red of a 4 x 4 grid, int16 [n, 48].
        contrast: standard deviation of the brightness [n].
        brightest: brightness that one pixel in a hundred exceeds [n].
        change: largest mean change of a block since the picture before [n]; that of the first is 0.
        bars: black rows at the top and bottom and columns at the left and right, of 64
            [n, 4]; :data:`UNKNOWN` where dark content and bars look the same.
    """

    def __init__(self, at: npt.NDArray[Any], rows: Bytes) -> None:
        edges = np.cumsum([0, *_FIELDS.values()])
        parts = {name: rows[:, edges[n] : edges[n + 1]] for n, name in enumerate(_FIELDS)}
        self.at = at
        self.hash = np.ascontiguousarray(parts["hash"]).view(np.uint64)[:, 0]
        self.colours = parts["colours"].astype(np.int16)
        self.contrast, self.brightest = parts["contrast"][:, 0], parts["brightest"][:, 0]
        self.change = parts["change"][:, 0].copy()
        self.change[:1] = 0
        self.bars = parts["bars"]


class Viewer:
    """Receives every decoded frame of a file once, in order, from
    :func:`stages.ingest.curation.watching.validate_watched`.

    Args:
        rate: frames per second.
        frames: number of frames expected.
    """

    def __init__(self, rate: Fraction, frames: int) -> None:
        # Imports OpenCV, which only those need who look.
        from scenedetect import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector, ContentDetector

        self._step = max(1, min(round(EVERY_S * rate), frames // AT_LEAST))
        self._start = FrameTimecode(0, rate)
        shortest = max(1, round(SHORTEST_SHOT_S * rate))
        self._detector = AdaptiveDetector(
            CUT_RATIO, shortest, min_content_val=CUT_CHANGE, weights=ContentDetector.Components(*CUT_WEIGHTS)
        )
        self._seen = 0
        self._cuts: list[int] = []
        self._rows: list[Bytes] = []
        self._last: npt.NDArray[np.float32] | None = None

    def see(self, frames: Bytes) -> None:
        """Take the next frames, uint8 BGR [n, SMALL_PX, SMALL_PX, 3]."""
        for frame in frames:
            cuts = self._detector.process_frame(self._start + self._seen, frame)
            self._cuts += [int(cut.frame_num) for cut in cuts]
            if self._seen % self._step == 0:
                self._rows.append(self._described(frame.astype(np.float32)))
            self._seen += 1

    @property
    def seen(self) -> int:
        """Number of frames taken so far."""
        return self._seen

    def viewed(self, probe: Probe, skip: int) -> Viewed:
        """Return what was seen. ``skip``: frames that the decoder emits before the first of the
        clip."""
        at = [(n * self._step, row) for n, row in enumerate(self._rows) if n * self._step >= skip]
        # A short clip of which the decoder emits more than a step before its first frame.
        kept = at or [(skip, self._rows[-1])]
        return Viewed(
            shots=tuple(sorted({_slot(cut - skip, probe) for cut in self._cuts if cut > skip} - {0})),
            at=tuple(_slot(number - skip, probe) for number, _ in kept),
            pictures=base64.b64encode(b"".join(row.tobytes() for _, row in kept)).decode("ascii"),
        )

    def _described(self, frame: npt.NDArray[np.float32]) -> Bytes:
        """Numbers on one picture, in the order of :data:`_FIELDS`."""
        grey = frame @ _BRIGHTNESS
        blocks = _means(frame, BLOCKS)
        colours = blocks.reshape(COLOURS, BLOCKS // COLOURS, COLOURS, BLOCKS // COLOURS, 3).mean(axis=(1, 3))
        change = 0.0 if self._last is None else float(np.abs(blocks - self._last).mean(axis=-1).max())
        self._last = blocks
        brightest = np.partition(grey, _HUNDREDTH, axis=None)[_HUNDREDTH]
        numbers = [grey.std(), brightest, math.ceil(change), *_bars(grey > BLACK)]
        rest = np.clip([*colours.reshape(-1), *numbers], 0, 255).astype(np.uint8)
        return np.concatenate([_hash(grey), rest])


#: Weights of blue, green and red in the brightness (ITU-R BT.601).
_BRIGHTNESS = np.array([0.114, 0.587, 0.299], np.float32)
#: Rank of the pixel that one in a hundred exceeds.
_HUNDREDTH = SMALL_PX**2 * 99 // 100


def _means(picture: npt.NDArray[np.float32], cells: int) -> npt.NDArray[np.float32]:
    """Mean of each cell of a grid over a square picture, [cells, cells, …]."""
    side = SMALL_PX // cells
    # Twice over one axis: many times faster than over both at once.
    rows = picture.reshape(cells, side, SMALL_PX, *picture.shape[2:]).mean(axis=1)
    means: npt.NDArray[np.float32] = rows.reshape(cells, cells, side, *picture.shape[2:]).mean(axis=2)
    return means


def _hash(grey: npt.NDArray[np.float32]) -> Bytes:
    """64 bits: each of the 8 x 8 lowest frequencies above their median; the mean's own bit is 0."""
    low = dctn(_means(grey, 32))[:8, :8].reshape(64)
    bits = low > np.median(low[1:])
    bits[0] = False
    return np.packbits(bits)


def _bars(lit: npt.NDArray[np.bool_]) -> list[int]:
    """Number of black lines at the top, bottom, left and right, or :data:`UNKNOWN`."""
    shares = (lit.mean(axis=1), lit.mean(axis=1)[::-1], lit.mean(axis=0), lit.mean(axis=0)[::-1])
    return [_bar(share) for share in shares]


def _bar(share: npt.NDArray[np.float64]) -> int:
    black = share <= SPECKS
    if black.all():
        return UNKNOWN
    width = int(np.argmin(black))
    # The line after a bar is a mixture of both: the one behind it is judged.
    border = share[width : width + 2].max()
    return width if width == 0 or border >= LIT else UNKNOWN


def _slot(number: int, probe: Probe) -> int:
    """First frame of the clip that shows the file's frame of this number, or a later one."""
    if not probe.variable_rate or probe.times is None:
        return min(max(number, 0), probe.slots - 1)
    number = min(max(number, 0), len(probe.times) - 1)
    since = (probe.times[number] - probe.times[0]) * probe.time_base
    return min(max(0, math.ceil(since * probe.rate - Fraction(1, 2))), probe.slots - 1)


#: A block that changes by less in half a second, and a grid that changes by less in a clip, stand
#: still: encoders alone change as much.
STILL = 2
#: Narrowest bar, of 64 lines, and the largest difference between two opposite ones.
NARROWEST, UNEVEN = 3, 1


def flags(pictures: Pictures, length_s: Fraction) -> tuple[str, ...]:
    """Return what is odd about a clip: ``black`` (no picture shows anything), ``static`` (nothing
    moves in a clip of a second or more), ``letterboxed`` (black bars at two opposite sides, all the
    time)."""
    black = bool((pictures.brightest <= BLACK).all())
    moved = np.ptp(pictures.colours, axis=0).max()
    static = length_s >= 1 and int(pictures.change.max()) <= STILL and int(moved) <= STILL
    found = {"black": black, "static": static and not black, "letterboxed": not black and _boxed(pictures.bars)}
    return tuple(name for name, is_so in found.items() if is_so)


def _boxed(bars: Bytes) -> bool:
    widths = []
    for side in bars.T:
        known = side[side != UNKNOWN]
        # Where most pictures are too dark to tell, nothing is said.
        widths.append(int(known.min()) if 2 * len(known) > len(side) else 0)
    pairs = ((widths[0], widths[1]), (widths[2], widths[3]))
    return any(min(pair) >= NARROWEST and abs(pair[0] - pair[1]) <= UNEVEN for pair in pairs)
