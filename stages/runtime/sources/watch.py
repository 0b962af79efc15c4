"""Changes below ``ingest.videos``: DVC watches ``ingest.source``, and a second root only where that
is named in ``dvc.yaml``, which cannot hold a root that may be null.

A listing of names, sizes and versions is compared with that of the last ingest on this machine. No
file is read.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from stages.runtime.sources.addresses import is_remote, is_web, place_of
from stages.runtime.sources.failures import SourceAccessError, access_error
from stages.runtime.sources.remote import RemoteRoot
from stages.runtime.sources.roots import Roots, files_below
from stages.runtime.sources.store import digest, open_store


def listing_digest(roots: Roots) -> str | None:
    """Digest of what is below ``ingest.videos`` now; None if it is not set, or on a web server,
    which lists nothing.

    Raises:
        SourceAccessError: it cannot be listed.
    """
    if roots.videos is None or is_web(roots.folder):
        return None
    hashed = hashlib.sha256()
    if is_remote(roots.folder):
        for name, version in RemoteRoot(roots.folder, roots.field).listing().items():
            hashed.update(f"{name}\0{version.text}\n".encode("utf-8", "surrogatepass"))
    else:
        folder = Path(roots.folder)
        for name in sorted(files_below(folder, deep=True)):
            with suppress(FileNotFoundError):  # a link that leads nowhere
                status = (folder / name).stat()
                hashed.update(f"{name}\0{status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()


def check_reachable(roots: Roots) -> None:
    """Check that the rows' root and the videos' can be listed; of a web server, that the named file
    is there; of this machine, that the folder is.

    Raises:
        SourceAccessError: one of them cannot be read.
    """
    places = {"ingest.source": roots.source, **({"ingest.videos": roots.videos} if roots.videos else {})}
    for field, address in places.items():
        place = place_of(address)
        if not is_remote(address):
            if not Path(address).exists():
                raise SourceAccessError(field, f"{address!r} does not exist", "name the folder of the videos")
        elif place.file is not None:
            if not RemoteRoot(place.root, field).versions([place.file]):
                raise access_error(field, address, FileNotFoundError())
        elif not is_web(address):
            RemoteRoot(place.root, field).check()


def note_listing(roots: Roots, seen: str, root: Path | None = None) -> None:
    """Remember the listing that an ingest on this machine has worked on."""
    file = _file(roots, root)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(seen, encoding="utf-8")
    part.replace(file)


def noted_listing(roots: Roots, root: Path | None = None) -> str | None:
    """The listing of the last ingest on this machine; None if there was none."""
    with suppress(FileNotFoundError):
        return _file(roots, root).read_text(encoding="utf-8")
    return None


def _file(roots: Roots, root: Path | None) -> Path:
    return open_store(root).folder / "listed" / digest(repr(roots))
