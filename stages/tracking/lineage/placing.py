"""Put files into a folder safely: links are not followed, and existing files are replaced, not
written into."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from stages.tracking.lineage.listing import path_fault
from stages.tracking.lineage.uri import TrackingError

#: Suffixes of weights, which are linked from the cache: they are large, and are not edited in
#: place. Everything else is copied: people edit configurations, and other programs (MLflow)
#: overwrite existing files, which through a link would damage the cache.
LINKED = ".safetensors"
LINK_BYTES = 1 << 20


def put_file(folder: Path, path: str, source: Path) -> None:
    """Put the file ``source`` to ``path`` below ``folder``; large weights as a hard link where the
    file system allows it.

    Raises:
        TrackingError: the path leaves ``folder``, by itself or through an existing link, or a
            folder is in its place.
    """
    target = _target(folder, path)
    if path.endswith(LINKED) and source.stat().st_size >= LINK_BYTES:
        try:
            os.link(source, target)
        except OSError:
            pass  # Another file system, or one without links: copied below.
        else:
            return
    # "x": the old file was just removed; a link or file created since must not be written to.
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def put_bytes(folder: Path, path: str, content: bytes) -> None:
    """Write ``content`` to ``path`` below ``folder``, as `put_file` does."""
    with _target(folder, path).open("xb") as writer:
        writer.write(content)


def refuse_links(root: Path, folder: Path) -> None:
    """Refuse a link among the folders from ``root`` (itself not checked) down to ``folder``, which
    need not exist yet.

    Raises:
        TrackingError: one of them is a link, or a file.
    """
    here = root
    for part in folder.relative_to(root).parts:
        here /= part
        try:
            mode = here.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "a file"
            raise TrackingError(
                str(here), f"is {kind} where a folder is to be, and could lead anywhere", "remove it and try again"
            )


def holds(folder: Path, files: Mapping[str, str]) -> bool:
    """Return whether ``folder`` holds exactly these files (path to MD5), as regular files.

    Linked weights are not hashed again: they take minutes, belong to the cache, and are data.
    """
    present: set[str] = set()
    try:
        for parent, folders, names in os.walk(folder, onerror=_raise):
            here = Path(parent)
            if any((here / name).is_symlink() for name in folders):
                return False
            for name in names:
                file = here / name
                path = file.relative_to(folder).as_posix()
                if path not in files or not stat.S_ISREG(file.lstat().st_mode):
                    return False
                if not path.endswith(LINKED) and _md5(file) != files[path]:
                    return False
                present.add(path)
    except OSError:
        return False  # Another process is removing it right now.
    return len(present) == len(files)


def _target(folder: Path, path: str) -> Path:
    """Path for a new file below ``folder``: folders above it are created, an existing file is
    removed."""
    if fault := path_fault(path):
        raise TrackingError(str(folder), f"{path!a} {fault}", "nothing was placed there")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path
    for above in reversed(target.parents[: path.count("/")]):
        try:
            above.mkdir()
        except FileExistsError:
            if not stat.S_ISDIR(above.lstat().st_mode):
                raise _in_the_way(above) from None
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise TrackingError(str(target), f"lies outside {folder}", "nothing was placed there")
    try:
        # Removes a link, not its target.
        target.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError) as error:
        if target.is_dir():
            raise _in_the_way(target) from error
        raise
    return target


def _in_the_way(path: Path) -> TrackingError:
    kind = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "a file"
    return TrackingError(
        str(path), f"{kind} is in the way of what is to be placed there", "remove it, or name an empty folder"
    )


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _raise(error: OSError) -> None:
    raise error
