"""``vidbridge data``: check, cut, browse, export and remove videos and samples. Runs no stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from flows.cli import app
from flows.errors import UsageError

#: Maximum number of displayed names that DVC cannot store.
_NAMES = 3
#: Key of params.yaml to what was typed here in its place.
_TYPED = {"ingest.source": "folder", "ingest.annotations": "--annotations", "ingest.videos": "--videos"}

Name = TypeVar("Name", bound=str)


def check(
    folder: Annotated[
        str, typer.Argument(help="Folder with videos and their annotations, or its address (s3://, gs://, https://).")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            help="Format, such as coin, or a mapping (.yaml); default: ingest.format. An unknown name lists all."
        ),
    ] = None,
    annotations: Annotated[
        str | None, typer.Option(help="Annotation file in the folder, or wildcards; default: the format's usual one.")
    ] = None,
    videos: Annotated[
        str | None, typer.Option(help="Folder or address of the videos; default: beside the annotations.")
    ] = None,
    curate: Annotated[
        bool,
        typer.Option("--curate", help="Also find shots, static, black and letterboxed clips, and near-duplicates."),
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="List everything that is rejected.")] = False,
    as_json: app.JsonOption = False,
) -> None:
    """Show what ingest would accept and reject, and why.

    Writes nothing; exits with 1 if nothing would be accepted. What is fetched stays in
    VIDBRIDGE_SOURCE_CACHE. Example: vidbridge data check
    ~/coin --format coin
    """
    from flows.processes.environment import project_or_none

    places = (_place(folder), None if videos is None else _place(videos))
    found = _check(project_or_none(), *places, format, annotations, curate=curate, every=every, as_json=as_json)
    if not found:
        raise typer.Exit(app.FAILURE)


def cut(
    folder: Annotated[str, typer.Argument(help="Folder of this machine with recordings.")],
    out: Annotated[
        Path | None, typer.Option(help="Annotation file to write; default: annotations.jsonl in the folder.")
    ] = None,
    min_s: Annotated[float, typer.Option(min=0.1, help="Shortest clip, in seconds; shorter shots are left out.")] = 4,
    max_s: Annotated[
        float, typer.Option(min=0.2, help="Longest clip, in seconds; longer shots are divided evenly.")
    ] = 30,
    join: Annotated[
        bool, typer.Option("--join", help="Join shots that are too short to their neighbours instead.")
    ] = False,
    timeout_s: Annotated[float, typer.Option(min=1, help="Time limit for one recording, in seconds.")] = 3600,
    as_json: app.JsonOption = False,
) -> None:
    """Cut long recordings into clips at shot boundaries.

    Nothing is encoded: the clips are rows of an annotation file, each with video, start, end and
    source. Clips of one recording are never in two splits. Every recording is decoded once, about
    as fast as ffmpeg does; a cut that was stopped goes on where it was, and an ingest of the folder
    with `ingest.curate` needs no second decode.

    A shot shorter than --min-s is left out, or joined with --join, and then a clip may show several
    shots. A shot longer than --max-s gives several clips of equal length.

    Then: vidbridge data check FOLDER; set ingest.source to it; let `synthesize.writer.events` tell
    what happens.

    Example: vidbridge data cut ~/recordings --min-s 6 --max-s 20
    """
    from flows.processes.environment import project_or_none
    from stages.runtime.sources.addresses import is_remote

    if is_remote(folder):
        raise UsageError(
            "folder",
            f"{folder!r} is not on this machine",
            "cut a copy of its files; then name the rows as ingest.source, and the address as ingest.videos",
        )
    place = Path(folder).expanduser()
    target = (out.expanduser() if out else place / "annotations.jsonl").resolve()
    found = _cut(project_or_none(), place.resolve(), target, (min_s, max_s, join), timeout_s, as_json=as_json)
    if not found:
        raise typer.Exit(app.FAILURE)


def browse(
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("data.html"),
    samples: Annotated[int, typer.Option(min=1, help="Samples to show of each task and split.")] = 8,
) -> None:
    """Write one HTML page of samples, rejects and the data card.

    Samples are shown as film strips. Example: vidbridge data browse
    """
    from flows.console import show
    from stages.tools.dataset.browse import browse as write

    path = write(app.root(), out.resolve(), samples)
    show.say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB, opens offline)")


def export(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    kind: Annotated[
        str, typer.Option("--as", help="mp4 (videos, frame by frame), trl (JSONL and videos) or datasets (Parquet).")
    ] = "trl",
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of samples of each task and split.")] = None,
) -> None:
    """Write samples for other tools. A second call writes only the missing videos.

    Example: vidbridge data export proxies --as datasets --task dark_event_infer --task mix_vid_qa
    """
    _export(app.root(), out.resolve(), kind, task or [], split or [], limit)


def remove(
    videos: Annotated[list[str], typer.Argument(help="Videos: name in the annotations, path, clip id or SHA-256.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove; without this only print the consequences.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Restore videos that were removed by mistake.")] = False,
    as_json: app.JsonOption = False,
) -> None:
    """Take videos out of the data; list what has used them.

    Lists clips, samples and registered versions that used it, and the stages to run again. With
    --yes it is added to `ingest.exclude` in params.yaml: ingest sets it aside (removed-on-request),
    with every copy of the same bytes. Versions trained on it are tagged, and the gate accepts none
    of them, on any machine. A version whose data cannot be read counts as unknown, never as clean.

    Then: vidbridge run, vidbridge promote, and vidbridge gc, which frees the copies.

    Example: vidbridge data remove videos/a.mp4 --yes
    """
    from flows.housekeeping import removal

    removal.remove(app.root(), videos, yes=yes, undo=undo, as_json=as_json)


def _place(address: str) -> str:
    """An address as it was typed; a path of this machine in full."""
    from stages.runtime.sources.addresses import is_remote

    return address if is_remote(address) else str(Path(address).expanduser().resolve())


def _check(
    root: Path | None,
    source: str,
    videos: str | None,
    annotation_format: str | None,
    annotations: str | None,
    *,
    curate: bool,
    every: bool,
    as_json: bool,
) -> bool:
    """Print what ingest would accept and reject of a source, why, and the samples it would give;
    returns False if it accepts nothing.
    """
    from itertools import islice

    from flows.console import show
    from flows.console.data import checked_document, show_checked
    from flows.content.names import is_utf8, unstorable_names
    from flows.params_file.recipes import params_or_default
    from stages.runtime.paths import MAPPING_SUFFIXES
    from stages.runtime.sources.addresses import fault_of_address, fault_of_source, is_remote
    from stages.runtime.sources.failures import SourceAccessError
    from stages.tools.dataset.check import SourceError
    from stages.tools.dataset.check import check as examine

    if not is_utf8(source):
        raise UsageError("folder", f"{source!r}: its name is not UTF-8", "rename it")
    if (fault := fault_of_source(source)) is not None:
        raise UsageError("folder", *fault)
    if videos is not None and (fault := fault_of_address(videos)) is not None:
        raise UsageError("--videos", *fault)
    params, out = params_or_default(root), show.console()
    if annotation_format is None and root is not None and params.ingest.format.endswith(MAPPING_SUFFIXES):
        annotation_format = str(root / params.ingest.format)
    try:
        report = examine(params, source, annotation_format, annotations, videos, curate=curate)
    except (SourceError, SourceAccessError) as error:
        names = _TYPED if annotation_format is None else {**_TYPED, "ingest.format": "--format"}
        parts = [error.field, error.problem, error.remedy]
        for key, typed in names.items():
            parts = [part.replace(key, typed) for part in parts]
        raise UsageError(*parts) from error
    unstorable = [] if is_remote(source) else list(islice(unstorable_names(Path(source)), _NAMES))
    if as_json:
        show.document({"folder": source, "recipe": params.recipe, **checked_document(report), "unstorable": unstorable})
        return bool(report.clips)
    if root is None:
        out.print(f"no project here: with the parameters of the recipe {params.recipe}")
    show_checked(out, report, every=every)
    for problem in unstorable:
        out.print(problem, style="red", soft_wrap=True)
    return bool(report.clips)


def _cut(
    root: Path | None,
    folder: Path,
    out: Path,
    lengths: tuple[float, float, bool],
    timeout_s: float,
    *,
    as_json: bool,
) -> bool:
    """Cut the recordings of a folder, and print what came of it; returns False if no clip did."""
    from fractions import Fraction

    from flows.console import show
    from flows.console.data import cut_document, show_cut
    from flows.params_file.recipes import params_or_default
    from stages.tools.dataset.cut import Lengths
    from stages.tools.dataset.cut import cut as write

    least_s, most_s = (Fraction(str(seconds)) for seconds in lengths[:2])
    if most_s < 2 * least_s:
        raise UsageError(
            "--max-s",
            f"{lengths[1]:g} is less than twice --min-s, {lengths[0]:g}, so that halves of a shot would be too short",
            f"set {2 * lengths[0]:g} or more, or a smaller --min-s",
        )
    if not out.parent.is_dir():
        raise UsageError("--out", f"{str(out.parent)!r} is not a folder", "make it, or name a file in another one")
    chosen = Lengths(least_s, most_s, lengths[2])
    found = write(params_or_default(root), folder, out, chosen, timeout_s, in_project=root is not None)
    if as_json:
        show.document({"folder": str(folder), "out": str(out), **cut_document(found)})
    else:
        show_cut(show.console(), found, folder, out)
    return bool(found.clips)


def _export(root: Path, out: Path, kind: str, tasks: Sequence[str], splits: Sequence[str], limit: int | None) -> None:
    """Write samples for other tools, and print what was written and how to read it."""
    from flows.console import show
    from stages.domain.core.records import SPLITS
    from stages.params import load_params
    from stages.runtime.paths import PARAMS_FILE
    from stages.tools.dataset.export import KINDS
    from stages.tools.dataset.export import export as write

    kinds, names, wanted = (
        _among("--as", [kind], KINDS),
        _among("--task", tasks, load_params(root / PARAMS_FILE).synthesize.tasks.named),
        _among("--split", splits, SPLITS),
    )
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "README.md").exists())):
        raise UsageError(
            "out", f"{str(out)!r} holds something else", "name a new folder, or one that an export has made"
        )
    exported = write(root, out, kinds[0], names, wanted or SPLITS, limit)
    console = show.console()
    for (split, task), count in exported.samples.items():
        console.print(f"{count:>8,}  {task}, {split}")
    read = (
        "its samples.jsonl names each video" if kinds[0] == "mp4" else f"datasets.load_dataset({str(out)!r}) reads it"
    )
    show.say(f"written: {out} ({read}; README.md says what is in it)")


def _among(option: str, given: Sequence[str], known: Sequence[Name]) -> list[Name]:
    """Return the values of an option, each checked to be a known one."""
    for value in given:
        if value not in known:
            raise UsageError(option, f"{value!r} is unknown", f"choose among {', '.join(known)}")
    return [name for value in given for name in known if name == value]
