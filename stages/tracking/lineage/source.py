"""Sources of models, as URIs: ``dvc://<hash>.dir/<path>`` names content of one folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from stages.tracking.lineage.listing import path_fault
from stages.tracking.lineage.uri import TrackingError

SCHEME = "dvc"
#: A whole folder is written ``dvc:///<hash>.dir``: MLflow servers refuse a source without a path.
_URI = re.compile(r"dvc:///?(?P<oid>[0-9a-f]{32}\.dir)(?:/(?P<path>.*))?")


@dataclass(frozen=True)
class Source:
    """A folder (``oid``: hash of an out, ends with ``.dir``) and a path inside it, ``""`` for the
    whole."""

    oid: str
    path: str

    @property
    def uri(self) -> str:
        return f"{SCHEME}://{self.oid}/{self.path}" if self.path else f"{SCHEME}:///{self.oid}"


def parse_source(uri: str, what: str = "") -> Source:
    """Read a ``dvc://`` URI. ``what`` names its owner in the error.

    Raises:
        TrackingError: it is not such a URI, or its path leaves the folder.
    """
    name = f"{what}: model source {uri[:300]!r}" if what else f"model source {uri[:300]!r}"
    match = _URI.fullmatch(uri)
    if not match:
        raise TrackingError(
            name,
            "expected dvc://<32 hex digits>.dir/<path>, as vidbridge register writes it",
            "take another version, or delete this one",
        )
    path = (match["path"] or "").strip("/")
    if path and (fault := path_fault(path)):
        raise TrackingError(
            name, f"the path may not leave the folder: it {fault}", "take another version, or delete this one"
        )
    return Source(match["oid"], path)


def placed(files: Mapping[str, str], source: Source, strip: str = "") -> dict[str, tuple[str, str]]:
    """Select the files below ``source.path`` from those of its folder.

    Returns target path (without the leading folder ``strip``) to the path in the folder and the
    hash.
    """
    inside = {path: md5 for path, md5 in files.items() if path == source.path or below(path, source.path)}
    return {
        path.removeprefix(strip).lstrip("/") or path.rpartition("/")[2]: (path, md5) for path, md5 in inside.items()
    }


def below(path: str, folder: str) -> bool:
    """Return whether ``path`` lies in ``folder``, of which ``""`` is the whole."""
    return not folder or path.startswith(f"{folder}/")
