"""Content that has to stay: a need, its reason, and the objects that it keeps. By hash only.

``dvc gc`` knows only revisions of this clone: no alias, no ledger, no unfetched branch of the
origin, no age. So needs are determined here, from each ref's ``dvc.lock`` and ``.dvc`` files; lists
of folders are read with :mod:`stages.tracking.lineage.listing`, from the cache or straight from the
remote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.runtime.plain import redacted
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.listing import MAX_BYTES, parse_list
from stages.tracking.lineage.uri import TrackingError

WORK_TREE = "present in a work tree (dvc.lock, .dvc files)"
REFS = "in a branch or tag"
ALIASES = "champion, candidate or another alias"
STACK = "an earlier champion, which rollback goes back to"
FOREIGN = "a version of another registered model"
JUDGED = "put to the gate within the last hour"
YOUNG = "younger than --keep-days"
MANIFESTS = "what a version was trained on (its list of clips, for data remove)"
REGISTERED = "a registered version, and the only copy (--versions frees it)"


@dataclass(frozen=True)
class Need:
    """Content that has to stay. ``why``: the reason in the table, shared by many; ``who``: the name
    of the owner.

    ``only``: only that file of these folders; None: all their files.
    """

    why: str
    who: str
    oids: frozenset[str]
    only: str | None = None


class Lists:
    """Lists of folders by hash, read from the cache, else from the remote; a list from the remote
    is not written into the cache."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._known: dict[str, dict[str, str] | None] = {}

    def files(self, oid: str) -> dict[str, str] | None:
        """Path to hash; None: neither cache nor remote has the list, so the folder cannot be
        assembled any more.

        Raises:
            TrackingError: the remote does not answer, or the list is damaged.
        """
        if oid not in self._known:
            text = self._bytes(oid)
            self._known[oid] = None if text is None else parse_list(text, oid, "")
        return self._known[oid]

    def expand(self, need: Need) -> Iterator[str]:
        """Iterate over every object that a need keeps."""
        for oid in need.oids:
            yield oid
            if oid.endswith(".dir") and (files := self.files(oid)) is not None:
                yield from (
                    files.values() if need.only is None else [md5 for path, md5 in files.items() if path == need.only]
                )

    def _bytes(self, oid: str) -> bytes | None:
        here = Path(self._content.cache.oid_to_path(oid))
        try:
            text = here.read_bytes()
        except FileNotFoundError:
            return self._remote_bytes(oid)
        return text if _is(text, oid) else self._remote_bytes(oid)

    def _remote_bytes(self, oid: str) -> bytes | None:
        remote = self._content.remote()
        if remote is None:
            return None
        path = remote.oid_to_path(oid)
        try:
            size = remote.fs.size(path)
            if size is not None and size > MAX_BYTES:
                raise TrackingError(
                    "DVC remote", f"{path}: has {size:,} bytes, more than any list of ours", "remove it there"
                )
            text = bytes(remote.fs.cat_file(path))
        except FileNotFoundError:
            return None
        except Exception as error:  # the type depends on the remote's library
            if isinstance(error, TrackingError):
                raise
            raise TrackingError(
                "DVC remote",
                f"{redacted(str(error))}; what {oid} holds is unknown, so nothing is freed",
                "try again when it answers",
            ) from error
        return text if _is(text, oid) else None


def _is(text: bytes, oid: str) -> bool:
    return hashlib.md5(text, usedforsecurity=False).hexdigest() == oid.removesuffix(".dir")
