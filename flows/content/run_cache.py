"""DVC's run cache: the outs of a stage for exactly these inputs, parameters and command, from this
host or another.

An entry is a file ``runs/KEY[:2]/KEY/VALUE``: KEY is the hash of the stage without its outs'
hashes, VALUE that of the whole. Entries come from a shared cache and from the remote, so they are
foreign: one is used only if it hashes to the name it lies under, and gives the stage its own outs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.runtime.bounded_yaml import YamlError, parse_yaml
from stages.tracking.lineage.listing import is_hash

#: Bytes of an entry; one of a stage with a hundred dependencies has 10 kB.
MOST_BYTES = 1_000_000
RUNS = "runs"


def key_of(stage: Any) -> str | None:
    """Key of a stage as its deps and parameters are filled in now; None if DVC keeps no such
    entries.

    Equals ``dvc.stage.cache._can_hash``, which however hashes the work tree; here a dep need not
    lie there.
    """
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    if not (stage.cmd and stage.deps and stage.outs) or stage.is_callback or stage.always_changed:
        return None
    if any(dep.protocol != "local" or not dep.def_path or not dep.hash_info for dep in stage.deps):
        return None
    if any(out.protocol != "local" or not out.is_in_repo or out.persist or not out.use_cache for out in stage.outs):
        return None
    return str(_get_cache_hash(to_single_stage_lockfile(stage), key=True))


def read_entry(text: bytes, key: str, value: str, own: set[str]) -> dict[str, Any]:
    """Parse an entry and verify that it is the one that its name says. ``own``: paths of the
    stage's outs, as ``dvc.yaml`` has them.

    Raises:
        ValueError: it is not, and why.
    """
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA
    from dvc.stage.cache import _get_cache_hash
    from dvc.utils.serialize import parse_yaml as parse_as_dvc
    from voluptuous import Invalid

    if len(text) > MOST_BYTES:
        raise ValueError(f"has {len(text):,} bytes, {MOST_BYTES:,} are read")
    try:
        decoded = text.decode("utf-8")
        parse_yaml(decoded, "entry")  # within bounds; DVC's own reader, which reads 1e-5 as a number, has none
        entry: dict[str, Any] = COMPILED_LOCK_FILE_STAGE_SCHEMA(parse_as_dvc(decoded, value, typ="safe"))
        named = [(_get_cache_hash({**entry}, key=True), key), (_get_cache_hash(entry), value)]
    except (
        YamlError,
        UnicodeDecodeError,
        Invalid,
        DvcException,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(f"cannot be read ({type(error).__name__})") from error
    if any(found != name for found, name in named):
        raise ValueError("is not what its name says")
    outs = {out["path"]: out.get("md5") for out in entry.get("outs", ())}
    if set(outs) != own or not all(is_hash(md5) for md5 in outs.values()):
        raise ValueError("gives the stage outs that are not its own")
    return entry


def folder(repo: Any) -> Path:
    return Path(repo.stage_cache.cache_dir)


def local_entries(repo: Any, key: str) -> Iterator[tuple[str, bytes]]:
    """Yield the entries of this machine's cache under that key, newest first, as DVC takes them."""
    entries = folder(repo) / key[:2] / key
    try:
        files = sorted(entries.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in files:
        if path.is_file() and is_value(path.name):
            with path.open("rb") as file:
                yield path.name, file.read(MOST_BYTES + 1)


def is_value(name: str) -> bool:
    """Return whether a file's name is that of an entry: a SHA-256. DVC writes other files beside it
    while it creates one.
    """
    return len(name) == 64 and all(letter in "0123456789abcdef" for letter in name)


def save(repo: Any, key: str, value: str, text: bytes) -> None:
    """Write a verified entry into this machine's cache."""
    entries = folder(repo) / key[:2] / key
    if (entries / value).exists():
        return
    entries.mkdir(parents=True, exist_ok=True)
    unfinished = entries / f".{value}.{os.getpid()}"
    unfinished.write_bytes(text)
    unfinished.replace(entries / value)
