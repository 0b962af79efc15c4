"""``vidbridge promote``, ``rollback``, ``history``, ``compare`` and ``explain``: questions to the registry, answered in the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from flows import preflight
from flows.cli.outside import WAYS
from flows.console import show
from flows.console.registry import comparison_table, explanation_table, history_table, promotion_table
from flows.errors import FlowError, UsageError
from flows.processes import prefect_server
from flows.recipes import default_params
from flows.repro import registered
from stages.runtime import paths
from stages.tracking.gate import promote as gate
from stages.tracking.gate.promote import Promotion
from stages.tracking.registry.compare import compare_pair, pair
from stages.tracking.registry.explain import explain as explain_version
from stages.tracking.registry.versions import CANDIDATE, find_version
from stages.tracking.session import Session


def promote(session: Session, version: str | None, reason: str, author: str | None, new_evaluation: bool) -> bool:
    """Put the gate to a version, as a run of the flow `vidbridge-promotion`, and show its verdict; False when it was refused.

    The run is on the Prefect server at hand, else on one of our own for as long as it takes; its artefact stays in the project's
    Prefect database, where `vidbridge ui` shows it.
    """
    # Before a server is started for it: the answer to a version that is not there takes a second, and so does that to who may not.
    find_version(session.client, session.params.gate.registered_model, version or CANDIDATE)
    gate.check_rights(session)
    preflight.check_prefect()
    root = session.root
    with prefect_server.starting(root) as starting:
        # This import takes as long as the server's start: they go on side by side.
        from flows.promotion import promotion

        with prefect_server.connected(starting):
            ended: Any = promotion(session, version, author=author, reason=reason, new_evaluation=new_evaluation, return_state=True)
            decided = ended.result(raise_on_failure=False)
    if isinstance(decided, BaseException):
        raise decided
    if not isinstance(decided, Promotion):
        raise FlowError(f"promote: ended as {ended.name}: {ended.message}")
    out = show.console()
    out.print(promotion_table(decided))
    if decided.moved:
        registered.promoted(root, decided.candidate.number)
        clip = next(iter(sorted((root / paths.CORPUS / "videos").glob("test-*.mp4"))), None)
        video = clip.relative_to(root) if clip else "VIDEO"
        show.show_next(
            out, "vidbridge explain champion", f'vidbridge predict {video} --question "describe the video ."', "vidbridge report"
        )
    return decided.moved


def rollback(session: Session, reason: str, author: str | None) -> None:
    moved = gate.rollback(session, author=author, reason=reason)
    show.say(f"version {moved.candidate.number} is champion again, instead of {moved.champion.number if moved.champion else '–'}")


def history(session: Session, model: str | None, as_json: bool) -> None:
    """Show every decision about one's own registered model, or ``model``; for a person or for a program."""
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
        show.console().print(json.dumps(rows, indent=2), soft_wrap=True)
        return
    show.console().print(history_table(entries) if entries else "nothing was decided yet; type: vidbridge promote")


def compare(session: Session, after: str, before: str) -> None:
    """Show what ``after`` gained over ``before``, sample by sample; where they were scored differently, score one of them again.

    Raises:
        UsageError: one is to be scored again, which takes a project.
    """
    asked = pair(session, after, before)
    out = show.console()
    if asked.to_rescore is not None:
        if session.project is None:
            raise UsageError(
                f"compare: version {asked.to_rescore.number} was not scored under evaluation {asked.digest}, and scoring it again takes the"
                f" project's samples; {WAYS.partition(', or')[0]}"
            )
        out.print(f"version {asked.to_rescore.number} was not scored under evaluation {asked.digest}; scoring it now")
        from flows.promotion import rescore  # Prefect's import, which a comparison without it need not wait for

        rescore(session, asked.to_rescore, asked.digest, out.print, "compare versions of one evaluation")
        asked = pair(session, after, before)
    params = session.params if session.project is not None else default_params()
    confidence = params.evaluation.confidence
    out.print(comparison_table(asked, compare_pair(session, asked, confidence), confidence))


def explain(session: Session, version: str) -> None:
    show.console().print(explanation_table(explain_version(session, version)))
