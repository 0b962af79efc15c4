"""`dvc://` sources: found by content in the cache, verified from the remote, read-only, and
never a way out of the project."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.lineage.opening import open_content
from stages.tracking.lineage.source import Source, parse_source
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.named import find_named
from stages.tracking.registry.register import register
from stages.tracking.registry.versions import load_version
from stages.tracking.session import Session


def out(project: Path, stage: str, path: str) -> str:
    return read_lock(project)[stage].outs[path]


def test_mlflow_lists_and_loads_from_the_cache(project: Path, tmp_path: Path) -> None:
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    register(Session(project))
    shutil.rmtree(project / "models")
    repository = get_artifact_repository(f"dvc:///{out(project, 'sft@cold-start', 'models/cold-start')}")
    assert [(item.path, item.is_dir) for item in repository.list_artifacts()] == [
        ("checkpoint-5", True),
        ("checkpoints.jsonl", False),
        ("final", True),
        ("history.jsonl", False),
    ]
    assert [(item.path, item.file_size) for item in repository.list_artifacts("final")][1] == (
        "final/model.safetensors",
        2 << 20,
    )
    assert repository.list_artifacts("final/config.json") == []
    file = Path(repository.download_artifacts("final/config.json", str(tmp_path)))
    assert file == tmp_path / "final/config.json"
    assert '"trained"' in file.read_text()
    uri = f"dvc://{out(project, 'grpo@general', 'models/general')}/final"
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path)))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    # Weights are the cache's own file; what people edit is a copy.
    assert (folder / "model.safetensors").stat().st_nlink == 2
    assert (folder / "config.json").stat().st_nlink == 1


def test_it_cannot_be_written_to(project: Path) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(f"dvc://{out(project, 'grpo@general', 'models/general')}/final")
    with pytest.raises(MlflowException, match="cannot be written to; change the stage"):
        repository.log_artifact(str(project / "params.yaml"))


@pytest.mark.parametrize(
    "uri",
    [
        "dvc://../../etc/passwd",
        "dvc://0123456789abcdef0123456789abcdef.dir/../..",
        "dvc://0123456789abcdef0123456789abcdef.dir/a/./b",
        "dvc://0123456789abcdef0123456789abcdef.dir/a\\..\\b",
        "dvc://host/0123456789abcdef0123456789abcdef.dir/a",
        "https://example.org/model",
    ],
)
def test_a_uri_names_content_and_nothing_else(uri: str) -> None:
    with pytest.raises(TrackingError, match="model source"):
        parse_source(uri)


def test_uris_round_trip() -> None:
    for path in ("", "final", "checkpoint-5/deep"):
        source = Source("0123456789abcdef0123456789abcdef.dir", path)
        assert parse_source(source.uri) == source


def test_a_path_in_a_request_cannot_leave_the_folder(project: Path) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(f"dvc://{out(project, 'grpo@general', 'models/general')}/final")
    with pytest.raises(MlflowException, match="may not leave the folder"):
        repository.list_artifacts("../checkpoint-5")


def test_what_is_nowhere_is_named_with_the_remedy(project: Path) -> None:
    register(Session(project))
    shutil.rmtree(project / ".dvc/cache")
    shutil.rmtree(project / ".vidbridge/remote")
    with pytest.raises(TrackingError, match=r"is neither in the DVC cache of .* run dvc push, here run dvc fetch"):
        load_version(project, find_named(Session(project), "candidate"))


def test_a_tampered_remote_is_noticed(project: Path) -> None:
    register(Session(project))
    with open_content(project) as content:
        file = content.files(out(project, "grpo@general", "models/general"))["final/model.safetensors"]
    shutil.rmtree(project / ".dvc/cache")
    remote = project / ".vidbridge/remote/files/md5" / file[:2] / file[2:]
    remote.chmod(0o644)
    remote.write_bytes(b"other weights")
    with pytest.raises(TrackingError, match=file):
        load_version(project, find_named(Session(project), "candidate"))


def test_an_empty_cache_is_filled_from_the_remote_and_loaded_once(project: Path) -> None:
    register(Session(project))
    shutil.rmtree(project / ".dvc/cache")
    folder = load_version(project, find_named(Session(project), "candidate"))
    assert (folder / "model.safetensors").stat().st_size == 2 << 20
    shutil.rmtree(project / ".dvc/cache")
    assert load_version(project, find_named(Session(project), "candidate")) == folder


def test_a_folder_that_is_no_dvc_project_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="set VIDBRIDGE_PROJECT"), open_content(tmp_path):
        pass
