"""Videos removed on request: find the versions that learned from them, which the gate then refuses.

``ingest.exclude`` names them for this project's parameters; tags of the registered model name them
for every clone and machine, also for one whose branch does not have the exclusion. A version's
videos are read from the manifest of its data, by content, so later renames do not matter. A version
whose data cannot be read counts as unknown, never as clean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from posixpath import normpath
from typing import TYPE_CHECKING

from pydantic import ValidationError

from stages.params import ExcludedVideo, Params
from stages.runtime import paths
from stages.runtime.plain import one_line
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.versions import Version, all_versions, registered_model
from stages.tracking.runs.run import TAG
from stages.tracking.session import Session

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: Tag of a version: a JSON list of the removed videos that it learned from.
REMOVED = TAG + "removed_videos"
#: Tags of a registered model, one per removed video: ``vidbridge.removed.<digest>``.
NOTED = TAG + "removed."
#: Largest tag that every MLflow server stores (5,000 characters), less room for its brackets.
_TAG_CHARACTERS = 4500
_NAMED = 3


@dataclass(frozen=True)
class Row:
    """Identity of a clip in a manifest. ``path``: in the source folder, or, if ``normalised``,
    beside the manifest."""

    clip_id: str
    path: str
    sha256: str
    split: str
    normalised: bool


@dataclass(frozen=True)
class Seen:
    """The removed videos behind a version.

    ``trained``: it, or a version that it was trained from, learned from them; the others it was
    only scored on. ``unknown``: why that cannot be determined for all its data.
    """

    trained: tuple[str, ...]
    scored: tuple[str, ...]
    unknown: str | None


class Manifests:
    """Rows of every manifest that versions name, each read once, from the cache or the remote."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._rows: dict[str, tuple[Row, ...]] = {}

    def rows(self, oid: str) -> tuple[Row, ...]:
        """Read the rows of one manifest.

        Raises:
            TrackingError: neither cache nor remote has it, or it is not a manifest.
        """
        if oid not in self._rows:
            text = self._content.read(oid, paths.MANIFEST_FILE)
            if text is None:
                raise TrackingError(oid, f"holds no {paths.MANIFEST_FILE}", "it is not a result of ingest")
            self._rows[oid] = tuple(manifest_rows(text, oid))
        return self._rows[oid]


def manifest_rows(text: bytes, name: str) -> Iterator[Row]:
    """Parse the rows of a manifest, of this schema version or of another.

    Raises:
        TrackingError: a line is not a clip.
    """
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            yield Row(row["clip_id"], row["path"], row["sha256"], row["split"], bool(row.get("normalised")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TrackingError(
                f"{name}/{paths.MANIFEST_FILE}:{number}",
                f"not a clip ({error})",
                "it is damaged: dvc repro --force ingest",
            ) from error


def holds(row: Row, video: ExcludedVideo) -> bool:
    """Return whether a clip is of that video: the same bytes, or the same name in the source
    folder."""
    return row.sha256 == video.sha256 or (not row.normalised and normpath(row.path) == normpath(video.video))


def seen(manifests: Manifests, version: Version, versions: Sequence[Version], videos: Sequence[ExcludedVideo]) -> Seen:
    """Find the ``videos`` behind ``version``. ``versions``: all of the model, to follow its
    ancestors."""
    trained: dict[str, None] = {}
    scored: dict[str, None] = {}
    unknown: str | None = None
    waiting, met = [version], {(version.stage, version.out)}
    while waiting:
        current = waiting.pop(0)
        if not _learns(current):
            continue
        try:
            rows = _rows_of(manifests, current)
        except TrackingError as error:
            unknown = unknown or str(error)
            rows = ()
        for video in videos:
            splits = {row.split for row in rows if holds(row, video)}
            if "train" in splits:
                trained[video.video] = None
            elif splits and current is version:
                scored[video.video] = None
        for dep, producer in current.parents.items():
            if not dep.startswith(f"{paths.MODELS}/") or (producer["stage"], producer["out"]) in met:
                continue
            met.add((producer["stage"], producer["out"]))
            parent = next(
                (other for other in versions if (other.stage, other.out) == (producer["stage"], producer["out"])), None
            )
            if parent is not None:
                waiting.append(parent)
            else:
                unknown = (
                    unknown
                    or f"{producer['stage']} (out {producer['out']}), which it was trained from, is not registered"
                )
    return Seen(tuple(trained), tuple(name for name in scored if name not in trained), unknown)


def _learns(version: Version) -> bool:
    """Return whether the project's videos are in its weights: not for a model that was only
    downloaded."""
    table = version.params.get(paths.PARAMS_FILE, {})
    model = table.get("model") if isinstance(table, Mapping) else None
    return not (version.stage == "base" and isinstance(model, Mapping) and model.get("kind") == "pretrained")


def _rows_of(manifests: Manifests, version: Version) -> tuple[Row, ...]:
    oid = version.data.get(paths.CLIPS.as_posix())
    if oid is None:
        raise TrackingError(
            f"version {version.number}",
            f"the clips it was made from are unknown (no tag {TAG}data)",
            "run vidbridge register",
        )
    return manifests.rows(oid)


def removed_videos(client: MlflowClient, params: Params) -> list[ExcludedVideo]:
    """List the videos that ``ingest.exclude`` names, and those noted on the registered model for
    every clone."""
    videos = {_key(video): video for video in params.ingest.exclude}
    for text in _notes(client, params.gate.registered_model).values():
        try:
            video = ExcludedVideo.model_validate_json(text)
        except ValidationError as error:
            raise TrackingError(
                params.gate.registered_model,
                f"a tag {NOTED}… is not a removed video ({error.errors()[0]['msg']})",
                "delete that tag and remove the video again: vidbridge data remove",
            ) from error
        videos.setdefault(_key(video), video)
    return list(videos.values())


def note(client: MlflowClient, model: str, videos: Sequence[ExcludedVideo]) -> None:
    """Note these videos on the registered model, for every clone; nothing to do if it does not
    exist yet."""
    if registered_model(client, model) is None:
        return
    for video in videos:
        client.set_registered_model_tag(model, NOTED + _key(video), video.model_dump_json())


def forget_note(client: MlflowClient, model: str, videos: Sequence[ExcludedVideo]) -> None:
    """Remove the tags that `note` wrote."""
    names = {NOTED + _key(video) for video in videos}
    for name in names & _notes(client, model).keys():
        client.delete_registered_model_tag(model, name)


def tag_value(names: Sequence[str]) -> str:
    """Encode the names as a JSON list that fits into a tag; its last entry counts the names that do
    not fit."""
    kept = list(names)
    while len(json.dumps(_with_count(kept, names))) > _TAG_CHARACTERS:
        kept.pop()
    return json.dumps(_with_count(kept, names))


def _with_count(kept: Sequence[str], names: Sequence[str]) -> list[str]:
    left = len(names) - len(kept)
    return [*kept, f"and {left} more"] if left else list(kept)


def objection(session: Session, version: Version) -> str | None:
    """Return why the gate refuses ``version``: it learned from a removed video, or that cannot be
    determined. None if it is allowed."""
    if (recorded := version.removed_videos) is not None:
        return _learned(version, recorded)
    client, params = session.client, session.params
    videos = removed_videos(client, params)
    if not videos:
        return None
    result = seen(Manifests(session.content), version, all_versions(client, params.gate.registered_model), videos)
    if result.trained:
        return _learned(version, result.trained)
    if result.unknown:
        return (
            f"whether version {version.number} learned from {_listed([video.video for video in videos])} is unknown:"
            f" {result.unknown}; bring its data (dvc fetch), or train again: vidbridge run"
        )
    return None


def _learned(version: Version, names: Sequence[str]) -> str:
    return (
        f"version {version.number} learned from {_listed(names)}, removed on request (ingest.exclude); train without"
        " it: vidbridge run"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more videos" if len(names) > _NAMED else ""
    return ", ".join(repr(one_line(name)) for name in names[:_NAMED]) + more


def _notes(client: MlflowClient, model: str) -> dict[str, str]:
    registered = registered_model(client, model)
    return {name: value for name, value in registered.tags.items() if name.startswith(NOTED)} if registered else {}


def _key(video: ExcludedVideo) -> str:
    return hashlib.sha256(f"{normpath(video.video)} {video.sha256 or ''}".encode()).hexdigest()[:16]
