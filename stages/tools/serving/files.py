"""Open the file that a request names: below one folder, and safe against replacement afterwards.

Between a check of a path and its opening, anyone who may write to the folder can put a link in its
place. So the path is resolved first, and the result is then opened part by part, from a trusted
folder, without following any link: if a part has become one meanwhile, opening fails. The open file
is passed on.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.lib.annotations.links import Links
from stages.tools.serving.limits import FOLDER, MEGABYTES, SHOWN
from stages.tools.serving.refusal import Refused

_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
#: O_NONBLOCK: opening a pipe must not wait for its writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class OpenFile:
    """A file of a request. The caller closes it.

    Attributes:
        descriptor: the open file.
        key: equal for equal files: device and inode, or the hash of its bytes.
        name: its name in messages.
    """

    descriptor: int
    key: tuple[object, ...]
    name: str

    def close(self) -> None:
        os.close(self.descriptor)


def open_named(folder: Path | None, name: str, max_bytes: int) -> OpenFile:
    """Open the file that a request names.

    Raises:
        Refused: the path is absolute, leads out of the folder (through ``..`` or a link), or names
            no file, or one that is too large.
    """
    if folder is None:
        raise Refused(
            400, f"video: this server reads no files; send video_base64, or start it with {FOLDER} set to a folder"
        )
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise Refused(
            400, f"video: {name[:SHOWN]!r} may not leave the server's folder; send a path below it, without '..'"
        )
    no_file = Refused(400, f"video: {name[:SHOWN]!r} is not a file in the server's folder; send the path of one")
    try:
        resolved = (folder / path).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise no_file from error
    # A folder that DVC checked out with links holds links into its cache, which callers see as
    # files. No other link may lead out.
    home = folder if resolved.is_relative_to(folder) else Links(folder).store_of(resolved)
    if home is None:
        raise Refused(
            400,
            f"video: {name[:SHOWN]!r} may not leave the server's folder; send a path below it, not a link that leads"
            " out",
        )
    try:
        descriptor = open_below(home, resolved.relative_to(home).parts)
    except (OSError, ValueError) as error:
        raise no_file from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise no_file
    if status.st_size > max_bytes:
        os.close(descriptor)
        raise Refused(400, too_large("video", status.st_size, max_bytes))
    return OpenFile(descriptor, (status.st_dev, status.st_ino), path.name)


def open_below(folder: Path, parts: tuple[str, ...]) -> int:
    """Open a file by the parts of its path below a trusted folder, none of which may be a link.

    Raises:
        OSError: it does not exist, or a part is a link.
        ValueError: there are no parts.
    """
    if not parts:
        raise ValueError("no parts")
    here = os.open(folder, _DIRECTORY)
    try:
        for part in parts[:-1]:
            # A link is then not a directory, and refused.
            inner = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = inner
        return os.open(parts[-1], _FILE, dir_fd=here)
    finally:
        os.close(here)


def too_large(field: str, size: float, max_bytes: int) -> str:
    """Message for a video that is too large."""
    return (
        f"{field}: {size / (1 << 20):.1f} MB, {max_bytes / (1 << 20):.3g} MB are allowed ({MEGABYTES}); send a smaller"
        " file"
    )
