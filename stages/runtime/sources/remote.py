"""Listing and fetching of the objects of a bucket or a web server, through fsspec."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from stages.runtime.sources.addresses import fault_of_name, is_web
from stages.runtime.sources.failures import (
    Changed,
    Gone,
    access_error,
    cause_of,
    is_gone,
    is_silence,
    is_timeout,
    may_pass,
)
from stages.runtime.sources.store import Known, SourceStore, digest

Answer = TypeVar("Answer")

#: Bytes of one request: what a broken connection costs at most.
CHUNK_BYTES = 16 * 2**20
#: Objects fetched at once.
CONNECTIONS = 8
#: Attempts of a request that may succeed a moment later, and the pause before the second.
TRIES, PAUSE_S = 5, 0.5
#: Attempts as long as nothing was heard from a server, which may not exist; one that keeps silent
#: is asked once.
FIRST_TRIES = 2
#: Bounds on a connection that is made, and on a silence in an answer.
CONNECT_S, READ_S = 5.0, 15.0


class Version(NamedTuple):
    """Size in bytes (None: the server does not say) and the tag that changes with the content."""

    size: int | None
    tag: str

    @property
    def text(self) -> str:
        return f"{self.size} {self.tag}"


class RemoteRoot:
    """A folder at a remote address.

    Args:
        address: ``s3://bucket/folder``, ``gs://…`` or ``https://…``, without a slash at its end.
        field: the parameter that names it, for messages.
    """

    def __init__(self, address: str, field: str) -> None:
        self.address, self.field = address, field
        self._fs: Any = None
        self._heard = False

    def __getstate__(self) -> dict[str, str]:
        return {"address": self.address, "field": self.field}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def listing(self) -> dict[str, Version]:
        """Every object below a bucket's folder, by its name in it, in order of the names.

        Raises:
            SourceAccessError: it cannot be listed, or nothing is there.
        """
        path = self._path("").rstrip("/")
        found = self._ask(lambda fs: fs.find(path, detail=True), self.address)
        names = {}
        for full, info in sorted(found.items()):
            name = full.removeprefix(path).lstrip("/")
            # Keys that end with a slash stand for folders, and no file can be named so here.
            if name and not full.endswith("/") and info.get("type") == "file" and fault_of_name(name) is None:
                names[name] = _version(info)
        if not names:
            raise access_error(self.field, self.address, FileNotFoundError())
        return names

    def check(self) -> None:
        """Check that a bucket's folder can be listed, by its first entries.

        Raises:
            SourceAccessError: it cannot, or nothing is there.
        """
        path = self._path("").rstrip("/")
        try:
            self._object(lambda fs: fs.ls(path, detail=False, **self._fresh()), "")
        except Gone as error:
            raise access_error(self.field, self.address, FileNotFoundError()) from error

    def versions(self, names: Iterable[str]) -> dict[str, Version]:
        """The versions of these objects; those that do not exist are left out.

        Raises:
            SourceAccessError: the server does not answer, or refuses.
        """
        wanted = list(names)
        with ThreadPoolExecutor(2 * CONNECTIONS) as pool:
            return {
                name: found for name, found in zip(wanted, pool.map(self._version_of, wanted), strict=True) if found
            }

    def version(self, name: str) -> Version:
        """The present version of one object.

        Raises:
            Gone: there is none.
            SourceAccessError: the server does not answer, or refuses.
        """
        found = self._version_of(name)
        if found is None:
            raise Gone(name)
        return found

    def is_tagged(self, name: str) -> bool:
        """True if the server sends an ETag of a file, by which DVC notices a change.

        Raises:
            SourceAccessError: the server does not answer or refuses, or there is no such file.
        """
        try:
            info = self._object(lambda fs: fs.info(self._path(name)), name)
        except Gone as error:
            raise access_error(self.field, f"{self.address}/{name}", FileNotFoundError()) from error
        return bool(info.get("ETag") or info.get("Content-MD5"))

    def write(self, name: str, version: Version, part: Path, progress: Callable[[int], None]) -> None:
        """Complete a partial file with the bytes of one version of an object.

        Raises:
            Gone: there is no such object.
            Changed: it changed meanwhile.
            SourceAccessError: the server does not answer, or refuses.
        """
        at = part.stat().st_size if part.exists() else 0
        if version.size is not None and at > version.size:
            part.unlink()
            at = 0
        progress(at)
        with part.open("ab") as file:
            while version.size is None or at < version.size:
                end = None if version.size is None else min(at + CHUNK_BYTES, version.size)
                chunk = self._bytes(name, at, end)
                if end is None or (at + len(chunk) > end and version.size is not None and len(chunk) == version.size):
                    # The size is unknown, or the server ignores ranges: this is the whole object.
                    file.truncate(0)
                elif len(chunk) != end - at:
                    raise Changed(f"{len(chunk):,} bytes came, {end - at:,} were asked for")
                file.write(chunk)
                progress(len(chunk) if end is not None and at + len(chunk) <= end else len(chunk) - at)
                at = file.tell()
                if end is None:
                    break
        if (now := self.version(name)) != version:
            part.unlink()
            raise Changed(f"{now.size} bytes, tag {now.tag}, and {version.size} bytes, tag {version.tag}, before")

    def _bytes(self, name: str, start: int, end: int | None) -> bytes:
        def read(fs: Any) -> bytes:
            path = self._path(name)
            return bytes(fs.cat_file(path) if end is None else fs.cat_file(path, start=start, end=end))

        return self._object(read, name)

    def _version_of(self, name: str) -> Version | None:
        try:
            return _version(self._object(lambda fs: fs.info(self._path(name), **self._fresh()), name))
        except Gone:
            return None

    def _object(self, ask: Callable[[Any], Answer], name: str) -> Answer:
        return self._ask(ask, f"{self.address}/{name}".rstrip("/"), name)

    def _ask(self, ask: Callable[[Any], Answer], address: str, name: str | None = None) -> Answer:
        for attempt in range(TRIES):
            try:
                answer = ask(self._filesystem())
            except Exception as raised:
                error = cause_of(raised) if is_web(self.address) else raised
                self._heard = self._heard or not is_silence(error)
                if name is not None and is_gone(error):
                    raise Gone(name) from raised
                if not may_pass(error) or attempt + 1 >= self._tries(error):
                    raise access_error(self.field, address, error) from raised
                time.sleep(PAUSE_S * 2**attempt)
            else:
                self._heard = True
                return answer
        raise AssertionError("unreachable")

    def _tries(self, error: BaseException) -> int:
        if self.address.startswith("gs://"):
            return 1  # gcsfs asks six times in half a minute, and cannot be told otherwise
        if self._heard:
            return TRIES
        return 1 if is_timeout(error) else min(TRIES, FIRST_TRIES)

    def _fresh(self) -> dict[str, bool]:
        return {"refresh": True} if self.address.startswith("s3://") else {}

    def _path(self, name: str) -> str:
        if is_web(self.address):
            return f"{self.address}/{quote(name)}"
        return f"{self.address.partition('://')[2]}/{name}"

    def _filesystem(self) -> Any:
        if self._fs is None:
            import fsspec  # type: ignore[import-untyped]
            from aiohttp import ClientTimeout

            scheme = self.address.partition("://")[0]
            settings: dict[str, Any] = {"use_listings_cache": False}
            silence = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
            if is_web(self.address):
                # Proxies of the environment; no compression, which would change sizes.
                settings["client_kwargs"] = {
                    "trust_env": True,
                    "headers": {"Accept-Encoding": "identity"},
                    "timeout": silence,
                }
            elif scheme == "gs":
                # Its client would ask for the kind of a bucket by a second protocol, for a minute
                # where that is blocked, and print what it raises as well.
                os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
                logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
                settings["session_kwargs"] = {"timeout": silence, "trust_env": True}
            elif scheme == "s3":
                timeouts = {"connect_timeout": CONNECT_S, "read_timeout": READ_S}
                settings["config_kwargs"] = {**timeouts, "retries": {"total_max_attempts": 1}}
            try:
                fsspec.get_filesystem_class(scheme)
                if scheme == "gs":
                    _check_google()
                self._fs = fsspec.filesystem(scheme, **settings)
            except ImportError as error:
                raise access_error(self.field, self.address, error) from error
            # Tried again here only, where it is told apart what may pass.
            self._fs.retries = 1
        return self._fs


def fetch(
    root: RemoteRoot,
    store: SourceStore,
    known: Known,
    wanted: Mapping[str, Version],
    label: str,
    quiet: bool = False,
) -> dict[str, str | Gone | Changed]:
    """Fetch objects into the store, several at once, with a progress bar of bytes. Returns the
    SHA-256 of each, or why that one could not be had.

    Raises:
        SourceAccessError: the server does not answer or refuses, or there is no room. What was
            fetched stays.
    """
    from tqdm import tqdm

    here: dict[str, str | Gone | Changed] = {}
    for name, version in wanted.items():
        sha256 = known.get(name, version.text)
        if sha256 is not None and store.find(sha256, name) is not None:
            here[name] = sha256
    missing = {name: version for name, version in wanted.items() if name not in here}
    if not missing:
        return here
    total = sum(version.size or 0 for version in missing.values())
    with (
        tqdm(desc=label, total=total, unit="B", unit_scale=True, mininterval=1, disable=quiet) as bar,
        ThreadPoolExecutor(CONNECTIONS) as pool,
    ):

        def advance(more: int) -> None:
            bar.update(more)

        def one(name: str) -> str | Gone | Changed:
            try:
                return fetch_one(root, store, known, name, missing[name], advance)
            except (Gone, Changed) as problem:
                return problem

        jobs = {name: pool.submit(one, name) for name in missing}
        try:
            return here | {name: job.result() for name, job in jobs.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def fetch_one(
    root: RemoteRoot,
    store: SourceStore,
    known: Known,
    name: str,
    version: Version,
    progress: Callable[[int], None] = lambda _: None,
) -> str:
    """Fetch one version of an object into the store, and return its SHA-256.

    Raises:
        Gone, Changed: it is not there any more, or not this one.
        SourceAccessError: the server does not answer or refuses, or there is no room.
    """
    try:
        sha256 = store.add(
            digest(root.address, name, version.text),
            name,
            version.size,
            lambda part: root.write(name, version, part, progress),
            lambda: known.get(name, version.text),
        )
    except OSError as error:
        raise access_error(root.field, f"{root.address}/{name}", error) from error
    known.put(name, version.text, sha256)
    return sha256


def _check_google() -> None:
    """Connect to Google's store, or to what stands for it: its client tries for a minute.

    Raises:
        OSError: nobody is there.
    """
    if getproxies():
        return  # which is asked instead
    place = os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    parts = urlsplit(place if "://" in place else f"http://{place}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout=CONNECT_S).close()


def _version(info: Mapping[str, Any]) -> Version:
    for field in ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "Last-Modified", "LastModified", "mtime"):
        if info.get(field):
            tag = str(info[field]).strip('"')
            break
    else:
        tag = ""
    size = info.get("size")
    return Version(int(size) if size is not None else None, tag)
