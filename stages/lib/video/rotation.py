"""Check of a file for a rotation, by its container and its track headers."""

from __future__ import annotations

import re
from pathlib import Path

#: Containers that cannot store a rotation.
NEVER_TURNED = frozenset(("mpegts", "mpeg", "avi", "flv", "asf", "ogg", "gif", "h264", "hevc"))
#: Identity matrix of a track header (ISO/IEC 14496-12, 8.3.2), and its offset behind the box's
#: type, by version.
_IDENTITY = b"".join(number.to_bytes(4, "big") for number in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
_MATRIX_AT = {0: 44, 1: 56}


def says_upright(path: Path) -> bool:
    """True if this is an MP4 file and no track header has a rotation; False if that cannot be
    determined."""
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"moov":
                return _all_upright(file.read(size - 8))
            if size == 1:
                size = int.from_bytes(file.read(8), "big") - 8
            if size < 8:
                return False
            file.seek(size - 8, 1)
    return False


def _all_upright(moov: bytes) -> bool:
    headers = list(re.finditer(b"tkhd", moov))
    for header in headers:
        at = header.start() + _MATRIX_AT.get(moov[header.end()], 0) if header.end() < len(moov) else 0
        if moov[at : at + len(_IDENTITY)] != _IDENTITY:
            return False
    return bool(headers)
