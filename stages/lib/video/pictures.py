"""Facts that only a decoded picture tells (interlacing, colours), and validation of a file by a few
of its pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stages.lib.video.container import decoded, open_video
from stages.lib.video.errors import VideoError

#: The hazard that a frame holds the lines of two moments.
INTERLACED = "interlaced"
#: The hazard that the colours are of a high dynamic range, which looks pale on an ordinary screen.
HDR = "hdr"
#: Most pictures decoded in a sampled validation.
SAMPLED_PICTURES = 4

# Numbers of ITU-T H.273, which libav uses too.
_UNSPECIFIED = 2
#: Transfer functions of a high dynamic range: PQ (SMPTE ST 2084) and HLG (ARIB STD-B67).
_PQ, _HLG = 16, 18
#: Primaries and matrix of BT.2020, assumed where a file with such a transfer function names none.
_BT2020_PRIMARIES = _BT2020_MATRIX = 9


class Look(NamedTuple):
    """Facts from pictures of a file. ``interlaced``: one of them is. Of the first one's colours:
    ``transfer``, ``primaries``, ``matrix``, as numbers of ITU-T H.273; ``full_range``: black is 0
    instead of 16; ``peak``: its metadata tell the brightest light."""

    interlaced: bool = False
    transfer: int = _UNSPECIFIED
    primaries: int = _UNSPECIFIED
    matrix: int = _UNSPECIFIED
    full_range: bool = False
    peak: bool = False

    @property
    def hdr(self) -> bool:
        return self.transfer in (_PQ, _HLG)

    @property
    def hazards(self) -> tuple[str, ...]:
        return tuple(slug for slug, is_found in ((INTERLACED, self.interlaced), (HDR, self.hdr)) if is_found)


def first_look(path: Path) -> Look:
    """Decode the first complete picture of a file.

    Raises:
        VideoError: not one decodes (``damaged``), or the file cannot be opened.
    """
    with open_video(path) as (container, stream):
        stated = _colours(stream)
        for frame in decoded(container, stream):
            if not frame.is_corrupt:
                return _look(frame, stated)
    raise VideoError("damaged", f"{path.name}: not one frame can be decoded")


def warnings_about(path: Path) -> tuple[str, ...]:
    """Warnings about a file that is read as it is, without what ``ingest.normalise`` mends: by its
    first picture, one sentence each with the file's name."""
    try:
        look = first_look(path)
    except VideoError:
        # Whoever reads the frames is told why they cannot be read; this is about those that can.
        return ()
    remedies = {
        INTERLACED: "its frames hold the lines of two moments, and are shown so; deinterlace it first: ffmpeg -i IN -vf"
        " bwdif=mode=send_frame OUT",
        HDR: "its colours are of a high dynamic range, and look pale; map them to BT.709 first, with zscale and tonemap"
        " of ffmpeg",
    }
    return tuple(f"{path.name}: {remedies[hazard]}" for hazard in look.hazards)


def look_at_samples(path: Path) -> Look | None:
    """Decode the first picture of the first and the last group of pictures, and of two between;
    None if no frame is marked as a key frame.

    Every key frame must decode by itself, which it does not with periodic intra refresh.

    Raises:
        VideoError: one does not decode (``damaged``), or the file cannot be opened.
    """
    with open_video(path) as (container, stream):
        stated = _colours(stream)
        keys = sum(_is_shown_key(packet) for packet in container.demux(stream))
    looks: list[Look] = []
    for number, frames in _decoded_keys(path, spread(keys)):
        if not frames or any(frame.is_corrupt for frame in frames):
            raise VideoError("damaged", f"{path.name}: the picture of key frame {number} of {keys} does not decode")
        looks.append(_look(frames[0], stated))
    return looks[0]._replace(interlaced=any(look.interlaced for look in looks)) if looks else None


def spread(count: int) -> tuple[int, ...]:
    """Choose at most :data:`SAMPLED_PICTURES` of ``count`` numbers, the first and the last among
    them."""
    last = SAMPLED_PICTURES - 1
    return tuple(sorted({step * (count - 1) // last for step in range(SAMPLED_PICTURES)})) if count else ()


def _is_shown_key(packet: Any) -> bool:
    # A decoder gives no picture of a frame that the edit list leaves out.
    return bool(packet.size and packet.is_keyframe and not packet.is_discard)


def _decoded_keys(path: Path, numbers: Collection[int]) -> Iterator[tuple[int, list[Any]]]:
    """Decode the key frames of these numbers, each by itself: number and pictures."""
    with open_video(path) as (container, stream):
        context, number = stream.codec_context, -1
        for packet in container.demux(stream):
            if not _is_shown_key(packet):
                continue
            number += 1
            if number in numbers:
                yield number, [*packet.decode(), *context.decode(None)]
                context.flush_buffers()
            if number >= max(numbers):
                return


def _colours(stream: Any) -> tuple[int, int, int]:
    """Transfer, primaries and matrix that the container states; once a frame is decoded, the
    context has the stream's instead."""
    context = stream.codec_context
    return int(context.color_trc), int(context.color_primaries), int(context.colorspace)


def _look(frame: Any, stated: tuple[int, int, int]) -> Look:
    # The container's word overrides the stream's (ISO/IEC 14496-12, 12.1.5).
    transfer, primaries, matrix = (
        outer if outer not in (0, _UNSPECIFIED) else int(inner)
        for outer, inner in zip(stated, (frame.color_trc, frame.color_primaries, frame.colorspace), strict=True)
    )
    if transfer in (_PQ, _HLG):
        primaries = _BT2020_PRIMARIES if primaries == _UNSPECIFIED else primaries
        matrix = _BT2020_MATRIX if matrix == _UNSPECIFIED else matrix
    kinds = {data.type.name for data in frame.side_data}
    return Look(
        interlaced=bool(frame.interlaced_frame),
        transfer=transfer,
        primaries=primaries,
        matrix=matrix,
        full_range=int(frame.color_range) == 2,
        peak=not kinds.isdisjoint(("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")),
    )
