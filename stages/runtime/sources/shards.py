"""Shards in the layout of WebDataset: a tar of samples, whose members ``KEY.mp4``, ``KEY.json`` and
``KEY.txt`` belong together.

https://github.com/webdataset/webdataset: the key is the member's path up to the first dot of its
last part. Members are data: names stay inside of the folder, links and devices are refused, sizes
are bounded.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from stages.errors import InputError
from stages.runtime.plain import one_line
from stages.runtime.sources.addresses import fault_of_name
from stages.runtime.sources.store import SourceStore, digest

#: Bound on a member with a row or a caption, in bytes, and on the members of a shard.
MOST_TEXT_BYTES, MOST_MEMBERS = 16_000_000, 1_000_000
_TEXTS = (".json", ".txt")
_COPY_BYTES = 2**20
#: Of the format of :class:`Shard` in the store.
_FORMAT = 1


class ShardError(InputError):
    """A tar that cannot be read at all."""


class Video(NamedTuple):
    """A video of a shard: its content, and its size in bytes."""

    sha256: str
    size: int


class Refused(NamedTuple):
    """A member that is not used, and why; ``reason``: a stable slug."""

    member: str
    reason: str
    detail: str


class Shard(NamedTuple):
    """What a tar holds. ``keys``: in the tar's order; ``texts``: of each key, by suffix."""

    keys: tuple[str, ...]
    videos: Mapping[str, Video]
    texts: Mapping[str, Mapping[str, str]]
    refused: tuple[Refused, ...]


def read_shard(path: Path, store: SourceStore, identity: str, suffixes: frozenset[str]) -> Shard:
    """Read a tar, and put its videos into the store; a second call reads what the first one noted.

    Args:
        identity: what changes with the tar's content, such as its hash.
        suffixes: suffixes of videos.

    Raises:
        ShardError: it is not a tar, or cut short.
        SourceAccessError: no room on the disk.
    """
    noted = _note(store, identity, suffixes)
    with store.claim("shard", noted.stem):
        shard = _noted(noted)
        if shard is not None and all(store.find(video.sha256, name) for name, video in shard.videos.items()):
            return shard
        shard = _extracted(path, store, suffixes)
        part = store.scratch() / uuid.uuid4().hex
        part.write_text(json.dumps([_FORMAT, *shard]), encoding="utf-8")
        noted.parent.mkdir(parents=True, exist_ok=True)
        part.replace(noted)
        return shard


def noted_shard(store: SourceStore, identity: str, suffixes: frozenset[str]) -> Shard | None:
    """What a tar holds, as far as an earlier :func:`read_shard` noted it; its videos may be gone
    from the store."""
    return _noted(_note(store, identity, suffixes))


def _note(store: SourceStore, identity: str, suffixes: frozenset[str]) -> Path:
    return store.folder / "shards" / f"{digest('shard', str(_FORMAT), identity, *sorted(suffixes))}.json"


def _noted(path: Path) -> Shard | None:
    with suppress(FileNotFoundError, ValueError):
        _, keys, videos, texts, refused = json.loads(path.read_text(encoding="utf-8"))
        return Shard(
            tuple(keys),
            {name: Video(*video) for name, video in videos.items()},
            texts,
            tuple(Refused(*one) for one in refused),
        )
    return None


def _extracted(path: Path, store: SourceStore, suffixes: frozenset[str]) -> Shard:
    keys: dict[str, None] = {}
    videos: dict[str, Video] = {}
    texts: dict[str, dict[str, str]] = {}
    refused: list[Refused] = []
    seen: set[str] = set()
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                kind = PurePosixPath(name).suffix.lower()
                if kind not in suffixes and kind not in _TEXTS and member.isreg():
                    continue  # other fields of a sample: features, pictures
                problem = _problem(member, name, kind, seen, store)
                if problem is not None:
                    refused.append(problem)
                    continue
                seen.add(name)
                if len(seen) > MOST_MEMBERS:
                    raise ShardError(str(path), f"more than {MOST_MEMBERS:,} members", "split it into several shards")
                content = tar.extractfile(member)
                assert content is not None  # of a regular file
                key = key_of(name)
                if kind in _TEXTS:
                    try:
                        texts.setdefault(key, {})[kind] = content.read().decode("utf-8-sig")
                    except UnicodeDecodeError as error:
                        refused.append(
                            Refused(name, "bad-member", f"not UTF-8 text ({error.reason}); save it as UTF-8")
                        )
                        continue
                else:
                    videos[name] = _stored(content, name, store)
                keys[key] = None
    except (tarfile.TarError, EOFError) as error:
        # The first words: what no compression that was tried has found.
        words = one_line(str(error)).partition(":")[0]
        raise ShardError(
            str(path), f"cannot be read as a tar ({words})", "make it again: tar -cf SHARD.tar FILES"
        ) from error
    return Shard(tuple(keys), videos, texts, tuple(refused))


def _problem(member: tarfile.TarInfo, name: str, kind: str, seen: set[str], store: SourceStore) -> Refused | None:
    # A sparse file of a few bytes may grow to fill the disk.
    if not member.isreg() or member.issparse():
        kinds = ((member.issym() or member.islnk(), "a link"), (member.issparse(), "a sparse file"))
        what = next((words for is_it, words in kinds if is_it), "a device or a pipe")
        return Refused(name, "unsafe-member", f"{name!r} is {what}; put the file itself into the tar")
    if (fault := fault_of_name(name)) is not None:
        return Refused(name, "unsafe-member", f"{fault}; name a file inside it, relative, with forward slashes")
    most = MOST_TEXT_BYTES if kind in _TEXTS else store.most_bytes
    if member.size > most:
        bound = "" if kind in _TEXTS else " (VIDBRIDGE_SOURCE_CACHE_GB)"
        detail = f"{name!r} has {member.size:,} bytes, and {most:,} are the most{bound}; split it, or leave it out"
        return Refused(name, "large-member", detail)
    if name in seen:
        return Refused(name, "repeated-member", f"{name!r} stands twice in the tar, the first one is used; remove one")
    return None


def _stored(content: IO[bytes], name: str, store: SourceStore) -> Video:
    """Copy a member into the store."""
    part = store.scratch() / uuid.uuid4().hex
    hashed, size = hashlib.sha256(), 0
    try:
        with part.open("wb") as file:
            while chunk := content.read(_COPY_BYTES):
                hashed.update(chunk)
                size += file.write(chunk)
        return Video(store.keep(part, name, hashed.hexdigest()), size)
    finally:
        part.unlink(missing_ok=True)


def key_of(name: str) -> str:
    """Key of a member: its path up to the first dot of its last part."""
    path = PurePosixPath(name)
    return (path.parent / path.name.partition(".")[0]).as_posix()
