"""Scores by sample of a version: record their location, and read them for paired comparisons.

Nothing is copied at registration. An evaluated row's ``predictions.jsonl`` and its samples are outs
of DVC, in the cache and the remote like the weights, so a version's tag names their hashes. A
version that was scored again under a later evaluation has no such out; its scores by sample are a
file of an MLflow run, which the tag names instead, with its digest: an account that may write to
that run need not be allowed to change the version.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from stages.domain.core.records import Sample, Score
from stages.domain.statistics.paired import Comparison, SampleScore, compare
from stages.runtime.paths import PREDICTIONS_FILE, SAMPLE_SCORES_FILE
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.versions import Version
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import experiment_id
from stages.tracking.session import Session

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def compare_versions(
    session: Session, after: Version, before: Version, digest: str, *, confidence: float, tasks: list[str] | None
) -> Comparison:
    """Compare ``after`` - ``before``, sample by sample, under the evaluation ``digest``. ``tasks``:
    only these; None: all.

    Raises:
        TrackingError: the scores by sample of one of them are not available, or the two have no
            sample in common.
    """
    for version in (after, before):
        _location(version, digest)  # before DVC is opened, which takes a second
    ours, theirs = (read_samples(session.client, session.content, version, digest) for version in (after, before))
    if tasks is not None:
        ours, theirs = ([row for row in rows if row.task in tasks] for rows in (ours, theirs))
    try:
        return compare(ours, theirs, confidence=confidence)
    except ValueError as error:
        remedy = "score both on the same samples: check out the newer one's runs/ branch and type vidbridge promote"
        raise TrackingError(f"{after.model} versions {after.number} and {before.number}", str(error), remedy) from error


def read_samples(client: MlflowClient, content: ContentStore, version: Version, digest: str) -> list[SampleScore]:
    """Read the scores by sample of ``version`` under the evaluation ``digest``.

    Raises:
        TrackingError: they were not recorded, or are not available here.
    """
    name = f"{version.model} version {version.number}"
    location = _location(version, digest)
    try:
        if "run" in location:
            return list(_of_run(client, location, name))
        card = version.scores
        assert card is not None, "outs of DVC belong to the version's own evaluation"
        return list(_of_outs(content, location, card.split, name))
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else "not UTF-8"
        raise TrackingError(name, f"scores by sample: {first}", "evaluate it again") from error


def keep_samples(session: Session, version: Version, digest: str, text: str) -> None:
    """Store the scores by sample of ``version`` under ``digest``, JSON lines of SampleScore, after
    it was scored again."""
    client = session.client
    tags = {TAG + "kind": "rescore", TAG + "version": f"{version.model}/{version.number}", TAG + "digest": digest}
    run = client.create_run(
        experiment_id(client, session.root), run_name=f"rescore version {version.number}", tags=tags
    )
    client.log_text(run.info.run_id, text, SAMPLE_SCORES_FILE)
    client.set_terminated(run.info.run_id)
    location = json.dumps({"run": run.info.run_id, "sha256": _sha256(text)})
    client.set_model_version_tag(version.model, str(version.number), f"{TAG}samples.{digest}", location)


def _location(version: Version, digest: str) -> dict[str, str]:
    location = version.samples_under(digest)
    if location is None:
        raise TrackingError(
            f"{version.model} version {version.number}",
            f"its scores by sample under evaluation {digest} were not kept",
            "run vidbridge register where its dvc.lock is checked out",
        )
    return location


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _of_run(client: MlflowClient, location: dict[str, str], name: str) -> Iterator[SampleScore]:
    from mlflow.exceptions import MlflowException

    run_id = location["run"]

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(client.download_artifacts(run_id, SAMPLE_SCORES_FILE, folder))
            text = path.read_bytes().decode()
        except (MlflowException, OSError) as error:
            raise TrackingError(
                name,
                f"its scores by sample lie with run {run_id}, which cannot be read from here ({error})",
                "with one database for several machines use an MLflow server, which keeps files too",
            ) from error
    if _sha256(text) != location["sha256"]:
        raise TrackingError(
            name,
            f"run {run_id} holds other scores by sample than were kept with the version",
            f"see who may write to"
            f" its experiment, and remove the tag {TAG}samples.… of the version: the next vidbridge promote scores it"
            " again",
        )
    for line in text.splitlines():
        yield SampleScore.model_validate_json(line)


def _of_outs(content: ContentStore, location: dict[str, str], split: str, name: str) -> Iterator[SampleScore]:
    text = content.read(location["predictions"], PREDICTIONS_FILE)
    if text is None:
        raise TrackingError(name, f"{location['predictions']} holds no {PREDICTIONS_FILE}", "evaluate it again")
    samples: dict[str, Sample] = {}
    for path in content.files(location["samples"]):
        if path.startswith(f"{split}/") and path.endswith(".jsonl"):
            content_of_file = content.read(location["samples"], path) or b""
            rows = (Sample.model_validate_json(line) for line in content_of_file.splitlines())
            samples |= {sample.sample_id: sample for sample in rows}
    for line in text.decode().splitlines():
        score = Score.model_validate_json(line)
        if score.sample_id not in samples:
            raise TrackingError(
                name, f"sample {score.sample_id!r} is not among the samples it was made from", "evaluate it again"
            )
        yield SampleScore.of(samples[score.sample_id], score)
