"""Files of rows of a source: which ones they are, and their copies on this machine."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from stages.lib.annotations.annotation import VIDEO_SUFFIXES, SourceError
from stages.lib.annotations.formats import FORMATS, second_tables
from stages.lib.annotations.links import Links, walk
from stages.params import IngestParams
from stages.runtime.sources.addresses import ROW_SUFFIXES, fault_of_name, is_remote, is_web, place_of
from stages.runtime.sources.failures import access_error
from stages.runtime.sources.remote import RemoteRoot, Version, fetch
from stages.runtime.sources.roots import Roots
from stages.runtime.sources.store import Known, SourceStore


def row_name(params: IngestParams) -> str | None:
    """Name of the file of rows in its folder; None: the format does not say."""
    if params.annotations is not None:
        return params.annotations
    if (file := place_of(params.source).file) is not None and not file.endswith(".tar"):
        # Text that is no format's own file is the list of what a web server has.
        return None if _is_index(file) else file
    known = FORMATS.get(params.format)
    return known.file if known is not None else None


def _is_index(file: str) -> bool:
    return file.endswith(".txt")


def row_files(
    params: IngestParams, roots: Roots, store: SourceStore, listed: Mapping[str, Version] | None
) -> dict[str, Path]:
    """The files of rows, by their names in their folder, fetched where they are remote.

    ``listed``: the objects of the videos' folder, which is the rows' own unless ``ingest.videos``
    is set.
    """
    place, wanted, more = place_of(roots.source), row_name(params), second_tables(params)
    if not is_remote(roots.source):
        folder = Path(place.root)
        if not folder.is_dir():
            raise SourceError("ingest.source", f"{roots.source!r} is not a folder", "name one with the annotations")
        names = _selected(local_names(folder, hidden=False), wanted, more)
        _check_rows(_selected(names, wanted, ()), roots, wanted)
        return {name: folder / name for name in names}
    remote = RemoteRoot(place.root, "ingest.source")
    if is_web(place.root):
        names = _web_rows(remote, place.file, wanted, more, params, store)
        versions = remote.versions(names)
        if place.file is not None and _is_index(place.file) and (gone := [one for one in names if one not in versions]):
            problem = f"{roots.source} lists {gone[0]}, and the server has no such file"
            raise SourceError("ingest.source", problem, "put it there, or take it out of the list")
    else:
        if roots.videos is not None or listed is None:
            listed = remote.listing()
        versions = {name: listed[name] for name in _selected(listed, wanted, more)}
    _check_rows(_selected(versions, wanted, ()), roots, wanted)
    here = fetch(remote, store, Known(store, remote.address), versions, "fetch annotations", quiet=True)
    rows = {}
    for name, found in here.items():
        if not isinstance(found, str):
            raise access_error(remote.field, f"{remote.address}/{name}", FileNotFoundError())
        rows[name] = store.found(found, name)
    return rows


def _web_rows(
    remote: RemoteRoot,
    file: str | None,
    wanted: str | None,
    more: Sequence[str],
    params: IngestParams,
    store: SourceStore,
) -> list[str]:
    """Names of files of rows on a web server, which lists no folder."""
    if file is not None and _is_index(file):
        return _selected(_index(remote, file, store), wanted, more)
    if wanted is not None:
        return [wanted, *more]
    raise SourceError(
        "ingest.source",
        f"{params.source}: a web server lists no folder, and the format names no file",
        "name the annotation file, or a list of all files (…/index.txt, a name a line)",
    )


def _index(remote: RemoteRoot, file: str, store: SourceStore) -> list[str]:
    """Names in the list of files of a web server: one a line, relative to the list's folder."""
    versions = remote.versions([file])
    found = fetch(remote, store, Known(store, remote.address), versions, "fetch list", quiet=True).get(file)
    path = store.find(found, file) if isinstance(found, str) else None
    if path is None:
        raise access_error(remote.field, f"{remote.address}/{file}", FileNotFoundError())
    lines = (line.strip().removeprefix("./") for line in path.read_text(encoding="utf-8-sig").splitlines())
    return [line for line in lines if line and not line.startswith("#") and fault_of_name(line) is None]


def _selected(names: Iterable[str], wanted: str | None, more: Sequence[str]) -> list[str]:
    """Files of rows among all: the named one, those in the named folder or of the named pattern,
    and ``more``; where none is named, all that may be some."""
    if wanted is None:
        return [name for name in names if name in more or PurePosixPath(name).suffix.lower() in ROW_SUFFIXES]
    return [name for name in names if any(is_meant(name, one) for one in (wanted, *more))]


def is_meant(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(wanted.rstrip("/") + "/") or fnmatch(name, wanted)


def _check_rows(names: Iterable[str], roots: Roots, wanted: str | None) -> None:
    if not list(names):
        raise SourceError(
            "ingest.source",
            f"{roots.source!r} has no {wanted or 'file of annotations'}",
            "name its file in ingest.annotations, or correct ingest.source and ingest.format",
        )


def named_in(rows: Mapping[str, Path], roots: Roots, store: SourceStore) -> list[str]:
    """Files that the rows name, or the list of files does, as a web server does not list them."""
    place = place_of(roots.source)
    if roots.videos is None and place.file is not None and _is_index(place.file):
        return _index(RemoteRoot(place.root, roots.field), place.file, store)
    names: dict[str, None] = {}
    for name, path in rows.items():
        for text in _strings(name, path):
            file = roots.names.file_of(text) if text.startswith(roots.names.strip) else ""
            if (
                PurePosixPath(file).suffix.lower() in VIDEO_SUFFIXES
                and fault_of_name(file) is None
                and "\n" not in file
            ):
                names[file] = None
    if not names:
        raise SourceError(
            roots.field,
            f"{roots.folder}: a web server lists no folder, and no row names a file with the suffix of a video",
            "put a list of all files there (a name a line) and set ingest.source: …/index.txt, or ingest.names",
        )
    return list(names)


def _strings(name: str, path: Path) -> Iterator[str]:
    """Every text in a file of rows, whatever its shape."""
    kind = PurePosixPath(name).suffix.lower()
    if kind in (".csv", ".tsv"):
        text = io.StringIO(path.read_text(encoding="utf-8-sig", errors="replace"))
        for cells in csv.reader(text, delimiter="\t" if kind == ".tsv" else ","):
            yield from cells
    elif kind in (".json", ".jsonl", ".ndjson"):
        text_ = path.read_text(encoding="utf-8-sig", errors="replace")
        try:
            yield from _texts(json.loads(text_))
        except (ValueError, RecursionError):
            for line in text_.split("\n"):
                with suppress(ValueError, RecursionError):  # the reader rejects it, with its reason
                    yield from _texts(json.loads(line))


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one


def local_names(folder: Path, hidden: bool = True) -> Iterator[str]:
    """Names of the files below a folder, less those of links that lead out of it."""
    links = Links(folder)
    for name in walk(folder):
        if not hidden and (name.startswith(".") or "/." in name):
            continue
        with suppress(OSError, RuntimeError, ValueError):  # a link that leads nowhere
            if not links.lead_out(folder / name):
                yield name
