"""What somebody who may write to a registry and a remote puts there, and every way by which a
reader would take it up."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from stages.runtime.paths import DATABASE
from stages.tools.serving.export import export_version
from stages.tracking.registry.named import find_named
from stages.tracking.registry.servable import load_servable
from stages.tracking.registry.versions import find_version, load_version
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.surroundings import put

MODEL = "vidbridge-tiny"

PATHS = {
    "up": "final/../../../../../../outside/file",
    "up at once": "../outside/file",
    "absolute": "/tmp/vidbridge-test/file",
    "dot": "final/./config",
    "empty part": "final//config",
    "empty": "",
    "backslash": "final\\..\\..\\file",
    "nul": "final/a\0b",
    "newline": "final/a\nb",
    "half a letter": "final/\ud800",
    "long name": "final/" + "x" * 256,
    "long path": "final/" + "/".join(["y" * 200] * 20),
    "git": "final/.GIT/config",
    "twice": "final/config.json",
    "below a file": "final/config.json/below",
    "a file and a folder": "final",
}


def listed(remote: Path, *entries: dict[str, Any]) -> str:
    """A list with a whole model and these; its hash."""
    model = [
        {"md5": put(remote, b'{"model_type": "tiny"}'), "relpath": "final/config.json"},
        {"md5": put(remote, b"weights" * (1 << 18)), "relpath": "final/model.safetensors"},
    ]
    return put(remote, json.dumps([*model, *entries]).encode(), ".dir")


def point(project: Path, source: str, storage: str | None = None) -> None:
    """Who can write to the registry's database sets what they like; the newest version is
    `candidate`."""
    with closing(sqlite3.connect(project / DATABASE)) as connection, connection:
        number = connection.execute(
            "select version from registered_model_aliases where alias = 'candidate'"
        ).fetchone()[0]
        connection.execute(
            "update model_versions set source = ?, storage_location = ? where version = ?",
            (source, storage or source, number),
        )


def doors(project: Path, target: Path) -> dict[str, Callable[[], object]]:
    """Every way from a version to its files."""
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    uri = f"models:/{MODEL}@candidate"
    client = open_client(project)
    source = client.get_model_version_by_alias(MODEL, "candidate").source
    return {
        "predict, evaluate, rescore": lambda: load_version(project, find_named(Session(project), "candidate")),
        "serve": lambda: load_servable(project, find_version(client, MODEL, "candidate")),
        "export": lambda: export_version(Session(project), "candidate", target / "exported"),
        "mlflow": lambda: mlflow.artifacts.download_artifacts(uri, dst_path=str(target)),
        "mlflow, a part": lambda: mlflow.artifacts.download_artifacts(f"{uri}/config.json", dst_path=str(target)),
        "mlflow, one file": lambda: get_artifact_repository(source)._download_file(
            "config.json", str(target / "config.json")
        ),
        "mlflow, a listing": lambda: get_artifact_repository(source).list_artifacts(),
    }
