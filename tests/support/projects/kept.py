"""What a registered project keeps and may lose: folders in its stores, versions, locks; and
`vidbridge gc` and `data remove` as JSON."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.housekeeping.gc import gc
from flows.housekeeping.gc_options import GcOptions
from flows.housekeeping.removal import remove
from stages.params import load_params
from stages.tracking.gate.moves import complete_pending_move
from stages.tracking.registry.ledger import Decided, last_move, now_ms, read_ledger, write_entry
from stages.tracking.registry.versions import find_version
from stages.tracking.runs.store import open_client
from tests.support.surroundings import put

MODEL = "vidbridge-tiny"
CACHE, REMOTE = Path(".dvc/cache"), Path(".vidbridge/remote")
DAY_S = 86400.0
CLIP = {"source_id": "s", "frames": 8, "rate": "8", "width": 64, "height": 64, "codec": "h264"}


def folder(root: Path, files: dict[str, bytes], *stores: Path) -> str:
    """A folder of DVC's in these stores; its hash."""
    rows = [{"md5": "", "relpath": name} for name in sorted(files)]
    oid = ""
    for store in stores:
        for row in rows:
            row["md5"] = put(root / store, files[row["relpath"]])
        oid = put(root / store, json.dumps(rows).encode(), ".dir")
    return oid


def in_store(root: Path, store: Path, oid: str) -> bool:
    return (root / store / "files/md5" / oid[:2] / oid[2:]).is_file()


def version(root: Path, oid: str, stage: str, **tags: Any) -> int:
    named = {
        "stage": stage,
        "out": oid,
        "step": "10",
        "final": "true",
        "params": "{}",
        "data": "{}",
        "parents": "{}",
    } | tags
    made = open_client(root).create_model_version(
        MODEL, f"dvc://{oid}/final", tags={f"vidbridge.{name}": value for name, value in named.items()}
    )
    return int(made.version)


def add_to_lock(root: Path, stage: str, oid: str) -> None:
    path = root / "dvc.lock"
    path.write_text(
        path.read_text()
        + f"  {stage}:\n    cmd: x\n    outs:\n    - path: models/{stage}\n      hash: md5\n      md5: {oid}\n"
    )


def free(root: Path, capsys: pytest.CaptureFixture[str], *, yes: bool = False, **order: Any) -> dict[str, Any]:
    given = {"remote": False, "versions": False, "keep_days": 0.0, "also": ()} | order
    capsys.readouterr()
    gc(root, GcOptions(**given), yes=yes, as_json=True)
    return dict(json.loads(capsys.readouterr().out))


def decide(root: Path, number: int) -> None:
    """The gate's decision that a version is champion."""
    gate, client = load_params(root / "params.yaml").gate, open_client(root)
    last = last_move(read_ledger(client, MODEL, gate.ledger))
    about = find_version(client, MODEL, number)
    decided = Decided(now_ms(), "promote", number, None, last.number if last else 0, "tester", "", (), None, None)
    assert write_entry(client, gate.ledger, about, decided, "told").standing
    complete_pending_move(client, gate)


@contextmanager
def held_elsewhere(project: Path) -> Iterator[None]:
    """The project is held as another process would hold it: by a lock that this one has not taken
    with `hold`."""
    (project / ".vidbridge").mkdir()
    with (project / ".vidbridge/run.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clips(root: Path, **split_of: str) -> str:
    """A result of ingest, in the cache: its manifest names these videos; the hash."""
    rows = [
        {"schema_version": 1, "clip_id": name, "path": f"videos/{name}.mp4", "sha256": content(name), "split": split}
        | CLIP
        for name, split in split_of.items()
    ]
    return folder(root, {"manifest.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}, CACHE)


def content(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def ask(
    root: Path, capsys: pytest.CaptureFixture[str], *videos: str, yes: bool = False, undo: bool = False
) -> dict[str, Any]:
    capsys.readouterr()
    remove(root, videos, yes=yes, undo=undo, as_json=True)
    return dict(json.loads(capsys.readouterr().out))


def with_ingest(root: Path) -> None:
    stages = (
        "  ingest: {cmd: x, deps: [source.txt], outs: [data/clips]}\n  summary: {cmd: x, deps: [data/clips], outs:"
        " [reports]}\n"
    )
    (root / "dvc.yaml").write_text((root / "dvc.yaml").read_text() + stages)
