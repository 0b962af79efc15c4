"""The base of every error whose message is all a person needs: field, value, remedy. Anything else is a defect and shows its traceback."""

from __future__ import annotations

import errno


class VidbridgeError(Exception):
    """A failure that a person can act upon; ``status`` is what a command ends with (1: it failed, 2: it was asked for wrongly)."""

    status = 1


class Terminated(SystemExit):
    """SIGTERM, as an exception, so that runs are closed as KILLED and resources are let go; it ends the process with 143."""


#: What the system says of a file, a folder or a disk, and what to do about it. Other system errors are defects.
_REMEDIES = {
    errno.EACCES: "is not permitted; give yourself the right to it (chmod, chown), or name another place",
    errno.EPERM: "is not permitted; give yourself the right to it (chmod, chown), or name another place",
    errno.EROFS: "lies in a file system that is read-only; name another place, or mount it writable",
    errno.EFBIG: "is larger than this file system or your limits allow (ulimit -f); name another place",
    errno.EISDIR: "is a folder, and a file is needed; name a file",
    errno.ENOTDIR: "passes through a file as if that were a folder; correct the path",
    errno.ENOENT: "does not exist; correct the path, or make it",
    errno.EEXIST: "is there already, as something else; name another place, or move it away",
    errno.ENOTEMPTY: "is not empty; name another place, or empty it",
    errno.ENAMETOOLONG: "is too long a name for this file system; name a shorter one",
    errno.ELOOP: "consists of links that lead in a circle; correct them",
    errno.EXDEV: "cannot be moved to another file system; name a place on the same one",
    errno.EMFILE: "cannot be opened: this process has too many files open; raise the limit (ulimit -n)",
    errno.ENFILE: "cannot be opened: this machine has too many files open; close some",
    errno.EIO: "cannot be read or written: the device reports an error; look at it (dmesg)",
    errno.ESTALE: "was lost by the network file system; mount it again",
}
#: Writing into an open file names no file.
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your quota of the disk is used up"}


def remedy_of(error: OSError) -> str | None:
    """What a person does about an error of the file system, in one sentence that names the path; None: it is no such error."""
    # os.rename names the old place and the new one: the trouble may be in either.
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    if error.errno in _FULL:
        place = f" ({names})" if names else ""
        return f"{_FULL[error.errno]}{place}; free some space and start again: what was done stays done"
    said = _REMEDIES.get(error.errno or 0)
    return f"{names} {said}" if said and names else None
