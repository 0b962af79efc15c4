"""What MLflow remembers of earlier runs: volatile facts that no DVC out may hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.tracking.runs import TAG
from stages.tracking.store import experiment_id, open_client


@dataclass(frozen=True)
class Cost:
    """What one stage cost: seconds on the clock and of CPU, with its imports unless a warm process had made them, and its peak of
    resident memory."""

    wall_s: float
    cpu_s: float
    peak_gb: float


def latest_costs(root: Path) -> dict[str, Cost]:
    """Cost of the latest finished run of each stage, by the stage's name. Stages that never ran here are missing.

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
    costs: dict[str, Cost] = {}
    for run in runs:
        figures = run.data.metrics
        if "process/wall_s" in figures:
            cost = Cost(figures["process/wall_s"], figures["process/cpu_s"], figures["process/peak_gb"])
            costs.setdefault(run.data.tags[TAG + "stage"], cost)
    return costs
