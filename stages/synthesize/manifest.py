"""Random access to the manifest that ingest writes, without loading all its clips into memory."""

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

#: Number of parsed clips that are cached, since neighbouring clips request the same partners.
REMEMBERED = 4096


def write_index(manifest: Path, index: Path) -> int:
    """Write the start, split and hash-ring position of each row to a file that processes
    memory-map.

    Returns:
        Number of clips.

    Raises:
        RowError: a row is not a clip; the message names its line.
    """
    rows: list[tuple[int, int, int]] = []
    offset = 0
    with manifest.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                rows.append((offset, SPLITS.index(row["split"]), ring_point(row["clip_id"])))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise RowError(
                    f"{manifest}:{number}", f"not a clip ({error})", "it is damaged: dvc repro --force ingest"
                ) from error
            offset += len(line)
    np.save(index, np.array([*rows, (offset, -1, 0)], dtype=np.int64))
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
        """Read the clip of this id.

        Raises:
            KeyError: no clip has this id.
        """
        for number in np.flatnonzero(self._index[:-1, 2] == ring_point(clip_id)):
            if (clip := self.clip(int(number))).clip_id == clip_id:
                return clip
        raise KeyError(clip_id)

    def clips(self, start: int, stop: int) -> Iterator[Clip]:
        for number in range(start, stop):
            yield self.clip(number)

    def ring(self, split: Split) -> Ring:
        """Hash ring of a split's clips, among which MixVidQA looks for partners."""
        numbers = self._numbers(split)
        return Ring(self._index[numbers, 2], lambda position: self._partner(int(numbers[position])))

    def shuffled(self, split: Split) -> Iterator[Clip]:
        """Yield the clips of a split in the order of their hashes, which is unrelated to file order
        and stays the same with a new clip."""
        numbers = self._numbers(split)
        for number in numbers[np.argsort(self._index[numbers, 2], kind="stable")]:
            yield self.clip(int(number))

    def _numbers(self, split: Split) -> npt.NDArray[np.int64]:
        """Row numbers of a split's clips, in file order."""
        return np.flatnonzero(self._index[:-1, 1] == SPLITS.index(split))

    def _read_partner(self, number: int) -> Partner:
        return as_partner(self.clip(number))
