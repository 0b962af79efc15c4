"""Reading of annotations by a mapping."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stages.lib.annotations.annotation import Found, SourceError
from stages.lib.annotations.collect import Source, usable
from stages.lib.annotations.files import VideoFiles
from stages.lib.annotations.mapping.apply import Mapper
from stages.lib.annotations.mapping.columns import steps
from stages.lib.annotations.mapping.containers.read import container_of, file_names, raw_rows
from stages.lib.annotations.mapping.document import MappingError, chosen, load
from stages.lib.annotations.mapping.joins import Joined
from stages.lib.annotations.mapping.schema import Mapping


def read_mapped(folder: Path, name: str | None, path: Path) -> Source:
    """Read the usable rows of a folder as the mapping in ``path`` says, and the rejects.

    ``name``: file of the annotations, with wildcards for several; None: the one that the mapping
    names.

    Raises:
        SourceError: the annotations or the mapping do not exist; or no row has a column that the
            mapping names, or no row names a file of the folder.
        MappingError: the mapping breaks a rule.
    """
    mapping, name = _choose(folder, name, path)
    joined = Joined(mapping, folder, name)
    files = VideoFiles(folder)
    mapper = Mapper(mapping, folder, files, joined)
    source = usable(_rows(mapper, mapping, folder, name), folder, name)
    _check(mapper, joined, files, path)
    used = mapping.columns_used()
    unused = tuple(column for column in mapper.seen if column not in used)
    return Source(source.rows, [*joined.rejects, *source.rejects], source.read, unused)


def _choose(folder: Path, name: str | None, path: Path) -> tuple[Mapping, str]:
    mappings = load(path)
    if name is not None:
        return chosen(mappings, name, path), name
    for mapping in mappings:
        for pattern in mapping.files:
            if any(folder.glob(pattern)):
                return mapping, pattern
    known = ", ".join(pattern for mapping in mappings for pattern in mapping.files)
    raise SourceError(
        "ingest.annotations",
        f"null, and {str(folder)!r} has none of the files that {path.name} is for ({known or 'it names none'})",
        f"name the file of the annotations, here or as `files` in {path.name}",
    )


def _rows(mapper: Mapper, mapping: Mapping, folder: Path, name: str) -> Iterator[Found]:
    for file in file_names(folder, name):
        for raw in raw_rows(folder, file, container_of(mapping)):
            yield from mapper.rows_of(raw)


def _check(mapper: Mapper, joined: Joined, files: VideoFiles, path: Path) -> None:
    """Refuse a mapping that fits no row: one error instead of a reject for each.

    Raises:
        SourceError: no second table fits.
        MappingError: no row has a column, every row has one that is not mapped, or no row names a
            file.
    """
    for column, count in mapper.lacking.items():
        name = steps(column)[0][0].name
        nowhere = mapper.mapping.each is None and bool(mapper.seen) and name not in mapper.seen
        if (nowhere and not name.startswith("$")) or count >= mapper.rows > 0:
            there = ", ".join(mapper.seen) or "none"
            raise MappingError(
                str(path),
                f"{column}: no row has such a column (there are {there})",
                "correct the name, or put ? behind it if the column may be missing",
            )
    if (error := joined.unmatched()) is not None:
        raise error
    for columns, count in mapper.unmapped.items():
        if count >= mapper.rows > 0:
            raise MappingError(
                str(path),
                f"{columns}: every row has this, and the mapping does not name it",
                "use it, add it to `ignore`, or set `others: ignore`",
            )
    locator = mapper.locator
    if locator.found == 0 and locator.example is not None and len(files):
        raise MappingError(
            str(path),
            f"video: no row names one of the {len(files):,} videos in the folder: the first looks for"
            f" {locator.example!r}, and there is {files.first()!r}",
            "name the folder of its videos, or correct `video` in the mapping (path, find, strip, add)",
        )
