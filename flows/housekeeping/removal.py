"""``vidbridge data remove``: take a video out of the data on request, and list what has used it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.console import show
from flows.errors import FlowError
from flows.housekeeping.project_needs import clips_of_refs
from flows.housekeeping.registry_needs import own_models
from flows.processes.locks import only_run
from flows.repro.plan import stage_graph
from flows.repro.registered import other_store
from stages.params import ExcludedVideo, Params, load_params
from stages.runtime import paths
from stages.runtime.bounded_yaml import read_text
from stages.runtime.plain import one_line
from stages.tools.dataset.excluded import with_excluded
from stages.tools.dataset.remove import Samples, Video, find, samples_showing
from stages.tracking.lineage.uri import TrackingError, display_uri, sqlite_path, tracking_uri
from stages.tracking.registry.removals import REMOVED, Manifests, Seen, forget_note, holds, note, seen, tag_value
from stages.tracking.registry.versions import Version, all_versions, registered_models
from stages.tracking.runs.store import retry_on_conflict
from stages.tracking.session import Session

#: The stage that sets videos aside.
FIRST = "ingest"


@dataclass(frozen=True)
class Affected:
    """A registered version, and the videos among its data."""

    version: Version
    seen: Seen

    @property
    def summary(self) -> str:
        if self.seen.trained:
            also = f"; the rest cannot be told: {self.seen.unknown}" if self.seen.unknown else ""
            return f"learned from {_names(self.seen.trained)}{also}"
        if self.seen.unknown:
            return f"unknown: {self.seen.unknown}"
        return f"scored on {_names(self.seen.scored)}, did not learn from it"


@dataclass(frozen=True)
class Consequences:
    """Consequences of a removal. ``clean``: versions that never used any of the videos;
    ``registry``: why none could be examined.
    """

    videos: tuple[Video, ...]
    samples: Samples | None
    affected: tuple[Affected, ...]
    clean: int
    registry: str | None
    again: tuple[str, ...]
    #: Branches and tags whose results were made from one of the videos.
    refs: tuple[str, ...]
    #: Versions of other projects whose tags cannot be read.
    skipped: tuple[str, ...]


def remove(root: Path, names: Sequence[str], *, yes: bool, undo: bool, as_json: bool) -> None:
    """List what has used the named videos; with ``yes`` take them out of (``undo``: back into) what
    ingest reads.

    Raises:
        RemovalError: a name means no video, or several.
        FlowError: a run is working in the project.
    """
    session = Session(root)
    params = session.params
    versions, registry = _versions(session)
    ours = [version for version in versions if version.model in own_models(params)]
    found = _excluded(params, names) if undo else find(session, names, ours)
    videos = [video for one in found for video in one.videos]
    affected, skipped = _affected(session, versions, videos)
    using = [one for one in affected if one.seen.trained or one.seen.scored or one.seen.unknown]
    ids = frozenset(name for one in found for name in one.clip_ids)
    consequences = Consequences(
        tuple(found),
        samples_showing(root, ids),
        tuple(using),
        len(affected) - len(using),
        registry,
        _again(root),
        _refs(session, videos),
        skipped,
    )
    tagged = None
    if yes:
        with only_run(root):
            _write(root, videos, undo=undo)
            tagged = [] if other_store(root) else _tell(session, affected, videos, undo=undo)
    if as_json:
        show.document(_plain(consequences) | {"removed": yes and not undo, "tagged": tagged})
        return
    _show(consequences)
    _next(found, yes=yes, undo=undo, registry=registry, tagged=tagged)


def _excluded(params: Params, names: Sequence[str]) -> list[Video]:
    by_name: dict[str, list[ExcludedVideo]] = {}
    for video in params.ingest.exclude:
        by_name.setdefault(video.video, []).append(video)
    if unknown := next((name for name in names if name not in by_name), None):
        there = ", ".join(map(repr, by_name)) or "none"
        raise FlowError("video", f"{unknown!r} is not in ingest.exclude of params.yaml", f"name one that is: {there}")
    return [Video(name, tuple(by_name[name]), (), ()) for name in names]


def _versions(session: Session) -> tuple[list[Version], str | None]:
    """Every version that a stage of ours made, in any registered model of the store, oldest first;
    or why they cannot be listed.
    """
    root = session.root
    if other := other_store(root):
        return [], str(other)
    model = session.params.gate.registered_model
    empty = (
        f"MLFLOW_TRACKING_URI: {display_uri(tracking_uri(root))} holds no version of {model}; where versions are"
        " registered in another store, set it to that one and do this again"
    )
    database = sqlite_path(tracking_uri(root))
    if database is not None and not database.exists():
        return [], empty
    try:
        with _asking(session) as client:
            models = [all_versions(client, model) for model in registered_models(client)]
    except TrackingError as error:
        return [], str(error)
    found = [version for versions in models for version in versions if version.stage]
    return found, None if any(version.model == model for version in found) else empty


@contextmanager
def _asking(session: Session) -> Iterator[Any]:
    client = session.client
    from mlflow.exceptions import MlflowException

    try:
        yield client
    except MlflowException as error:
        raise TrackingError(
            "the registry could not be read or written", str(error), "do it again when it answers"
        ) from error


def _affected(
    session: Session, versions: Sequence[Version], videos: Sequence[ExcludedVideo]
) -> tuple[list[Affected], tuple[str, ...]]:
    """Videos that each version used, and the versions of other projects that cannot be read: these
    are for their owners to repair.
    """
    if not versions:
        return [], ()
    found, skipped, own = [], [], own_models(session.params)
    # Among several with the same content, the project's own is the ancestor.
    own_first = sorted(versions, key=lambda version: version.model not in own)
    manifests = Manifests(session.content)
    for version in versions:
        try:
            version.removed_videos  # noqa: B018
            found.append(Affected(version, seen(manifests, version, own_first, videos)))
        except TrackingError:
            if version.model in own:
                raise
            skipped.append(f"{version.model} version {version.number}")
    return found, tuple(skipped)


def _again(root: Path) -> tuple[str, ...]:
    """Ingest and every stage that needs it, in order."""
    again = {FIRST}
    for stage, upstream in stage_graph(root).items():
        if again & set(upstream):
            again.add(stage)
    return tuple(stage for stage in stage_graph(root) if stage in again)


def _refs(session: Session, videos: Sequence[ExcludedVideo]) -> tuple[str, ...]:
    found = clips_of_refs(session.root)
    if not found:
        return ()
    manifests = Manifests(session.content)

    def hold(oid: str) -> bool:
        try:
            return any(holds(row, video) for row in manifests.rows(oid) for video in videos)
        except TrackingError:
            return False  # Content that cannot be fetched any more needs no removal.

    return tuple(name.removeprefix("refs/") for name, oid in found.items() if hold(oid))


def _write(root: Path, videos: Sequence[ExcludedVideo], *, undo: bool) -> None:
    path = root / paths.PARAMS_FILE
    before = load_params(path).ingest.exclude
    after = [video for video in before if video not in videos] if undo else list(dict.fromkeys([*before, *videos]))
    beside = path.with_name(path.name + paths.UNFINISHED)
    beside.write_text(with_excluded(read_text(path), after), encoding="utf-8")
    beside.replace(path)


def _tell(session: Session, affected: Sequence[Affected], videos: Sequence[ExcludedVideo], *, undo: bool) -> list[str]:
    """Tag the versions that were trained on the videos, and note the videos for every clone;
    returns the versions.

    Raises:
        TrackingError: the registry does not take it; ``params.yaml`` holds the removal already.
    """
    database = sqlite_path(tracking_uri(session.root))
    if database is not None and not database.exists():
        return []
    tagged = []
    with _asking(session) as client:
        model = session.params.gate.registered_model
        (forget_note if undo else note)(client, model, videos)
        names = {video.video for video in videos}
        for one in affected:
            version, before = one.version, set(one.version.removed_videos or ())
            now = before - names if undo else before | set(one.seen.trained)
            if now == before:
                continue
            number = str(version.number)
            if now:
                value = tag_value(sorted(now))
                retry_on_conflict(partial(client.set_model_version_tag, version.model, number, REMOVED, value))
            else:
                client.delete_model_version_tag(version.model, number, REMOVED)
            tagged.append(f"{version.model} version {number}")
    return tagged


def _show(found: Consequences) -> None:
    out = show.console()
    table = Table(box=None, pad_edge=False)
    for name in ("video", "clips", "split now", "SHA-256"):
        table.add_column(name, overflow="fold")
    for video in found.videos:
        contents = ", ".join(one.sha256[:12] if one.sha256 else "unknown" for one in video.videos)
        table.add_row(
            one_line(video.path),
            one_line(", ".join(video.clip_ids)),
            ", ".join(video.splits) or "not in data/clips",
            contents,
        )
    out.print(table)
    if found.samples is None:
        out.print("samples: none in this work tree")
    else:
        counts = ", ".join(
            f"{count:,} {split} {task}" for (split, task), count in sorted(found.samples.showing.items())
        )
        out.print(
            f"samples: {sum(found.samples.showing.values()):,} of {found.samples.total:,} show"
            f" it{f' ({counts})' if counts else ''}"
        )
    if found.registry:
        out.print(Text(f"versions: unknown, all of them: {one_line(found.registry)}", style="yellow"))
    elif found.affected:
        table = Table(title=Text("versions"), title_justify="left", box=None, pad_edge=False)
        for name in ("model", "version", "aliases", "what it saw"):
            table.add_column(name, overflow="fold")
        for one in found.affected:
            version = one.version
            style = "yellow" if one.seen.trained or one.seen.unknown else ""
            cell = Text(one_line(one.summary), style)
            table.add_row(one_line(version.model), str(version.number), one_line(", ".join(version.aliases)), cell)
        out.print(table)
    if not found.registry:
        out.print(f"versions that never saw it: {found.clean:,}")
    if found.skipped:
        names = one_line(_names(found.skipped))
        out.print(Text(f"not looked at, tags that cannot be read: {names} (another project's)", style="yellow"))
    out.print(f"has to run again: {', '.join(found.again)}")
    if found.refs:
        out.print(f"branches and tags whose results were made from it: {_names(tuple(map(one_line, found.refs)))}")


def _next(found: Sequence[Video], *, yes: bool, undo: bool, registry: str | None, tagged: Sequence[str] | None) -> None:
    names = " ".join(one_line(video.path) for video in found)
    if not yes:
        show.say("nothing was changed; do it:")
        show.say(f"  vidbridge data remove {'--undo ' if undo else ''}{names} --yes")
        return
    if undo:
        show.say("params.yaml takes it again. Commit params.yaml; then: vidbridge run")
        return
    if registry:
        show.say(
            "params.yaml leaves it out, but no version of this project could be tagged; do it again when that is"
            f" mended: {one_line(registry)}"
        )
    else:
        show.say(
            f"params.yaml leaves it out ({FIRST}.exclude); versions tagged {REMOVED}, so that the gate takes none of"
            f" them: {len(tagged or ())}"
        )
    show.say("commit params.yaml, so that scheduled runs and other clones leave it out too")
    show.show_next(show.console(), "vidbridge run", "vidbridge promote", "vidbridge gc --versions --remote")
    show.say("where the present champion saw it, and is better for that: vidbridge promote --new-evaluation")
    show.say(
        "Copies of it are left until then in DVC's cache and remote (earlier data, contact sheets) and among decoded"
        " frames: vidbridge gc frees them once no branch, tag or champion needs them, so delete branches of earlier"
        " runs too (git branch -D runs/NAME). Not touched by either: the file in the source folder, pages of rollouts"
        " in MLflow, exports, and git's history."
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _plain(found: Consequences) -> dict[str, Any]:
    return {
        "videos": [
            {
                "video": video.path,
                "sha256": [one.sha256 for one in video.videos],
                "clips": video.clip_ids,
                "splits": video.splits,
            }
            for video in found.videos
        ],
        "samples": None
        if found.samples is None
        else {
            "total": found.samples.total,
            "showing": {f"{split}/{task}": count for (split, task), count in found.samples.showing.items()},
        },
        "versions": [
            {
                "model": one.version.model,
                "version": one.version.number,
                "aliases": one.version.aliases,
                "trained": one.seen.trained,
                "scored": one.seen.scored,
                "unknown": one.seen.unknown,
            }
            for one in found.affected
        ],
        "clean_versions": found.clean,
        "registry": found.registry,
        "run_again": found.again,
        "refs": found.refs,
        "skipped": found.skipped,
    }
