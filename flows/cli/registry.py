"""``vidbridge register``, ``promote``, ``rollback``, ``history``, ``compare``, ``explain``: queries
to the registry, answered in the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import app, complete

if TYPE_CHECKING:
    from stages.tracking.session import Session


def register() -> None:
    """Register each checkpoint in dvc.lock as a model version.

    Needed only after a plain `dvc repro`; `vidbridge run` does it itself.

    Example: dvc repro && vidbridge register
    """
    session = app.session()
    from flows.console import show
    from flows.console.registry import register_table
    from flows.processes.locks import only_run
    from flows.repro import registered
    from stages.tracking.registry.register import register as reconcile

    with only_run(session.root):  # a run is just writing the lock that is read here
        report = reconcile(session)
        registered.write(session, report)
    show.console().print(register_table(report))


def promote(
    version: Annotated[
        str | None,
        typer.Argument(help="Version to promote; default: the newest candidate.", autocompletion=complete.versions),
    ] = None,
    reason: Annotated[str, typer.Option(help="Reason, kept in the history.")] = "",
    author: Annotated[
        str | None, typer.Option(help="Author of the decision; default: git's user.name and user.email.")
    ] = None,
    new_evaluation: Annotated[
        bool,
        typer.Option(
            "--new-evaluation",
            help="Do not score the champion again when the evaluation changed: compare with the baselines only.",
        ),
    ] = False,
) -> None:
    """Let the gate compare a candidate with the champion.

    If the candidate is better, the alias `champion` moves to it.

    Example: vidbridge promote, or vidbridge promote 7 --reason "better on captions"
    """
    from flows.console import show
    from flows.console.registry import promotion_table
    from flows.errors import FlowError
    from flows.processes import prefect_server
    from flows.repro import preflight, registered
    from stages.runtime import paths
    from stages.tracking.gate.access import check_rights
    from stages.tracking.gate.promote import Promotion
    from stages.tracking.registry.versions import CANDIDATE, find_version

    session = app.session()
    root = session.root
    # Before a server is started for it: the answer to a version that is not there takes a second,
    # and so does that to who may not.
    find_version(session.client, session.params.gate.registered_model, version or CANDIDATE)
    check_rights(session)
    preflight.check_prefect()
    with prefect_server.starting(root) as starting:
        # This import takes as long as the server's start: they go on side by side.
        from flows.promotion import promotion

        with prefect_server.connected(starting):
            ended: Any = promotion(
                session, version, author=author, reason=reason, new_evaluation=new_evaluation, return_state=True
            )
            decided = ended.result(raise_on_failure=False)
    if isinstance(decided, BaseException):
        raise decided
    if not isinstance(decided, Promotion):
        raise FlowError("promote", f"ended as {ended.name}: {ended.message}", "see the lines above, and try again")
    out = show.console()
    out.print(promotion_table(decided))
    if decided.moved:
        registered.promoted(root, decided.candidate.number)
        clip = next(iter(sorted((root / paths.CORPUS / "videos").glob("test-*.mp4"))), None)
        video = clip.relative_to(root) if clip else "VIDEO"
        show.show_next(
            out,
            "vidbridge explain champion",
            f'vidbridge predict {video} --question "describe the video ."',
            "vidbridge report",
        )
    if not decided.moved:
        raise typer.Exit(app.FAILURE)


def rollback(
    reason: Annotated[str, typer.Option(help="Reason, kept in the history.")] = "",
    author: Annotated[
        str | None, typer.Option(help="Author of the decision; default: git's user.name and user.email.")
    ] = None,
) -> None:
    """Move the alias back to the champion before this one. Example: vidbridge rollback --reason
    "fails on night scenes"
    """
    from flows.console import show
    from stages.tracking.gate import promote as gate

    moved = gate.rollback(app.session(), author=author, reason=reason)
    show.say(
        f"version {moved.candidate.number} is champion again, instead of"
        f" {moved.champion.number if moved.champion else '–'}"
    )


def history(
    model: Annotated[
        str | None,
        typer.Option(
            help="A registered model; default: the project's own, outside of one VIDBRIDGE_MODEL.",
            autocompletion=complete.models,
        ),
    ] = None,
    as_json: app.JsonOption = False,
) -> None:
    """Show every promotion, refusal and rollback.

    Each with its author and reason. Needs no project where MLFLOW_TRACKING_URI is set.

    Example: vidbridge history
    """
    session = app.reader()
    from dataclasses import asdict

    from flows.console import show
    from flows.console.registry import history_table
    from stages.tracking.gate import promote as gate

    entries = gate.history(session, model)
    if as_json:
        rows = [
            {
                "number": e.number,
                "standing": e.standing,
                "done": e.done,
                "proven": e.proven,
                **asdict(e.decided),
                "verdict": e.verdict,
            }
            for e in entries
        ]
        show.document(rows)
        return
    show.console().print(history_table(entries) if entries else "nothing was decided yet; type: vidbridge promote")


def compare(
    after: Annotated[
        str, typer.Argument(help="A version's number, an alias, or models:/NAME/7.", autocompletion=complete.versions)
    ] = "candidate",
    before: Annotated[
        str, typer.Argument(help="The version to compare with.", autocompletion=complete.versions)
    ] = "champion",
    as_json: app.JsonOption = False,
) -> None:
    """Compare two versions sample by sample.

    Prints differences with intervals, and whether chance explains them. Outside of a project name
    the model: models:/NAME/7 5

    Example: vidbridge compare 7 5
    """
    session = app.reader()
    compare_versions(session, after, before, as_json=as_json)


def explain(version: app.VersionArgument = "champion", as_json: app.JsonOption = False) -> None:
    """Show the origin and the scores of a version.

    Prints its commit, data, parameters, scores, ancestors and verdict. Needs no project where
    MLFLOW_TRACKING_URI is set.

    Example: vidbridge explain champion, or vidbridge explain models:/vidbridge-tiny/7
    """
    session = app.reader()
    from flows.console import show
    from flows.console.documents import explanation_document
    from flows.console.registry import explanation_table
    from stages.tracking.registry.explain import explain as explain_version

    explained = explain_version(session, version)
    if as_json:
        show.document(explanation_document(explained))
    else:
        show.console().print(explanation_table(explained))


def compare_versions(session: Session, after: str, before: str, *, as_json: bool = False) -> None:
    """Print the gain of ``after`` over ``before``, sample by sample; if they were scored
    differently, score one of them again.

    Raises:
        UsageError: one is to be scored again, which takes a project.
    """
    from flows.cli.outside import WAYS
    from flows.console import show
    from flows.console.documents import comparison_document
    from flows.console.registry import comparison_table
    from flows.errors import UsageError
    from flows.params_file.recipes import default_params
    from stages.tracking.registry.compare import compare_pair, find_pair

    versions = find_pair(session, after, before)
    out, progress = show.console(), show.console(error=as_json)
    if versions.to_rescore is not None:
        if session.project is None:
            raise UsageError(
                "compare",
                f"version {versions.to_rescore.number} was not scored under evaluation {versions.digest}, and"
                f" scoring it again takes the project's samples",
                f"{WAYS.partition(', or')[0]}",
            )
        progress.print(
            f"version {versions.to_rescore.number} was not scored under evaluation {versions.digest}; scoring it now"
        )
        from flows.promotion import rescore  # Prefect's import, which a comparison without it need not wait for

        rescore(session, versions.to_rescore, versions.digest, progress.print, "compare versions of one evaluation")
        versions = find_pair(session, after, before)
    params = session.params if session.project is not None else default_params()
    confidence = params.evaluation.confidence
    comparison = compare_pair(session, versions, confidence)
    if as_json:
        show.document(comparison_document(versions, comparison, confidence))
    else:
        out.print(comparison_table(versions, comparison, confidence))
