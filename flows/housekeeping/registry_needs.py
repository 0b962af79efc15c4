"""Needs of the registry: every version that names content, and why it must keep its weights."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.housekeeping.needs import ALIASES, FOREIGN, JUDGED, MANIFESTS, REFS, STACK, YOUNG, Need
from stages.params import Params
from stages.runtime import paths
from stages.tracking.lineage.listing import is_hash
from stages.tracking.registry.ledger import ENTRY, champions, read_ledger
from stages.tracking.registry.versions import JUDGING, Version, all_versions, registered_models
from stages.tracking.runs.run import TAG

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_SOURCE = re.compile(r"dvc:///?([0-9a-f]{32}\.dir)(?:/.*)?")
#: A version that is being judged is left alone for this long: judging may first run a whole
#: evaluation of the champion.
_JUDGING_MS = 3_600_000


@dataclass(frozen=True)
class Standing:
    """A version that one of our stages produced, and why it must keep its weights; None: it is not
    needed."""

    version: Version
    why: str | None


@dataclass(frozen=True)
class Registry:
    """Every version in the store that names content, and the content that has to stay."""

    versions: tuple[Standing, ...]
    needs: tuple[Need, ...]


def own_models(params: Params) -> frozenset[str]:
    """Names of a project's registered models."""
    gate = params.gate
    return frozenset(filter(None, (gate.registered_model, f"{gate.registered_model}-ablation", gate.production)))


def registry(client: MlflowClient, own: frozenset[str], refs: frozenset[str], young_ms: float) -> Registry:
    """Read every registered model, of every project.

    Args:
        own: names of this project's models, whose versions may be freed.
        refs: hashes that work trees, branches and tags need.
        young_ms: versions created later than this (milliseconds since the epoch) stay.

    Raises:
        TrackingError: a ledger or a tag cannot be read.
    """
    models = {name: all_versions(client, name) for name in registered_models(client)}
    stacks: dict[tuple[str, int], str] = {}
    for name, versions in models.items():
        # Everything of other projects is kept, so their ledgers and tags are irrelevant, readable
        # or not.
        if name.removesuffix(".gate") in own and any(ENTRY in version.tags for version in versions):
            for number in champions(read_ledger(client, name.removesuffix(".gate"), name)):
                stacks[name.removesuffix(".gate"), number] = STACK
    standing, needs = [], []
    for name, versions in models.items():
        for version in versions:
            oids = oids_of(version)
            if not oids or ENTRY in version.tags:
                continue
            # A rollback never returns to a version that learned from a removed video.
            earlier = stacks.get((name, version.number)) if name in own and version.removed_videos is None else None
            why = (
                ALIASES
                if version.aliases
                else earlier
                or (REFS if version.out in refs else None)
                or (FOREIGN if name not in own else None)
                or (JUDGED if _is_judged(version) else None)
                or (YOUNG if version.created_ms > young_ms else None)
            )
            who = f"{name} version {version.number}"
            if why is not None:
                needs.append(Need(why, who, oids))
            standing.append(Standing(version, why))
            if clips := _data_of(version).get(paths.CLIPS.as_posix()):
                needs.append(Need(MANIFESTS, who, frozenset([clips]), only=paths.MANIFEST_FILE))
    return Registry(tuple(standing), tuple(needs))


def _is_judged(version: Version) -> bool:
    judged_ms = version.tags.get(JUDGING, "")
    return judged_ms.isascii() and judged_ms.isdigit() and abs(time.time() * 1000 - int(judged_ms[:20])) < _JUDGING_MS


def oids_of(version: Version) -> frozenset[str]:
    """Folders that hold a version's weights and its scores by sample; empty if its source names no
    content."""
    match = _SOURCE.fullmatch(version.source)
    if match is None:
        return frozenset()
    folders = {match[1]}
    for tag, text in version.tags.items():
        if tag.startswith(f"{TAG}samples"):
            folders |= {oid for oid in _table(text).values() if is_hash(oid)}
    return frozenset(folders)


def _data_of(version: Version) -> dict[str, str]:
    return {path: oid for path, oid in _table(version.tags.get(f"{TAG}data", "{}")).items() if is_hash(oid)}


def named_oids(version: Version) -> frozenset[str]:
    """All content that a version names: weights, scores, data and parents."""
    parents = {
        str(producer.get("out"))
        for producer in _table(version.tags.get(f"{TAG}parents", "{}")).values()
        if isinstance(producer, dict)
    }
    return frozenset(oid for oid in {*oids_of(version), *_data_of(version).values(), *parents} if is_hash(oid))


def _table(text: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}
