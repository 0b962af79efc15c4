"""The errors of the program: one tree. Each carries the field that is wrong, the problem with its
value, and the remedy. Other exceptions are defects and print a traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from copy import copy
from typing import NamedTuple, Self


class Fault(NamedTuple):
    """Result of a check whose caller knows the field: the problem, and the remedy."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


class VidbridgeError(Exception):
    """A failure that the user can act on. Its text is ``FIELD: PROBLEM; REMEDY``, and a line for
    each of ``others``.

    Attributes:
        field: what is wrong: an option, a key, a variable, a file, a row, a model, a server.
        problem: its value, and what is wrong with it.
        remedy: what to do; empty only where an outside program's own text says it.
        others: errors found together with this one.
        status: exit status of the command (1: failure, 2: wrong usage).
    """

    status = 1

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        # All parts go to the base class, so that the error can be pickled out of a process.
        super().__init__(field, problem, remedy)
        self.field = field
        self.problem = problem
        self.remedy = remedy
        self.others: tuple[VidbridgeError, ...] = ()

    def __str__(self) -> str:
        own = f"{self.field}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")
        return "\n".join([own, *map(str, self.others)])

    def each(self) -> tuple[str, ...]:
        """The texts of this error and of those found together with it."""
        alone = copy(self)
        alone.others = ()
        return (str(alone), *map(str, self.others))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @classmethod
    def from_error(
        cls,
        error: VidbridgeError,
        *,
        field: str | None = None,
        within: str | None = None,
        remedy: str | None = None,
    ) -> Self:
        """The same failure as an error of this class.

        Args:
            field: name of the field at this place, where it differs from ``error.field``.
            within: what the field belongs to; it becomes the field, and the field part of the
                problem.
            remedy: what to do at this place, instead of ``error.remedy``.
        """
        name, problem = error.field if field is None else field, error.problem
        if within is not None:
            name, problem = within, f"{name}: {problem}"
        same = cls(name, problem, error.remedy if remedy is None else remedy)
        same.others = error.others
        return same

    @classmethod
    def joined(cls, errors: Iterable[VidbridgeError]) -> Self:
        """One error of this class for several that were found together (at least one)."""
        first, *others = errors
        whole = cls.from_error(first)
        whole.others = (*first.others, *others)
        return whole


class InputError(VidbridgeError):
    """Something that the user wrote or passed is invalid: parameters, options, rows,
    annotations."""


class EndpointError(VidbridgeError):
    """An endpoint of a model (judge, writer, model under test) cannot be used, or did not
    answer."""


class MachineError(VidbridgeError):
    """This machine or its environment lacks something: a program, a process, memory, a folder."""


class Terminated(SystemExit):
    """SIGTERM as an exception, so that runs are closed as KILLED and resources are released; the
    process exits with 143."""


#: Description and remedy of system errors about files, folders and disks. Other system errors are
#: defects.
_FAULTS = {
    errno.EACCES: Fault("is not permitted", "change its permissions (chmod, chown), or name another path"),
    errno.EPERM: Fault("is not permitted", "change its permissions (chmod, chown), or name another path"),
    errno.EROFS: Fault("is on a read-only file system", "name another path, or mount it writable"),
    errno.EFBIG: Fault("is larger than this file system or your limits allow (ulimit -f)", "name another path"),
    errno.EISDIR: Fault("is a folder, and a file is needed", "name a file"),
    errno.ENOTDIR: Fault("passes through a file as if that were a folder", "correct the path"),
    errno.ENOENT: Fault("does not exist", "correct the path, or create it"),
    errno.EEXIST: Fault("exists already, as something else", "name another path, or move it away"),
    errno.ENOTEMPTY: Fault("is not empty", "name another path, or empty it"),
    errno.ENAMETOOLONG: Fault("is too long a name for this file system", "name a shorter one"),
    errno.ELOOP: Fault("consists of links that lead in a circle", "correct them"),
    errno.EXDEV: Fault("cannot be moved to another file system", "name a path on the same one"),
    errno.EMFILE: Fault("cannot be opened: this process has too many files open", "raise the limit (ulimit -n)"),
    errno.ENFILE: Fault("cannot be opened: this machine has too many files open", "close some"),
    errno.EIO: Fault("cannot be read or written: the device reports an error", "look at it (dmesg)"),
    errno.ESTALE: Fault("was lost by the network file system", "mount it again"),
}
#: Errors of writing into an open file, which do not name the file.
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your quota of the disk is used up"}


def fault_of(error: OSError) -> Fault | None:
    """Describe an error of the file system, and its remedy; the problem names the path. None for
    other errors."""
    # os.rename names the old path and the new one: either may be the cause.
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    if error.errno in _FULL:
        location = f" ({names})" if names else ""
        return Fault(f"{_FULL[error.errno]}{location}", "free some space and start again: what was done stays done")
    known = _FAULTS.get(error.errno or 0)
    return Fault(f"{names} {known.problem}", known.remedy) if known and names else None
