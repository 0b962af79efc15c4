"""Annotation formats that ingest reads, by their name in ``ingest.format``: formats of code,
mappings that the package brings, and mappings of the project."""

from __future__ import annotations

from pathlib import Path

from stages.lib.annotations import activitynet_captions, coin, jsonl, kinetics, vidbridge_r1
from stages.lib.annotations.annotation import SourceError
from stages.lib.annotations.collect import Format, Source
from stages.lib.annotations.mapping.document import is_path, load, shipped
from stages.lib.annotations.mapping.reader import read_mapped
from stages.params import IngestParams

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (jsonl, coin, kinetics, activitynet_captions, vidbridge_r1)
}


def read_source(params: IngestParams) -> Source:
    """Read the clips of ``ingest.source``, in the format ``ingest.format``, and the rejects.

    Raises:
        SourceError: the format does not exist, or the folder or its annotation file cannot be used
            at all.
        MappingError: the mapping breaks a rule, or names a column that no row has.
    """
    folder = Path(params.source)
    chosen = FORMATS.get(params.format)
    if chosen is not None:
        return chosen.read(folder, params.annotations or chosen.file)
    return read_mapped(folder, params.annotations, _mapping(params.format))


def second_tables(params: IngestParams) -> tuple[str, ...]:
    """List the files, or wildcards, of second tables that a mapping joins to the rows.

    Raises:
        SourceError, MappingError: as :func:`read_source`.
    """
    if params.format in FORMATS:
        return ()
    joins = [join for mapping in load(_mapping(params.format)) for join in mapping.joins.values()]
    return tuple(dict.fromkeys(join.file for join in joins if join.file is not None))


def mapping_file(params: IngestParams) -> Path | None:
    """File of the mapping that is the format; None for a format of code.

    Raises:
        SourceError: the format does not exist.
    """
    return None if params.format in FORMATS else _mapping(params.format)


def _mapping(name: str) -> Path:
    if is_path(name):
        return Path(name)
    if name in shipped():
        return shipped()[name]
    known = ", ".join((*FORMATS, *shipped()))
    raise SourceError(
        "ingest.format", f"{name!r} is not a supported format", f"set one of {known}, or the path of a mapping (.yaml)"
    )
