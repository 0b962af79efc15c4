"""What MLflow remembers of earlier runs: volatile facts that no DVC out may hold."""

from __future__ import annotations

from pathlib import Path

from stages.tracking.runs import TAG
from stages.tracking.store import experiment_id, open_client


def latest_durations_s(root: Path) -> dict[str, float]:
    """Wall seconds of the latest finished run of each stage, by the stage's name. Stages never run here are missing.

    Raises:
        TrackingError: the store does not answer.
    """
    client = open_client(root)
    runs = client.search_runs(
        [experiment_id(client, root)],
        f"tags.`{TAG}kind` = 'stage' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1000,
    )
    durations: dict[str, float] = {}
    for run in runs:
        durations.setdefault(run.data.tags[TAG + "stage"], (run.info.end_time - run.info.start_time) / 1000)
    return durations
