"""The list of a folder's files, as DVC stores it under the folder's hash: ``[{"md5": …, "relpath":
"final/config.json"}, …]``.

The hash proves that these are the bytes that were named. The name comes from a registry, a
``dvc.lock`` or a remote that others write to, so a list is untrusted input: every path is checked
before any file of it is placed or fetched.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterable

from stages.tracking.lineage.uri import TrackingError

#: Largest list in bytes, about two million files. It is read into memory whole.
MAX_BYTES = 256 << 20
#: Limits of file systems on one name, and on a path (4,096 bytes) less the folder it is placed in.
#: In bytes of UTF-8.
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 2048
_MD5 = re.compile(r"[0-9a-f]{32}")
_REMEDY = (
    "nothing of it was placed; unless a file of yours has such a name (rename it), somebody else wrote this list: ask"
    " who can write to the remote, the registry and dvc.lock"
)


class ListError(TrackingError):
    """A list contains an unsafe path, or is not a list."""


def parse_list(text: bytes, oid: str, what: str = "") -> dict[str, str]:
    """Read the list ``oid``: each file's path below the folder and its hash. ``what``: origin of
    the list, for the error.

    Raises:
        ListError: it is not a list, one of its paths could lie outside the folder, or two of them
            conflict.
    """
    name = f"{what}: folder {oid}" if what else f"folder {oid}"
    if len(text) > MAX_BYTES:
        raise too_long(oid, len(text), what)
    try:
        entries = json.loads(text)
    # Brackets nested by the thousand end in a RecursionError.
    except (ValueError, RecursionError) as error:
        raise ListError(name, f"its list of files is not JSON ({type(error).__name__})", _REMEDY) from error
    if not isinstance(entries, list):
        raise ListError(name, f"its list of files is not a list but {type(entries).__name__}", _REMEDY)
    files: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise ListError(name, f"entry {number}: {_short(entry)} is not a file with relpath and md5", f"{_REMEDY}")
        path, md5 = _fit_path(entry.get("relpath"), f"{name}: entry {number}"), entry.get("md5")
        if not isinstance(md5, str) or not _MD5.fullmatch(md5):
            # It becomes a path in the cache: `../../etc/passwd` would be read, and placed under a
            # harmless name.
            raise ListError(
                name, f"entry {number}: {_short(path)}: md5: {_short(md5)} is not 32 hex digits", f"{_REMEDY}"
            )
        if path in files:
            raise ListError(name, f"entry {number}: relpath: {_short(path)} is listed twice", _REMEDY)
        files[path] = md5
    _refuse_conflicts(files, name)
    return files


def check_paths(paths: Iterable[object], name: str) -> None:
    """Check the paths of files that are to be placed below one folder. ``name``: of their list.

    Raises:
        ListError: as `parse_list`.
    """
    checked: set[str] = set()
    for number, entry in enumerate(paths, 1):
        path = _fit_path(entry, f"{name}: entry {number}")
        if path in checked:
            raise ListError(name, f"entry {number}: relpath: {_short(path)} is listed twice", _REMEDY)
        checked.add(path)
    _refuse_conflicts(checked, name)


def _fit_path(path: object, where: str) -> str:
    if not isinstance(path, str):
        raise ListError(where, f"relpath: {_short(path)} is not a path", _REMEDY)
    if fault := path_fault(path):
        raise ListError(where, f"relpath: {_short(path)} {fault}", _REMEDY)
    return path


def _refuse_conflicts(files: Collection[str], name: str) -> None:
    for path in files:
        end = path.find("/")
        while end >= 0:
            if path[:end] in files:
                raise ListError(
                    name,
                    f"relpath: {_short(path[:end])} is a file, and the folder of {_short(path)}",
                    _REMEDY,
                )
            end = path.find("/", end + 1)


def path_fault(path: str) -> str | None:
    """Return why ``path`` may not be placed below a folder, as the end of a sentence; None if it
    may."""
    if path.startswith("/"):
        return "is absolute"
    if "\\" in path:
        return "holds a backslash"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in path):
        return "holds a control character, or half of one"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "may leave its folder (an empty part, '.' or '..')"
    if any(part.casefold() == ".git" for part in parts):
        return "would be a repository's own file, and git runs what those say"
    if len(path.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        return f"is too long ({MAX_NAME_BYTES} bytes a name, {MAX_PATH_BYTES} in all)"
    return None


def is_hash(value: object) -> bool:
    """Return whether DVC could have computed ``value`` for a file or (``.dir``) a folder. DVC takes
    anything else for a path on this machine."""
    return isinstance(value, str) and bool(_MD5.fullmatch(value.removesuffix(".dir")))


def too_long(oid: str, size: int, what: str = "") -> ListError:
    name = f"{what}: folder {oid}" if what else f"folder {oid}"
    return ListError(
        name,
        f"its list of files has {size:,} bytes, {MAX_BYTES:,} are read",
        "keep small files in fewer, larger ones (shards)",
    )


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:80]}...{text[-30:]}"
