"""Facts about a video stream that its packets tell without decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.lib.video.times import TYPED, WITHOUT_TIMES, Packet, PacketIndex, between, index_packets


class PacketScan:
    """Facts collected from the packets of a stream, one after the other."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.packets: list[Packet] = []
        self.parameters_change = self.recovery_points = False
        #: Duration of the packet with the latest time, in the file's units; None if it has none.
        self.last_duration: int | None = None
        self._container, self._codec = container.format.name, stream.codec_context.name
        self._context = stream.codec_context
        self._extradata = bytes(stream.codec_context.extradata or b"")
        self._prefix = _length_bytes(self._codec, self._extradata)
        self._latest: int | None = None
        self._begun = self._between = self._doubtful = False

    def take(self, packet: Any) -> None:
        time, key = packet.pts, packet.is_keyframe
        self.packets.append(Packet(time, packet.dts, key, packet.is_discard))
        # Only key frames: checking every packet takes a third of this method's time, and other
        # packets bring no parameters.
        if key and packet.has_sidedata("new_extradata"):
            self.parameters_change = True
        if key and (kinds := _units(bytes(packet), self._codec, self._extradata)):
            self.parameters_change |= any(kind == "new-parameters" for kind in kinds)
            self.recovery_points |= self._codec == "h264" and "idr" not in kinds
        # Packets before the first key frame may lie between frames that are not in the file.
        self._begun |= key
        late = self._begun and time is not None and (self._latest is None or time > self._latest)
        if late:
            self._latest, self.last_duration = time, packet.duration
        # A bidirectional frame is stored behind the two that it refers to, so its time must precede
        # the later one's; a time behind all contradicts that.
        if self._codec in TYPED and not key and (late or not self._between) and not self._doubtful:
            bidirectional = between(memoryview(packet), self._codec, self._prefix)
            self._between |= bidirectional
            self._doubtful = bidirectional and late

    @property
    def has_times(self) -> bool:
        """True if the container stores presentation times."""
        return WITHOUT_TIMES.isdisjoint(self._container.split(","))

    @property
    def discards(self) -> bool:
        return any(packet.discard for packet in self.packets)

    def index(self) -> PacketIndex:
        reorders = self._between if self._codec in TYPED else None if not self._context.has_b_frames else True
        return index_packets(self.packets, self._container, self._codec, reorders, self._doubtful)

    def starts_amid(self) -> bool:
        """True if frames may be stored before the first that decodes: the first packet is not a key
        frame, or its group has leading frames."""
        if not self.packets or not any(packet.key for packet in self.packets):
            return False
        second = next((at for at, packet in enumerate(self.packets) if at and packet.key), len(self.packets))
        return not self.packets[0].key or leading_frames(self.packets[:second])


def leading_frames(packets: Sequence[Packet]) -> bool:
    """True if a frame is stored after a key frame but presented before it, which marks an open
    GOP."""
    key: int | None = None
    for packet in packets:
        if packet.key:
            key = packet.pts
        elif key is not None and packet.pts is not None and packet.pts < key:
            return True
    return False


def _units(packet: bytes, codec: str, extradata: bytes) -> list[str]:
    """Classify the units of a key frame of an MP4 or Matroska file; empty if its layout is unknown.

    ``new-parameters``: a sequence parameter set that is not in the header, so the stream may change
    its size midway; ``idr``: a picture after which nothing refers to earlier pictures; ``other``.
    Layouts: ISO/IEC 14496-15, avcC and hvcC; types: ITU-T H.264, table 7-1, and H.265, table 7-1.
    """
    prefix = _length_bytes(codec, extradata)
    if not prefix:
        return []
    shift, mask, sps, idr = (0, 0x1F, 7, (5,)) if codec == "h264" else (1, 0x3F, 33, (19, 20))
    kinds = []
    at = 0
    while at + prefix < len(packet):
        size = int.from_bytes(packet[at : at + prefix], "big")
        kind = packet[at + prefix] >> shift & mask
        if kind == sps and packet[at + prefix : at + prefix + size] not in extradata:
            kinds.append("new-parameters")
        else:
            kinds.append("idr" if kind in idr else "other")
        at += prefix + size
    return kinds


def _length_bytes(codec: str, extradata: bytes) -> int:
    """Size in bytes of the length field before each unit, from the header of an MP4 or Matroska
    file; 0 if it has none."""
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        return (extradata[21] & 3) + 1
    return 0
