"""A source as the readers of annotations take it: a folder of this machine with its rows and the
names of its videos, wherever they are.

A plain folder is read in place. Of a bucket, a web server, tars, or rows and videos in two places
only the rows are fetched first; its videos stand in a *view* as empty files of their names. So
every format finds, rejects and lists the same as in a folder. Then the files are fetched that rows
name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from stages.domain.core.records import Reject
from stages.errors import VidbridgeError
from stages.ingest.files import Files, LocalFiles, RemoteFiles, ShardFiles, number
from stages.ingest.row_files import local_names, named_in, row_files, row_name
from stages.ingest.shard_rows import rows_of
from stages.lib.annotations.annotation import VIDEO_SUFFIXES, SourceError
from stages.lib.annotations.collect import Source
from stages.lib.annotations.formats import read_source
from stages.lib.video.folders import PICTURE_SUFFIXES
from stages.params import IngestParams
from stages.runtime.paths import ANNOTATIONS_FILE
from stages.runtime.sources.addresses import fault_of_name, is_remote, is_web, place_of
from stages.runtime.sources.failures import SourceAccessError, access_error
from stages.runtime.sources.remote import RemoteRoot, Version
from stages.runtime.sources.roots import NameRules, Roots
from stages.runtime.sources.shards import Refused, Shard
from stages.runtime.sources.store import SIZE_VARIABLE, SourceStore, digest, open_store
from stages.runtime.sources.videos import ShardFile, shards_at

#: Age at which a view that is not the present one is removed.
_OLD_VIEW_S = 24 * 3600.0


class OpenSource(NamedTuple):
    """A source that was opened.

    ``params``: those of ingest, whose ``source`` is a folder of this machine; ``files``: None for a
    plain folder, whose files are read in place; ``rejects``: of members of tars; ``given``: the
    source as the user named it.
    """

    params: IngestParams
    files: Files | None
    rejects: list[Reject]
    given: str

    def read(self) -> Source:
        """Read the rows, as :func:`~stages.lib.annotations.formats.read_source` does.

        Raises:
            SourceError, MappingError: they cannot be used at all; the text has the source's own
                name, not that of the view.
        """
        with self._in_its_name():
            return read_source(self.params)

    @contextmanager
    def _in_its_name(self) -> Iterator[None]:
        try:
            yield
        except VidbridgeError as error:
            if self.params.source == self.given:
                raise
            raise type(error).joined(self._named(one) for one in (error, *error.others)) from error

    def _named(self, error: VidbridgeError) -> VidbridgeError:
        field, problem, remedy = (
            text.replace(self.params.source, self.given) for text in (error.field, error.problem, error.remedy)
        )
        return type(error)(field, problem, remedy)


def open_source(params: IngestParams) -> OpenSource:
    """Open ``ingest.source``: fetch its rows, and list its videos.

    Raises:
        SourceError: there are no rows.
        SourceAccessError: it cannot be listed or fetched.
    """
    roots = params.roots
    if params.is_plain_folder:
        return OpenSource(params, None, [], params.source)
    store = open_store()
    if roots.local_shards or roots.file is not None:
        return _of_shards(params, roots, store)
    listed: dict[str, Version] | None = None
    if is_remote(roots.folder) and not is_web(roots.folder):
        listed = RemoteRoot(roots.folder, roots.field).listing()
        if roots.in_shards(listed):
            return _of_shards(params, roots, store)
    rows = row_files(params, roots, store, listed)
    if is_remote(roots.folder):
        remote = RemoteRoot(roots.folder, roots.field)
        names = named_in(rows, roots, store) if listed is None else list(listed)
        by_name = dict(_by_name(names, roots.names))
        if listed is None:
            listed = remote.versions(by_name.values())
        videos = {name: listed[file] for name, file in by_name.items() if file in listed}
        shown = list(videos)
        files: Files = RemoteFiles(remote, roots.names, videos, store)
    else:
        names = list(local_names(Path(roots.folder)))
        shown = [name for name, _ in _by_name(names, roots.names)]
        files = LocalFiles(Path(roots.folder), roots.names)
    return OpenSource(
        _viewed(params, store, shown, rows, _picture_folders(names, roots.names)),
        files,
        [],
        place_of(roots.source).root,
    )


def _of_shards(params: IngestParams, roots: Roots, store: SourceStore) -> OpenSource:
    shards: dict[str, Shard] = {}
    files: dict[str, ShardFile] = {}
    for file in shards_at(roots, store):
        if not shards and roots.names != NameRules():
            raise SourceError(
                "ingest.names", "names of members of tars are taken as they are", "set ingest.names: null"
            )
        shards[file.name], files[file.name] = file.read(VIDEO_SUFFIXES), file
    held = sum(video.size for shard in shards.values() for video in shard.videos.values())
    if held > store.most_bytes:
        problem = f"{store.most_bytes / 1e9:g} GB, and the videos of the tars have {held / 1e9:.1f} GB"
        raise SourceAccessError(SIZE_VARIABLE, problem, "raise it: they are unpacked once, into the cache")
    rejects = [_refused(f"{name}/{one.member}", one, 0) for name, shard in shards.items() for one in shard.refused]
    rows: dict[str, Path] = {}
    if roots.videos is None:
        lines = []
        for row in rows_of(shards):
            if isinstance(row, Refused):
                rejects.append(_refused(row.member, row, None))
            else:
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        text = "".join(lines).encode("utf-8", "surrogatepass")
        part = store.scratch() / uuid.uuid4().hex
        part.write_bytes(text)
        found = store.found(store.keep(part, ANNOTATIONS_FILE), ANNOTATIONS_FILE)
        named = row_name(params) or ANNOTATIONS_FILE
        params, rows[named] = params.model_copy(update={"annotations": named}), found
    else:
        rows = row_files(params, roots, store, None)
    videos = {name: (shard, video) for shard, read in reversed(shards.items()) for name, video in read.videos.items()}
    stamps = {name: (video.size, number(video.sha256)) for name, (_, video) in videos.items()}
    where = {name: (files[shard], video.sha256) for name, (shard, video) in videos.items()}
    return OpenSource(
        _viewed(params, store, videos, rows), ShardFiles(stamps, where, store), rejects, place_of(roots.source).root
    )


def _by_name(files: Iterable[str], names: NameRules) -> Iterator[tuple[str, str]]:
    """Names in rows, and the files that they mean."""
    for file in files:
        name = names.name_of(file)
        if name is not None and fault_of_name(name) is None and PurePosixPath(file).suffix.lower() in VIDEO_SUFFIXES:
            yield name, file


def _picture_folders(files: Iterable[str], names: NameRules) -> set[str]:
    """Names in rows of folders that hold pictures."""
    parents = {file.rpartition("/")[0] for file in files if PurePosixPath(file).suffix.lower() in PICTURE_SUFFIXES}
    found = (names.name_of(parent) for parent in parents if parent)
    return {name for name in found if name is not None and fault_of_name(name) is None}


def _viewed(
    params: IngestParams,
    store: SourceStore,
    videos: Collection[str],
    rows: Mapping[str, Path],
    folders: Collection[str] = (),
) -> IngestParams:
    """Make the view: a folder with these rows, an empty file for each video, and empty folders. One
    that was made of the same is taken."""
    contents = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in rows.items()}
    folder = store.folder / "views" / digest(repr(params.roots))
    view = folder / digest(json.dumps([sorted(videos), sorted(contents.items()), sorted(folders)]))
    if not view.is_dir():
        part = folder / f".{uuid.uuid4().hex}"
        part.mkdir(parents=True)
        try:
            _fill(part, videos, rows, folders)
            with suppress(OSError):  # Another process made the same one.
                part.rename(view)
        except OSError as error:
            raise access_error("ingest.source", str(part), error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    os.utime(view)
    for other in folder.iterdir():
        if other != view and time.time() - other.stat().st_mtime > _OLD_VIEW_S:
            shutil.rmtree(other, ignore_errors=True)
    changes = {"source": str(view), "annotations": row_name(params), "videos": None, "names": None}
    return params.model_copy(update=changes)


def _fill(folder: Path, videos: Iterable[str], rows: Mapping[str, Path], folders: Iterable[str]) -> None:
    made = set()
    for name in [*videos, *rows]:
        parent = (folder / name).parent
        if parent not in made:
            parent.mkdir(parents=True, exist_ok=True)
            made.add(parent)
        if name in rows:
            shutil.copyfile(rows[name], folder / name)
        else:
            os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY, 0o644))
    for name in folders:
        with suppress(FileExistsError, NotADirectoryError):  # a bucket may have an object of this name, too
            (folder / name).mkdir(parents=True, exist_ok=True)


def _refused(item: str, refused: Refused, rows: int | None) -> Reject:
    return Reject(item=item, reason=refused.reason, detail=refused.detail, rows=rows)
