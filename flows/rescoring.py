"""Before the gate: score the champion on the candidate's evaluation where it never was, so that new videos do not end every comparison.

New videos in the held-out split, another prompt or another judge make another evaluation, and only scores of one evaluation are
compared. The champion's weights are in DVC's cache or its remote, so it can be asked again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from flows.errors import FlowError
from flows.processes import stream
from flows.project import stage_environment
from stages.tracking import gate


def rescore_champion(root: Path, version: str | None, log: Callable[[str], None]) -> bool:
    """Score the champion on the evaluation of ``version`` (the candidate when None), if that is missing; whether it was done.

    The evaluation is that of the project's present data and parameters.

    Raises:
        FlowError: the champion could not be scored.
        TrackingError: the store does not answer, or the present state is not the one the candidate was scored in.
    """
    if (found := gate.champion_to_rescore(root, version)) is None:
        return False
    champion, digest = found
    log(f"the champion, version {champion.number}, was scored under another evaluation; scoring it under {digest}")
    folder = gate.load_checkpoint(root, champion.number)
    with tempfile.TemporaryDirectory(prefix="vidbridge-") as place:
        out = Path(place) / "scores.json"
        command = [sys.executable, "-m", "stages", "rescore", f"version-{champion.number}", str(folder), str(out)]
        status = stream(command, root, stage_environment(root), log)
        if status:
            raise FlowError(
                f"champion: version {champion.number} could not be scored under evaluation {digest} (status {status}, see above);"
                " mend the cause, or hold the candidate against the baselines only: vidbridge promote --new-evaluation"
            )
        gate.add_scores(root, champion, digest, out.read_text(encoding="utf-8"))
    return True
