"""The gate as a flow: its verdict stands in Prefect, readable, beside the run that led to it."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.rescoring import promote
from stages.tracking.gate import Promotion


@flow(name="vidbridge-promotion", persist_result=False, validate_parameters=False)
def promotion(
    root: Path,
    version: str | None = None,
    author: str | None = None,
    reason: str = "",
    new_evaluation: bool = False,
) -> Promotion:
    """Put the gate to ``version`` (the newest candidate when None). A refusal is an answer: the run completes, and says why.

    A champion that was scored under another evaluation is scored again first, unless ``new_evaluation`` says to leave it.

    Raises:
        FlowError: the champion could not be scored again.
        TrackingError: the store does not answer, or there is no such version.
    """
    logger = get_run_logger()
    decided = promote(Path(root), version, logger.info, author=author, reason=reason, new_evaluation=new_evaluation)
    logger.info("version %d %s", decided.candidate.number, "is champion" if decided.moved else "was refused")
    for line in decided.decision.reasons:
        logger.info(line)
    create_markdown_artifact(key="verdict", markdown=decided.verdict, description="The gate's verdict")
    return decided
