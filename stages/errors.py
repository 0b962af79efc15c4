"""Base of all errors whose message is enough for the user: field, value, remedy. Other exceptions
are defects and print a traceback."""

from __future__ import annotations

import errno


class VidbridgeError(Exception):
    """A failure that the user can act on; ``status`` is the exit status of the command (1: failure,
    2: wrong usage)."""

    status = 1


class Terminated(SystemExit):
    """SIGTERM as an exception, so that runs are closed as KILLED and resources are released; the
    process exits with 143."""


#: Description and remedy of system errors about files, folders and disks. Other system errors are
#: defects.
_REMEDIES = {
    errno.EACCES: "is not permitted; change its permissions (chmod, chown), or name another path",
    errno.EPERM: "is not permitted; change its permissions (chmod, chown), or name another path",
    errno.EROFS: "is on a read-only file system; name another path, or mount it writable",
    errno.EFBIG: "is larger than this file system or your limits allow (ulimit -f); name another path",
    errno.EISDIR: "is a folder, and a file is needed; name a file",
    errno.ENOTDIR: "passes through a file as if that were a folder; correct the path",
    errno.ENOENT: "does not exist; correct the path, or create it",
    errno.EEXIST: "exists already, as something else; name another path, or move it away",
    errno.ENOTEMPTY: "is not empty; name another path, or empty it",
    errno.ENAMETOOLONG: "is too long a name for this file system; name a shorter one",
    errno.ELOOP: "consists of links that lead in a circle; correct them",
    errno.EXDEV: "cannot be moved to another file system; name a path on the same one",
    errno.EMFILE: "cannot be opened: this process has too many files open; raise the limit (ulimit -n)",
    errno.ENFILE: "cannot be opened: this machine has too many files open; close some",
    errno.EIO: "cannot be read or written: the device reports an error; look at it (dmesg)",
    errno.ESTALE: "was lost by the network file system; mount it again",
}
#: Errors of writing into an open file, which do not name the file.
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your quota of the disk is used up"}


def remedy_of(error: OSError) -> str | None:
    """Describe an error of the file system and its remedy in one sentence that names the path; None
    for other errors."""
    # os.rename names the old path and the new one: either may be the cause.
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    if error.errno in _FULL:
        location = f" ({names})" if names else ""
        return f"{_FULL[error.errno]}{location}; free some space and start again: what was done stays done"
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{names} {remedy}" if remedy and names else None
