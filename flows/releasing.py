"""``vidbridge promote``, ``rollback``, ``history`` and ``explain``: questions to the registry, answered in the terminal."""

from __future__ import annotations

import os
from pathlib import Path

from flows import rescoring, show
from stages import layout
from stages.tracking import gate
from stages.tracking.explain import explain as explain_version
from stages.tracking.render import explanation_table, history_table, promotion_table


def promote(root: Path, version: str | None, reason: str, new_evaluation: bool) -> bool:
    """Put the gate to a version and show its verdict; False when it was refused.

    With a Prefect server at hand (``PREFECT_API_URL``) this is a run of the flow `vidbridge-promotion`; a server of our own would
    take longer to start than the gate to decide.
    """
    if os.environ.get("PREFECT_API_URL"):
        from flows.promotion import promotion

        decided = promotion(root, version, reason=reason, new_evaluation=new_evaluation)
    else:
        decided = rescoring.promote(root, version, show.console().print, reason=reason, new_evaluation=new_evaluation)
    out = show.console()
    out.print(promotion_table(decided))
    if decided.moved:
        clip = next(iter(sorted((root / layout.CORPUS / "videos").glob("test-*.mp4"))), None)
        video = clip.relative_to(root) if clip else "VIDEO"
        show.show_next(
            out, "vidbridge explain champion", f'vidbridge predict {video} --question "describe the video ."', "vidbridge report"
        )
    return decided.moved


def rollback(root: Path, reason: str) -> None:
    moved = gate.rollback(root, reason=reason)
    show.console().print(
        f"version {moved.candidate.number} is champion again, instead of {moved.champion.number if moved.champion else '–'}"
    )


def history(root: Path) -> None:
    events = gate.history(root)
    show.console().print(history_table(events) if events else "no champion yet; type: vidbridge promote")


def explain(root: Path, version: str) -> None:
    show.console().print(explanation_table(explain_version(root, version)))
