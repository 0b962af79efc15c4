"""The gate as a flow: its verdict stands in Prefect, readable, beside the run that led to it."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Failed

from flows.processes.lost import at_work
from flows.rescoring import promote
from stages.errors import VidbridgeError
from stages.runtime.plain import fit, one_line
from stages.tracking.gate.promote import Promotion
from stages.tracking.session import Session


@flow(name="vidbridge-promotion", persist_result=False, validate_parameters=False)
def promotion(
    session: Session,
    version: str | None = None,
    author: str | None = None,
    reason: str = "",
    new_evaluation: bool = False,
) -> Promotion | State[Any]:
    """Put the gate to ``version`` (the newest candidate when None). A refusal is an answer: the run completes, and says why.

    A champion that was scored under another evaluation is scored again first, unless ``new_evaluation`` says to leave it.

    Ends as failed, with the error as its result, when the champion could not be scored again, the store does not answer, or there is no
    such version: Prefect would show an exception's traceback.
    """
    logger = get_run_logger()
    try:
        with at_work():  # scoring the champion again may take hours
            decided = promote(session, version, logger.info, author=author, reason=reason, new_evaluation=new_evaluation)
    except VidbridgeError as error:
        return Failed(message=fit(error), data=error)
    logger.info("version %d %s", decided.candidate.number, "is champion" if decided.moved else "was refused")
    for line in decided.decision.reasons:
        logger.info(one_line(line))
    create_markdown_artifact(key="verdict", markdown=decided.verdict, description="The gate's verdict")
    return decided
