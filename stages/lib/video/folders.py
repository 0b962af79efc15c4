"""Frame folders: a video as a directory of numbered pictures, shown at a stated rate.

::

    kitchen/0001/frame_00001.jpg
    kitchen/0001/frame_00002.jpg   …

The number is the last one in a picture's name. Numbers may start anywhere and rise by any constant
step; a missing picture would move all later ones in time, so such a folder is rejected. Files
without the suffix of a picture, and hidden ones, are ignored.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.lib.video.errors import VideoError
from stages.lib.video.pictures import spread
from stages.lib.video.probe import Probe

#: The hazard, and the only one, of a frame folder.
FRAME_FOLDER = "frame-folder"
#: Suffixes of pictures.
PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))
#: Modes of pictures that convert to RGB without a loss that anyone would see.
_MODES = frozenset(("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr"))


def pictures_of(folder: Path) -> list[os.DirEntry[str]]:
    """List the pictures of a folder, by their number.

    Raises:
        VideoError: there is none (``no-frames``), or a number is missing or stands twice
            (``frame-numbers``).
    """
    numbered: list[tuple[int, os.DirEntry[str]]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, dot, suffix = entry.name.rpartition(".")
            if f"{dot}{suffix}".lower() not in PICTURE_SUFFIXES or entry.name.startswith("."):
                continue
            digits = re.findall(r"[0-9]{1,18}", stem)
            if not digits:
                raise VideoError(
                    "frame-numbers", f"{folder.name}: {entry.name} has no number; rename it, or move it away"
                )
            numbered.append((int(digits[-1]), entry))
    if not numbered:
        raise VideoError(
            "no-frames", f"{folder.name}: a folder without a picture ({' '.join(sorted(PICTURE_SUFFIXES))})"
        )
    numbered.sort(key=lambda item: (item[0], item[1].name))
    steps = [(later[0] - earlier[0], earlier[1].name, later[1].name) for earlier, later in pairwise(numbered)]
    step = min((step for step, *_ in steps), default=1)
    for found, earlier_name, later_name in steps:
        if not step:
            doubled = next(step for step in steps if not step[0])
            detail = f"{doubled[1]} and {doubled[2]} have one number; keep one sequence of pictures in a folder"
        elif found != step:
            detail = f"between {earlier_name} and {later_name} pictures are missing; extract them again"
        else:
            continue
        raise VideoError("frame-numbers", f"{folder.name}: {detail}")
    return [entry for _, entry in numbered]


def probe_folder(folder: Path, rate: Fraction | None) -> Probe:
    """Facts about a frame folder; of the pictures only the first one's header is read.

    Raises:
        VideoError: as :func:`pictures_of`; ``no-frame-rate``: ``rate`` is None.
    """
    pictures = pictures_of(folder)
    if rate is None:
        detail = f"{folder.name}: pictures do not tell their rate; state it: rate in the row, or ingest.frame_rate"
        raise VideoError("no-frame-rate", detail)
    first = _opened(folder, pictures[0])
    height, width, _ = first.shape
    with Image.open(pictures[0].path) as picture:
        codec, mode = (picture.format or "").lower(), picture.mode
    return Probe(
        codec=codec,
        pixel_format=mode,
        width=width,
        height=height,
        rate=rate,
        frames=len(pictures),
        duration_s=len(pictures) / rate,
        rotation=0,
        time_base=1 / rate,
        times=None,
        variable_rate=False,
        starts_s=Fraction(0),
        dropped=0,
        hazards=(FRAME_FOLDER,),
    )


def validate_folder(folder: Path, whole: bool) -> None:
    """Decode all pictures of a folder, or only a few (:func:`~stages.lib.video.pictures.spread`).

    Raises:
        VideoError: one does not decode or has another size than the first (``damaged``).
    """
    pictures = pictures_of(folder)
    numbers = range(len(pictures)) if whole else spread(len(pictures))
    size: tuple[int, ...] | None = None
    for number in numbers:
        size = _opened(folder, pictures[number], size).shape


def read_folder(
    folder: Path,
    indices: Sequence[int],
    frames: int,
    keep: Callable[[int, npt.NDArray[np.uint8]], None],
    size: tuple[int, int],
) -> None:
    """Decode the pictures ``indices`` (numbers in order) and pass each to ``keep``.

    Args:
        frames: number of pictures that the folder must have.
        size: height and width that each must have.

    Raises:
        VideoError: the folder is not the expected one, or a picture does not decode.
    """
    pictures = pictures_of(folder)
    if len(pictures) != frames:
        raise VideoError("damaged", f"{folder.name}: {len(pictures)} pictures, {frames} were expected")
    for index in sorted(set(indices)):
        keep(index, _opened(folder, pictures[index], (*size, 3)))


def pictures_in(folder: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """Decode all pictures of a folder in their order, one at a time.

    Raises:
        VideoError: as :func:`validate_folder`.
    """
    size: tuple[int, ...] | None = None
    for entry in pictures_of(folder):
        pixels = _opened(folder, entry, size)
        size = pixels.shape
        yield pixels


def digest_of(folder: Path) -> str:
    """SHA-256 of the names and contents of all pictures, in their order."""
    digest = hashlib.sha256()
    for entry in pictures_of(folder):
        with open(entry.path, "rb") as file:  # noqa: PTH123
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{entry.name}\0{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def state_of(folder: Path) -> tuple[int, int]:
    """Size of all files in bytes, and the latest modification of one of them or of the folder, in
    nanoseconds."""
    size, latest = 0, folder.stat().st_mtime_ns
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat()
            size, latest = size + status.st_size, max(latest, status.st_mtime_ns)
    return size, latest


def _opened(folder: Path, entry: os.DirEntry[str], size: Collection[int] | None = None) -> npt.NDArray[np.uint8]:
    """Decode one picture, upright, uint8 RGB [height, width, 3]."""
    name = f"{folder.name}/{entry.name}"
    try:
        with Image.open(entry.path) as picture:
            if picture.mode not in _MODES:
                raise VideoError("damaged", f"{name}: its mode {picture.mode} has more than 8 bits; convert it")
            pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    # Pillow raises these for damaged pictures, depending on their format.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError("damaged", f"{name}: {str(error).replace(entry.path, entry.name)}") from error
    if size is not None and pixels.shape != tuple(size):
        height, width, _ = size
        found = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise VideoError("damaged", f"{name}: {found}, the first picture is {width}x{height}; give all one size")
    return pixels
