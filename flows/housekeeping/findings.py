"""Findings of ``vidbridge gc``: the rows of its table, and the content that is to be removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.housekeeping.gc_options import GcOptions
from flows.housekeeping.holdings import NOBODY, Held, Place, Verdicts, bytes_of
from flows.housekeeping.leftovers import Leftover
from flows.housekeeping.registry_needs import Registry, Standing


@dataclass(frozen=True)
class Row:
    """A line of the table. ``bytes``: the space it takes; for free objects, the space that is
    regained.
    """

    kind: str
    what: str
    objects: int
    bytes: int
    free: bool
    why: str


@dataclass
class Findings:
    """Everything that was examined, as rows and as what is to be removed."""

    rows: list[Row]
    places: list[tuple[Place, list[Held]]]
    paths: list[Path]
    #: Folders that somebody may take up again, also on another host.
    scratch: list[Path]
    versions: list[Standing]
    entries: list[Path]
    #: A remote, and entries of its run cache.
    far_entries: tuple[Any, list[str]]
    notes: list[str]

    @property
    def freed_bytes(self) -> int:
        return sum(row.bytes for row in self.rows if row.free)


def version_rows(found: Findings, known: Registry, order: GcOptions, intact: Sequence[Standing]) -> None:
    """Add the rows of versions: why they keep their weights, and which are given up."""
    kept: dict[str, int] = {}
    for one in known.versions:
        if one.why is not None:
            kept[one.why] = kept.get(one.why, 0) + 1
        elif one.version.freed is not None:
            kept["given up before; its lineage is kept"] = kept.get("given up before; its lineage is kept", 0) + 1
        elif not order.versions:
            kept["nobody needs it; --versions gives its weights up"] = (
                kept.get("nobody needs it; --versions gives its weights up", 0) + 1
            )
    if intact:
        kept["nobody needs it, and a copy is left all the same"] = len(intact)
    for why, count in kept.items():
        found.rows.append(Row("versions", "weights of versions", count, 0, False, why))
    if found.versions:
        names = ", ".join(f"{one.version.model} {one.version.number}" for one in found.versions[:6])
        more = f" and {len(found.versions) - 6} more" if len(found.versions) > 6 else ""
        found.rows.append(
            Row(
                "versions",
                f"weights of {names}{more}",
                len(found.versions),
                0,
                True,
                f"{NOBODY}; tags and lineage stay",
            )
        )


def place_rows(found: Findings, place: Place, verdicts: Verdicts, where: str) -> None:
    """Add the rows of a cache or remote, and its free objects to what is to be removed."""
    sizes = {one.oid: one.size for one in place.held}
    by_why: dict[str, list[str]] = {}
    for oid, why in verdicts.kept.items():
        by_why.setdefault(why, []).append(oid)
    for why, oids in by_why.items():
        found.rows.append(Row(place.kind, where, len(oids), sum(sizes[oid] for oid in oids), False, why))
    if verdicts.free:
        found.rows.append(Row(place.kind, where, len(verdicts.free), bytes_of(verdicts.free), True, NOBODY))
        found.places.append((place, verdicts.free))


def leftover_rows(found: Findings, root: Path, left: Sequence[Leftover], *, pinned_known: bool) -> None:
    """Add the rows of leftovers, and those that nothing needs to what is to be removed."""
    groups: dict[tuple[str, str | None], list[Path]] = {}
    for one in left:
        why = one.why
        if why is None and one.kind in ("loaded", "servable") and not pinned_known:
            why = "the registry cannot be read"
        groups.setdefault((one.kind, why), []).append(one.path)
    for (kind, why), paths in groups.items():
        where = _shown_path(root, paths[0].parent if kind != "clones" else paths[0])
        count, size = _measure(paths, free=why is None)
        found.rows.append(Row(kind, f"{len(paths)} in {where}", count, size, why is None, why or NOBODY))
        if why is None:
            (found.scratch if kind == "scratch" else found.paths).extend(paths)


def _shown_path(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _measure(paths: Sequence[Path], *, free: bool) -> tuple[int, int]:
    """Files and bytes; of what is freed only those that no other link keeps."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    count = size = 0
    for file in files:
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        if file.is_file() and not file.is_symlink():
            count += 1
            size += status.st_size if not free or status.st_nlink == 1 else 0
    return count, size
