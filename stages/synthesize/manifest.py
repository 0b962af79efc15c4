"""The manifest that ingest writes, row by row and by number: nobody has to hold a hundred thousand clips to look one up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.domain.core.records import SPLITS, Clip, Split
from stages.domain.tasks.partners import Partner, Ring, as_partner, ring_point
from stages.lib.rows.jsonl import RowError, parse_row

#: Clips whose row was parsed last, for those that ask for their neighbours again.
REMEMBERED = 4096


def write_index(manifest: Path, index: Path) -> int:
    """Where each row starts, its split, and its place on the hash ring, as a file that processes map instead of holding it.

    Returns:
        How many clips there are.

    Raises:
        RowError: a row is none; the message names its line.
    """
    rows: list[tuple[int, int, int]] = []
    at = 0
    with manifest.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                rows.append((at, SPLITS.index(row["split"]), ring_point(row["clip_id"])))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise RowError(f"{manifest}:{number}: no clip ({error}); it is damaged: dvc repro --force ingest") from error
            at += len(line)
    np.save(index, np.array([*rows, (at, -1, 0)], dtype=np.int64))
    return len(rows)


class Manifest:
    """Random access to the rows of a manifest whose index :func:`write_index` wrote."""

    def __init__(self, manifest: Path, index: Path) -> None:
        self._file = manifest.open("rb")
        self._index: npt.NDArray[np.int64] = np.load(index, mmap_mode="r", allow_pickle=False)
        self._partner = lru_cache(REMEMBERED)(self._read_partner)

    def clip(self, number: int) -> Clip:
        start, stop = int(self._index[number, 0]), int(self._index[number + 1, 0])
        self._file.seek(start)
        return parse_row(self._file.read(stop - start), Clip, f"{self._file.name}:{number + 1}")

    def close(self) -> None:
        self._file.close()

    def named(self, clip_id: str) -> Clip:
        """
        Raises:
            KeyError: no such clip.
        """
        for number in np.flatnonzero(self._index[:-1, 2] == ring_point(clip_id)):
            if (clip := self.clip(int(number))).clip_id == clip_id:
                return clip
        raise KeyError(clip_id)

    def clips(self, start: int, stop: int) -> Iterator[Clip]:
        for number in range(start, stop):
            yield self.clip(number)

    def ring(self, split: Split) -> Ring:
        """The clips of a split as MixVidQA looks for partners among them."""
        numbers = self._of(split)
        return Ring(self._index[numbers, 2], lambda place: self._partner(int(numbers[place])))

    def shuffled(self, split: Split) -> Iterator[Clip]:
        """The clips of a split in an order that has nothing to do with how they were found, and that a new clip does not change."""
        numbers = self._of(split)
        for number in numbers[np.argsort(self._index[numbers, 2], kind="stable")]:
            yield self.clip(int(number))

    def _of(self, split: Split) -> npt.NDArray[np.int64]:
        """The numbers of a split's clips, in the manifest's order."""
        return np.flatnonzero(self._index[:-1, 1] == SPLITS.index(split))

    def _read_partner(self, number: int) -> Partner:
        return as_partner(self.clip(number))
