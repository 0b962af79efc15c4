"""Addresses of sources: a folder or file of this machine, or ``s3://``, ``gs://``, ``https://``.

An address holds no key: it stands in ``params.yaml``, which is committed.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from stages.errors import Fault

#: Schemes of remote sources.
SCHEMES = ("s3", "gs", "https", "http")
#: Suffixes by which an address that names a file of rows is told from one that names a folder.
ROW_SUFFIXES = frozenset((".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt"))
#: Suffix of shards in the layout of WebDataset.
SHARD_SUFFIX = ".tar"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Place(NamedTuple):
    """A source's folder, and the file in it that the address named; None: it named the folder.

    ``root``: without a slash at its end.
    """

    root: str
    file: str | None


def is_remote(address: str) -> bool:
    """True if the address has a scheme (``s3://…``), supported or not."""
    return _SCHEME.match(address) is not None


def is_web(address: str) -> bool:
    """True for web servers, which list no folder."""
    return address.startswith(("https://", "http://"))


def fault_of_address(address: str) -> Fault | None:
    """Problem and remedy of an address in ``params.yaml``; None if it is one that can be read."""
    if not is_remote(address):
        return None
    scheme = address.partition("://")[0]
    if scheme not in SCHEMES:
        supported = ", ".join(f"{one}://" for one in SCHEMES)
        return Fault(f"{scheme}:// is not supported", f"name a folder, or one of {supported}")
    parts = urlsplit(address)
    if parts.username is not None or parts.password is not None:
        return Fault("an address must hold no user or password", "put keys into the environment (.env.example)")
    if parts.query or parts.fragment:
        return Fault("an address must hold no query, which often is a key", "name the folder without it")
    if not parts.netloc:
        kind = "bucket" if scheme in ("s3", "gs") else "host"
        return Fault(f"names no {kind}", f"write {scheme}://NAME/FOLDER")
    if ".." in PurePosixPath(parts.path).parts:
        return Fault("an address must hold no '..'", "name the folder itself")
    return None


def fault_of_source(address: str) -> Fault | None:
    """Problem and remedy of an address of annotations: also one whose files nobody lists."""
    if (fault := fault_of_address(address)) is not None:
        return fault
    if is_web(address) and place_of(address).file is None:
        return Fault(
            "a web server lists no folder",
            "name its annotation file, or a list of all its files (https://HOST/FOLDER/index.txt, a name a line)",
        )
    return None


def place_of(address: str) -> Place:
    """Split an address into its folder and the file that it names.

    A file is told by its suffix, of rows or of shards; of this machine, by looking.
    """
    if not is_remote(address):
        path = Path(address).expanduser()
        return Place(str(path.parent), path.name) if path.is_file() else Place(str(path), None)
    head, _, last = address.rstrip("/").rpartition("/")
    suffix = PurePosixPath(last).suffix.lower()
    if not address.endswith("/") and not head.endswith("/") and suffix in {*ROW_SUFFIXES, SHARD_SUFFIX}:
        return Place(head, last)
    return Place(address.rstrip("/"), None)


def fault_of_name(name: str) -> str | None:
    """Reason why a name, which is data, may not be a path below a folder; None if it may."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or is_remote(name):
        return f"{name!r} leaves the folder"
    if any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in path.parts) or len(name) > 2000:
        return f"{name[:80]!r}… is too long for a file name"
    return None
