"""The last result of ingest, kept beside its journal: an ingest of a folder in which nothing has
changed takes it, instead of reading 100,000 rows and building their clips once more.

It is taken only where all is equal that the result depends on: the parameters, the code and the
libraries, the bytes of the annotations and of the mapping, the name, size and time of every other
file, and the journal. What one listing cannot tell is never taken: remote sources, tars, names
translated by rules, and folders with links, whose files may change elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import stages
from stages.domain.core.records import Clip, Record
from stages.ingest.examination import TRANSIENT
from stages.ingest.examine import kept_at
from stages.ingest.row_files import is_meant, row_name
from stages.lib.annotations.formats import mapping_file, second_tables
from stages.lib.rows.jsonl import RowError, read_record, write_record
from stages.params import Params
from stages.runtime import paths
from stages.runtime.sources.addresses import ROW_SUFFIXES, fault_of_name

#: Libraries that read rows and build clips; those that read videos count as the journal has them.
_LIBRARIES = ("numpy", "pyarrow", "pydantic", "pydantic-core", "PyYAML", "scipy")
#: The record of what is kept; written last, so that without it nothing counts.
_RECORD = "kept.json"


class Outcome(Record):
    """Numbers of an ingest. ``rejects``: by reason; ``warning``: about names that look alike."""

    clips: int
    rejects: dict[str, int]
    warning: str


class Kept(Record):
    """A result of ingest on this machine.

    ``identity``: of what it was made from (:func:`identity`); ``journal``: size and time of the
    journal after it; ``files``: SHA-256 of the files, by name; ``normalised``: paths of re-encoded
    files.
    """

    identity: str
    journal: tuple[int, int]
    files: dict[str, str]
    normalised: tuple[str, ...]
    outcome: Outcome


def identity(params: Params) -> str | None:
    """Digest of what a result of ingest depends on; None if a listing of the source does not tell.

    It is taken before and after an ingest: what changed in between is in neither.
    """
    ingest = params.ingest
    if not ingest.is_plain_folder:
        return None
    named = row_name(ingest)
    row_patterns = [*([] if named is None else [named]), *second_tables(ingest)]
    if any(fault_of_name(pattern) is not None for pattern in row_patterns):
        return None  # rows from outside of the folder
    digest = hashlib.sha256()
    mapping = mapping_file(ingest)
    texts = [params.recipe, str(params.seed), ingest.model_dump_json(), str(Path(ingest.source).resolve())]
    texts += [platform.python_version(), *(f"{name} {version(name)}" for name in _LIBRARIES)]
    texts += [_code(), "" if mapping is None else _content(mapping)]
    digest.update("\0".join(texts).encode("utf-8", "surrogatepass"))
    try:
        for line in _listing(ingest.source, "", row_patterns):
            digest.update(line.encode("utf-8", "surrogateescape"))
    except (_LinkFound, OSError):
        return None  # the ingest itself says what is wrong
    return digest.hexdigest()


class _LinkFound(Exception):
    """The folder has a link."""


def _listing(folder: str, below: str, row_patterns: Sequence[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if entry.is_symlink():
            raise _LinkFound
        name = below + entry.name
        if entry.is_dir():
            yield f"\n{name}/"
            yield from _listing(entry.path, f"{name}/", row_patterns)
            continue
        status = entry.stat(follow_symlinks=False)
        is_rows = PurePosixPath(entry.name).suffix.lower() in ROW_SUFFIXES or any(
            is_meant(name, pattern) for pattern in row_patterns
        )
        state = _content(Path(entry.path)) if is_rows and stat.S_ISREG(status.st_mode) else str(status.st_mtime_ns)
        yield f"\n{name}\0{status.st_mode} {status.st_size} {state}"


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _code() -> str:
    """Digest of all code and mappings of the package, by their bytes: to parse them, as
    :mod:`stages.runtime.code_digest` does, would take longer than all else here."""
    digest = hashlib.sha256()
    for path in sorted(Path(stages.__file__).parent.rglob("*")):
        if path.suffix in (".py", *paths.MAPPING_SUFFIXES):
            digest.update(f"{path}\0{_content(path)}\n".encode())
    return digest.hexdigest()


def take(of: str | None, journal: Path, out: Path) -> Outcome | None:
    """Write the kept result into the folder ``out`` and return its numbers, if it is that of this
    identity; otherwise remove it and return None."""
    folder = kept_at(journal)
    kept = _found(of, journal)
    if kept is not None and all(_is_whole(folder / name, sha256) for name, sha256 in kept.files.items()):
        for name in kept.files:
            _copy(folder / name, out / name)
        for path in kept.normalised:
            _copy(journal.with_suffix("") / path, out / path)
        return kept.outcome
    shutil.rmtree(folder, ignore_errors=True)
    return None


def keep(
    params: Params, before: str | None, journal: Path, files: Collection[Path], clips: Sequence[Clip], outcome: Outcome
) -> None:
    """Keep a result for the next ingest, if that will have the same: nothing has changed meanwhile,
    and no file was rejected for what this machine did at that moment.

    Args:
        before: identity before the ingest.
        files: the result, without re-encoded files.
    """
    passing = not TRANSIENT.isdisjoint(outcome.rejects)
    if before is None or passing or not clips or identity(params) != before:
        return
    folder = kept_at(journal)
    for file in files:
        _copy(file, folder / file.name)
    kept = Kept(
        identity=before,
        journal=_state(journal),
        files={file.name: _content(file) for file in files},
        normalised=tuple(dict.fromkeys(clip.path for clip in clips if clip.normalised)),
        outcome=outcome,
    )
    unfinished = folder / f"{_RECORD}{paths.UNFINISHED}"
    write_record(unfinished, kept)
    unfinished.replace(folder / _RECORD)


def _found(of: str | None, journal: Path) -> Kept | None:
    try:
        kept = read_record(kept_at(journal) / _RECORD, Kept)
        is_same = kept.identity == of and kept.journal == _state(journal)
    except (FileNotFoundError, RowError):
        return None
    there = all((journal.with_suffix("") / path).is_file() for path in kept.normalised)
    return kept if is_same and there else None


def _state(journal: Path) -> tuple[int, int]:
    status = journal.stat()
    return status.st_size, status.st_mtime_ns


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and _content(path) == sha256


def _copy(source: Path, target: Path) -> None:
    """Copy a file whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + paths.UNFINISHED)
    shutil.copyfile(source, unfinished)
    unfinished.replace(target)
