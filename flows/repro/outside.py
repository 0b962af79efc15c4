"""Inputs outside of this machine: DVC's dependencies in a bucket or on a web server, and videos
that have a root of their own.

A bucket is listed once a plan, not once a stage: DVC takes the ETags of the list, and reads no
object.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.params import load_params
from stages.runtime import paths
from stages.runtime.bounded_yaml import read_yaml
from stages.runtime.sources.addresses import is_web, place_of
from stages.runtime.sources.failures import SourceAccessError, access_error
from stages.runtime.sources.remote import RemoteRoot
from stages.runtime.sources.watch import listing_digest, noted_listing
from stages.tracking.lineage.lockfile import is_outside

#: The stage that reads the videos themselves. Later ones know their content from its manifest.
INGEST = "ingest"


class Outside:
    """Dependencies of a plan that lie outside of this machine."""

    holds = staticmethod(is_outside)

    def __init__(self) -> None:
        self._hashes: dict[str, Any] = {}

    def present(self, dep: Any) -> Any:
        """Present hash of a dependency, from the names and versions of its objects.

        Raises:
            SourceAccessError: it cannot be listed.
        """
        path = str(dep)
        if path not in self._hashes:
            _check(path)
            try:
                self._hashes[path] = dep.get_hash()
            except Exception as error:
                raise access_error("ingest.source", path, error) from error
        return self._hashes[path]

    def changes(self, dep: Any) -> list[str]:
        """What changed about a dependency since ``dvc.lock``."""
        now = self.present(dep)
        if not dep.hash_info:
            return [f"dep {dep} is a new dependency"]
        return [] if now == dep.hash_info else [f"dep {dep} changed"]


def _check(address: str) -> None:
    """Check that the server answers, within bounds that DVC does not have; and of a file on a web
    server that it has an ETag, without which DVC assumes that it never changes.

    Raises:
        SourceAccessError: it does not answer or refuses, or the file has no ETag.
    """
    place = place_of(address)
    root = RemoteRoot(place.root, "ingest.source")
    if place.file is None:
        root.check()
    elif not is_web(address):
        root.versions([place.file])
    elif not root.is_tagged(place.file):
        raise SourceAccessError(
            "ingest.source",
            f"{address}: its server sends no ETag, so a change of the file would not be noticed",
            "let it send one (nginx and Apache do), or keep a copy here and set ingest.videos",
        )


def changed_videos(root: Path) -> str | None:
    """Reason why ingest has to run although DVC sees no change: what lies below ``ingest.videos``
    is not what the last ingest on this machine has seen. Empty where it is, or where there was
    none; None where that is not set.

    Raises:
        SourceAccessError: it cannot be listed.
    """
    table = read_yaml(root / paths.PARAMS_FILE).get("ingest")
    if not isinstance(table, dict) or table.get("videos") is None:
        return None
    ingest = load_params(root / paths.PARAMS_FILE).ingest
    noted = noted_listing(ingest.roots, root)
    if noted is None or listing_digest(ingest.roots.below(root)) == noted:
        return ""
    return f"videos below {ingest.videos} changed"
