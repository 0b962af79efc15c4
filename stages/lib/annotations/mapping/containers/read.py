"""Reading of the rows of one or several files, whatever contains them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.lib.annotations.annotation import SourceError, read_text
from stages.lib.annotations.jsonl import json_lines, read_lines
from stages.lib.annotations.mapping.columns import steps
from stages.lib.annotations.mapping.containers.columnar import arrow_rows, dataset_folder, parquet_rows
from stages.lib.annotations.mapping.containers.documents import elements
from stages.lib.annotations.mapping.containers.raw import BY_SUFFIX, Kind, Raw
from stages.lib.annotations.mapping.containers.tables import line_rows, table_rows
from stages.lib.annotations.mapping.schema import Join, Mapping

#: Characters of a name that stands for several files.
_WILD = frozenset("*?[")


@dataclass(frozen=True)
class Container:
    """How a file holds its rows.

    ``kind``: None: by the suffix of its name; ``path``: fields of a JSON document that lead to its
    list of rows; ``columns``: names of the columns of a table without header; ``separator``: None:
    the one of its kind.
    """

    kind: Kind | None = None
    path: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    separator: str | None = None


def container_of(table: Mapping | Join) -> Container:
    """How a mapping, or a second table of one, says that its files hold rows."""
    path = () if table.rows is None else tuple(step.name for step in steps(table.rows)[0])
    return Container(table.container, path, table.columns, table.separator)


def file_names(folder: Path, name: str) -> list[str]:
    """List the files that ``name`` stands for, relative to the folder: itself, or those that its
    wildcards match, in order.

    Raises:
        SourceError: the folder or the file does not exist, or the wildcards match nothing.
    """
    if not folder.is_dir():
        raise SourceError("ingest.source", f"{str(folder)!r} is not a folder", f"name one with videos and {name}")
    if not _WILD & set(name) or (folder / name).exists():
        if not (folder / name).exists():
            raise SourceError(
                "ingest.source",
                f"{str(folder)!r} has no {name}",
                "put the annotations there, or name their file in ingest.annotations",
            )
        return [name]
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise SourceError("ingest.annotations", f"{name!r} leaves the folder", "name files inside it")
    found = sorted(path.relative_to(folder).as_posix() for path in folder.glob(name) if path.is_file())
    if not found:
        raise SourceError(
            "ingest.annotations", f"{name!r} matches no file in {str(folder)!r}", "correct the wildcards in it"
        )
    return found


def raw_rows(folder: Path, name: str, container: Container) -> Iterator[Raw]:
    """Iterate over the rows of one file (or of a folder of ``datasets``), in its order.

    Raises:
        SourceError: it cannot be read as its kind.
    """
    kind = container.kind or ("arrow" if (folder / name).is_dir() else BY_SUFFIX.get(PurePosixPath(name).suffix))
    stem, file = PurePosixPath(name).stem, str(folder / name)
    if kind is None:
        raise SourceError(
            file, "its suffix does not tell what it contains", f"set `container` to {', '.join(BY_SUFFIX.values())}"
        )
    if container.path and kind != "json":
        raise SourceError(
            "rows", f"{'.'.join(container.path)!r}: a container of kind {kind} has no fields", "remove it"
        )
    if kind == "json":
        for line, key, value in elements(_text(folder, name), container.path, file):
            yield Raw(f"{name}:{line}", value, key, stem)
    elif kind == "jsonl":
        lines = read_lines(folder, name, "put the annotations there, or name their file in ingest.annotations")
        for place, (where, _, value) in enumerate(json_lines(lines, name)):
            yield Raw(where, value, place, stem)
    elif kind in ("csv", "tsv"):
        separator = container.separator or ("," if kind == "csv" else "\t")
        rows = table_rows(_text(folder, name), name, file, separator, container.columns)
        for place, (line, row) in enumerate(rows):
            yield Raw(f"{name}:{line}", row, place, stem)
    elif kind == "lines":
        for place, (line, text) in enumerate(line_rows(_text(folder, name))):
            yield Raw(f"{name}:{line}", text, place, stem)
    elif kind == "parquet":
        for place, row in enumerate(parquet_rows(folder / name)):
            yield Raw(f"{name}:row {place + 1}", row, place, stem)
    else:
        yield from _arrow(folder, name, stem)


def _arrow(folder: Path, name: str, stem: str) -> Iterator[Raw]:
    files: Sequence[tuple[str | None, Path]] = [(None, folder / name)]
    if (folder / name).is_dir():
        files = dataset_folder(folder / name)
    place, before = 0, None
    for split, path in files:
        place, before = (place if split == before else 0), split
        at = "/".join(filter(None, [name, split]))
        for row in arrow_rows(path):
            place += 1
            yield Raw(f"{at}:row {place}", row, place - 1, stem, split)


def _text(folder: Path, name: str) -> str:
    return read_text(folder, name, "put the annotations there, or name their file in ingest.annotations")
