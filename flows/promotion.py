"""The gate as a flow: its verdict stands in Prefect, readable, beside the run that led to it.

Before the gate, the champion is scored on the candidate's evaluation where it never was, so that
new videos do not end every comparison: new videos in the held-out split, another prompt or another
judge make another evaluation, and only scores of one evaluation are compared. The champion's
weights are in DVC's cache or its remote, so it can be asked again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Failed

from flows.errors import FlowError
from flows.processes.environment import stage_environment
from flows.processes.locks import only_run
from flows.processes.lost import at_work
from flows.processes.stream import stream
from stages.errors import VidbridgeError
from stages.runtime.paths import SAMPLE_SCORES_FILE, SCORES_FILE
from stages.runtime.plain import fit, one_line
from stages.tracking.gate import promote as gate
from stages.tracking.gate.access import check_rights
from stages.tracking.gate.promote import Promotion
from stages.tracking.gate.rescore import add_scores, champion_to_rescore
from stages.tracking.registry.versions import Version, load_version
from stages.tracking.session import Session


@flow(name="vidbridge-promotion", persist_result=False, validate_parameters=False)
def promotion(
    session: Session,
    version: str | None = None,
    author: str | None = None,
    reason: str = "",
    new_evaluation: bool = False,
) -> Promotion | State[Any]:
    """Put the gate to ``version`` (the newest candidate when None). A refusal is a result: the run
    completes, and reports the reason.

    A champion that was scored under another evaluation is scored again first, unless
    ``new_evaluation`` says to leave it.

    Ends as failed, with the error as its result, when the champion could not be scored again, the
    store does not answer, or there is no such version: Prefect would show an exception's traceback.
    """
    logger = get_run_logger()
    try:
        with at_work():  # scoring the champion again may take hours
            if not new_evaluation:
                rescore_champion(session, version, logger.info)
            decided = gate.promote(session, version, author=author, reason=reason, new_evaluation=new_evaluation)
    except VidbridgeError as error:
        return Failed(message=fit(error), data=error)
    logger.info("version %d %s", decided.candidate.number, "is champion" if decided.moved else "was refused")
    for line in decided.decision.reasons:
        logger.info(one_line(line))
    create_markdown_artifact(key="verdict", markdown=decided.verdict, description="The gate's verdict")
    return decided


def rescore_champion(session: Session, version: str | None, log: Callable[[str], None]) -> None:
    """Score the champion on the evaluation of ``version`` (the candidate when None) if those scores
    are missing.

    Raises:
        FlowError: the champion could not be scored.
        TrackingError: the store does not answer, or the present state is not the one the candidate
            was scored in.
    """
    if (found := champion_to_rescore(session, version)) is None:
        return
    champion, digest = found
    log(f"the champion, version {champion.number}, was scored under another evaluation; scoring it under {digest}")
    rescore(
        session,
        champion,
        digest,
        log,
        "hold the candidate against the baselines only: vidbridge promote --new-evaluation",
    )


def rescore(session: Session, version: Version, digest: str, log: Callable[[str], None], otherwise: str) -> None:
    """Score a version under the evaluation ``digest``, which must be that of the project's present
    data and parameters.

    ``otherwise`` names what else can be done when that fails.

    Raises:
        FlowError: it could not be scored, or a run holds the project, whose data and parameters
            would change under it.
        TrackingError: the present state is another evaluation, the version's weights are not to be
            had, or this account may not write scores on it.
    """
    root = session.root
    with only_run(root), tempfile.TemporaryDirectory(prefix="vidbridge-") as place:
        check_rights(session)
        folder = load_version(root, version)
        command = [sys.executable, "-m", "stages", "rescore", f"version-{version.number}", str(folder), place]
        status = stream(command, root, stage_environment(root), log)
        if status:
            raise FlowError(
                f"version {version.number}",
                f"scoring under evaluation {digest} failed with status {status}, see above",
                f"fix the cause, or {otherwise}",
            )
        table, samples = (
            (Path(place) / name).read_text(encoding="utf-8") for name in (SCORES_FILE, SAMPLE_SCORES_FILE)
        )
        add_scores(session, version, digest, table, samples)
