"""``vidbridge predict``, ``serve``, ``export`` and ``report``: answers, a server, weights or a page
of a registered version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import app, complete
from flows.errors import UsageError


def predict(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    question: Annotated[str, typer.Option("--question", "-q", help="Question about the video.")],
    version: Annotated[
        str | None,
        typer.Option(
            help="A version's number, champion, or models:/NAME@champion; default: champion.",
            autocompletion=complete.versions,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="models:/NAME@champion, models:/NAME/7, or a folder that `vidbridge export` wrote; needs no project."
        ),
    ] = None,
) -> None:
    """Query a registered model about a video.

    Outside of a project MLFLOW_TRACKING_URI and VIDBRIDGE_DVC_REMOTE (a URL) say where it comes
    from.

    Example: vidbridge predict clip.mp4 --question "What happens first?"
    """
    uri = app.version_of(version, model if model is not None and model.startswith("models:") else None)
    folder = Path(model) if model is not None and not model.startswith("models:") else None
    if folder is not None and version is not None:
        raise UsageError("--version, --model", "contradict each other", "set one of them")
    _predict(video.expanduser().resolve(), question, uri, app.as_typed(folder))


def serve(
    version: app.VersionOption = None,
    model: app.ModelOption = None,
    videos: Annotated[Path | None, typer.Option(help="Folder whose videos a request may name; default: none.")] = None,
    host: Annotated[str, typer.Option(help="Address or name to listen on, IPv4 or IPv6.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.")] = 0,
) -> None:
    """Answer questions about videos over HTTP until Ctrl-C.

    Example: vidbridge serve --videos data/corpus/videos

    Only this machine can send requests; another --host needs VIDBRIDGE_SERVE_KEY, which clients
    send as a bearer token. Outside of a project MLFLOW_TRACKING_URI and VIDBRIDGE_DVC_REMOTE (a
    URL) say where the model comes from; it is kept in VIDBRIDGE_CACHE.

    Example: vidbridge serve --model models:/vidbridge-tiny@champion
    """
    which, session = app.version_of(version, model), app.reader()
    from flows.serving import model as serving

    serving.serve(session, which, videos.resolve() if videos else None, host, port)


def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    version: app.VersionOption = None,
    model: app.ModelOption = None,
) -> None:
    """Write a version as a Hugging Face folder with a model card.

    For vllm serve, or the hub. Outside of a project MLFLOW_TRACKING_URI and VIDBRIDGE_DVC_REMOTE (a
    URL) say where it comes from.

    Example: vidbridge export ~/model, or vidbridge export ~/model --model models:/vidbridge-tiny/7
    """
    which, session = app.version_of(version, model), app.reader()
    from flows.console import champion, show
    from stages.tools.serving.export import export_version

    folder = folder.resolve()
    champion.warn_of_moved(session, which)
    exported = export_version(session, which, folder)
    show.say(
        f"written: {folder} (version {exported.version.number}, {exported.version.stage},"
        f" {exported.size_bytes / 1e6:,.1f} MB)"
    )
    show.show_next(show.console(), exported.vllm, f"mlflow models serve -m {folder} --env-manager local")


def report(out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html")) -> None:
    """Write one HTML page of scores, curves, versions and costs.

    It opens offline. Example: vidbridge report --out results.html
    """
    from flows.console import show
    from stages.tools.report.page import build

    out = out.resolve()
    build(app.root(), out)
    show.say(f"written: {out} (opens offline)")


def _predict(video: Path, question: str, version: str, model: Path | None) -> None:
    """Query a registered model, or an exported folder, about a video; prints its thinking, its
    answer, and whether the reply parses.

    Raises:
        UsageError: the video does not exist, or no registry can be queried.
        VideoError: the file is not a video.
    """
    from rich.table import Table

    from flows.cli.outside import reader
    from flows.console import champion, show
    from stages.runtime.plain import plain
    from stages.runtime.project import ProjectError

    if not video.is_file():
        raise UsageError("video", f"{str(video)!r} is not a file", "pass the path of a video")
    from stages.tools.serving import predict as prediction

    if model is not None:
        reply = prediction.predict_with(model, video, question, _tell)
    else:
        try:
            session = reader()
        except (UsageError, ProjectError) as error:
            prediction.check_video(video)
            remedy = f"{error.remedy}; or name a folder that `vidbridge export` wrote: --model FOLDER"
            raise UsageError.from_error(error, remedy=remedy) from error
        reply = prediction.predict(session, video, question, version, _tell)
        champion.warn_of_moved(session, version)
    table = Table(box=None, show_header=False, pad_edge=False)
    if reply.answer is None:
        table.add_row("reply", plain(reply.text))
        table.add_row("parses", "no: it is not one think block followed by one answer block")
    else:
        table.add_row("thinking", plain(reply.thinking or ""))
        table.add_row("answer", plain(reply.answer))
        table.add_row("parses", "yes")
    out = show.console()
    out.print(table)
    if reply.caution:
        out.print(f"note: {reply.caution}", style="yellow")
    for warning in reply.warnings:
        out.print(f"note: {plain(warning)}", style="yellow", markup=False)


def _tell(what: str) -> None:
    from flows.console import show

    show.say(f"{what} …", error=True)
