"""Rows of Parquet files and of folders that Hugging Face ``datasets`` has saved, a batch in memory
at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.lib.annotations.annotation import SourceError

_ROWS_AT_ONCE = 1024


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a Parquet file.

    Raises:
        SourceError: it is no Parquet file.
    """
    # Loads some 30 MB of libraries.
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise SourceError(str(path), f"no Parquet file: {error}", "download it again") from error


def dataset_folder(folder: Path) -> list[tuple[str | None, Path]]:
    """List the Arrow files of a folder that ``datasets`` has saved, each with its split, in order.

    Raises:
        SourceError: it is no such folder.
    """
    splits: list[tuple[str | None, Path]] = [(None, folder)]
    index = folder / "dataset_dict.json"
    if index.is_file():
        splits = [(name, folder / name) for name in _read(index, "splits")]
    files: list[tuple[str | None, Path]] = []
    for split, below in splits:
        state = below / "state.json"
        if not state.is_file():
            raise SourceError(
                str(below),
                "no folder of `datasets` (it has no state.json)",
                "name one that save_to_disk wrote, or a .parquet file of it",
            )
        files += [(split, below / str(entry["filename"])) for entry in _read(state, "_data_files")]
    return files


def _read(file: Path, key: str) -> list[Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))[key]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(str(file), f"has no readable {key!r} ({error})", "save the data set again") from error
    if not isinstance(value, list):
        raise SourceError(str(file), f"{key!r} is not a list", "save the data set again")
    return value


def arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of an Arrow file, mapped into memory.

    Raises:
        SourceError: it is missing, or no Arrow file.
    """
    from pyarrow import ArrowException, ipc, memory_map

    try:
        with memory_map(str(path)) as source, ipc.open_stream(source) as batches:
            for batch in batches:
                for first in range(0, batch.num_rows, _ROWS_AT_ONCE):
                    yield from batch.slice(first, _ROWS_AT_ONCE).to_pylist()
    except (ArrowException, OSError) as error:
        raise SourceError(str(path), f"no Arrow stream: {error}", "save the data set again") from error
