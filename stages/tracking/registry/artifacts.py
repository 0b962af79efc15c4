"""MLflow artifact repository for ``dvc://<hash>.dir/<path>``: ``models:/NAME@champion`` loads
wherever this package is installed.

It is an entry point. Import this module only through MLflow: importing it first would make MLflow
look for the class half-way.
"""

from __future__ import annotations

import posixpath
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from stages.tracking.lineage.cache_folder import reading_root
from stages.tracking.lineage.opening import open_content
from stages.tracking.lineage.placing import put_bytes
from stages.tracking.lineage.source import SCHEME, Source, parse_source
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.servable import additions_for


class DvcArtifactRepository(ArtifactRepository):
    """Read-only repository. Content comes from the cache of the project (``VIDBRIDGE_PROJECT`` or
    upward from here), else from its DVC remote. Outside a project it comes from the cache folder,
    else from the remote that ``VIDBRIDGE_DVC_REMOTE`` names.

    A folder that is read as a model version (``models:/…``) also has the files MLflow needs to
    serve it (:mod:`stages.tracking.registry.servable`); a ``dvc://`` URI by itself names content
    only.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._source = _checked(artifact_uri)

    @cached_property
    def _added(self) -> dict[str, bytes]:
        # MLflow passes the registry's address only if the URI comes from a model version.
        if self.registry_uri is None:
            return {}
        try:
            return additions_for(self._source.uri, self.registry_uri)
        except TrackingError as error:
            raise MlflowException(str(error)) from error

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        remedy = "change the stage, run dvc repro, then vidbridge register"
        raise MlflowException(
            f"{self.artifact_uri}: {artifact_path or local_file}: content cannot be written to; {remedy}"
        )

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        self.log_artifact(local_dir, artifact_path)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """List files and folders directly below ``path``, as MLflow does: paths relative to the
        URI."""
        base = self._inside(path)
        try:
            with open_content(reading_root()) as content:
                below = {
                    name: oid
                    for name, oid in content.files(base.oid).items()
                    if not base.path or name.startswith(f"{base.path}/")
                }
                entries: dict[str, FileInfo] = {}
                for name, oid in below.items():
                    first, _, rest = name.removeprefix(f"{base.path}/" if base.path else "").partition("/")
                    relative = posixpath.join(path or "", first)
                    entries[relative] = FileInfo(relative, bool(rest), None if rest else content.size(oid))
        except TrackingError as error:
            raise MlflowException(str(error)) from error
        if not path:
            entries |= {name: FileInfo(name, False, len(text)) for name, text in self._added.items()}
        return [entries[name] for name in sorted(entries)]

    def download_artifacts(self, artifact_path: str | None, dst_path: str | None = None) -> str:
        """Put the content below ``dst_path`` (default: a new temporary folder). Returns the local
        path."""
        target = Path(dst_path) if dst_path else Path(mkdtemp(prefix="vidbridge-"))
        if not target.is_dir():
            raise MlflowException(f"{target}: not an existing folder")
        if artifact_path in self._added:
            _write(target, artifact_path, self._added[artifact_path])
            return str((target / artifact_path).resolve())
        source = self._inside(artifact_path)
        try:
            with open_content(reading_root()) as content:
                content.place(source, target, strip=self._source.path)
        except TrackingError as error:
            raise MlflowException(str(error)) from error
        if source == self._source:
            for name, text in self._added.items():
                _write(target, name, text)
        return str((target / (artifact_path or "")).resolve())

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        if remote_file_path in self._added:
            _write(Path(local_path).parent, Path(local_path).name, self._added[remote_file_path])
            return
        source = self._inside(remote_file_path)
        try:
            with open_content(reading_root()) as content:
                content.place_file(source, Path(local_path))
        except TrackingError as error:
            raise MlflowException(str(error)) from error

    def _inside(self, path: str | None) -> Source:
        """Resolve an MLflow path to a part of the folder; checked like any URI, because paths come
        from callers."""
        inner = posixpath.join(self._source.path, path or "").strip("/")
        return _checked(f"{SCHEME}://{self._source.oid}/{inner}") if inner else self._source


def _write(folder: Path, name: str, content: bytes) -> None:
    try:
        put_bytes(folder, name, content)
    except TrackingError as error:
        raise MlflowException(str(error)) from error


def _checked(uri: str) -> Source:
    try:
        return parse_source(uri)
    except TrackingError as error:
        raise MlflowException(str(error)) from error
