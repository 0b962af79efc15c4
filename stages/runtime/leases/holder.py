"""Owner of a folder, as the files of its leases name it, and the count that it increments."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.runtime.liveness import Identity, parse

#: The subfolder that holds the lease; everything else in the folder belongs to the owner.
FOLDER = "lease"
_BEAT_DIGITS = 20


@dataclass(frozen=True)
class Holder:
    """Owner of a folder.

    Attributes:
        number: number of the lease; each takeover increments it.
        token: unique id of this lease.
        process: the owner; None while the file is being written, or if it cannot be read.
        job: id shared by the processes of one training; empty outside of one.
        after: token of the lease that was taken over; empty: there was none.
        beat_every_s: interval at which the count is incremented.
    """

    number: int
    token: str
    process: Identity | None
    job: str = ""
    after: str = ""
    beat_every_s: float = 0.0

    @property
    def display_name(self) -> str:
        return "a process that is not known yet" if self.process is None else self.process.display_name


def holder(folder: Path) -> Holder | None:
    """Return the present owner of ``folder``, dead or alive; None if there is none."""
    return max(holders(folder), key=lambda lease: lease.number, default=None)


def holders(folder: Path) -> list[Holder]:
    try:
        names = [path.name for path in (folder / FOLDER).iterdir()]
    except FileNotFoundError:
        return []
    leases = (_read(folder, int(name)) for name in names if name.isdecimal())
    return [lease for lease in leases if lease is not None]


def _read(folder: Path, number: int) -> Holder | None:
    """Read the owner of lease ``number``; None: that lease does not exist."""
    try:
        text = lease_file(folder, number).read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return Holder(number, "", None)
    return parse_holder(number, text)


def parse_holder(number: int, text: bytes) -> Holder:
    try:
        row: dict[str, Any] = json.loads(text)
        process = parse(str(row["process"]))
        return Holder(
            number, str(row["token"]), process, str(row["job"]), str(row["after"]), float(row["beat_every_s"])
        )
    except (ValueError, KeyError, TypeError):
        return Holder(number, "", None)  # it is being written


def write_beat(folder: Path, number: int, count: int, *, new: bool = False) -> None:
    # In place and of constant length, so that it works on a full disk.
    with beat_file(folder, number).open("wb" if new else "r+b") as file:
        file.write(str(count).zfill(_BEAT_DIGITS).encode())


def lease_file(folder: Path, number: int) -> Path:
    return folder / FOLDER / str(number)


def beat_file(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"{number}.beat"
