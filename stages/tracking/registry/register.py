"""Registration: after any ``dvc repro``, every saved checkpoint of the live rows becomes a model
version. Idempotent; copies no weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from stages.domain.core.records import Checkpoint
from stages.params import Params
from stages.runtime import paths
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.commits import holding_commit
from stages.tracking.lineage.git import head, is_repository
from stages.tracking.lineage.lockfile import StageRecord
from stages.tracking.lineage.pipeline import Pipeline, read_pipeline
from stages.tracking.lineage.source import Source
from stages.tracking.lineage.uri import TrackingError, experiment_name, patience_of_run_s, patiently
from stages.tracking.registry.ledger import ensure_model
from stages.tracking.registry.rights import LEDGER, prove_rights
from stages.tracking.registry.score_cards import parse_baselines, parse_kept, parse_scores
from stages.tracking.registry.servable import USAGE, usage_of
from stages.tracking.registry.versions import CANDIDATE, Version, all_versions
from stages.tracking.runs.outbox import ArtifactStoreError, send_unsent
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import experiment_id, is_away, locked, retry_on_conflict, store_error
from stages.tracking.session import Session

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

#: Tags that are updated; every other tag is written once.
MUTABLE = ("scores", "baselines", "samples", "gauges", "lock_commit", USAGE)
#: Number of values of each gauge that a version keeps: more than `gate.gauges.last` may request.
GAUGE_VALUES = 100
GAUGE = "gauge/"
REGISTER_WAIT_S = 600


@dataclass(frozen=True)
class RegisterReport:
    """Result of `register`.

    ``pushed``: objects that were new to the remote, None without a remote. ``unsent``: entries of
    earlier runs, sent only now. ``unregistered``: stages whose checkpoints are not versions, and
    why; ``skipped``: those reasons, each once.
    """

    model: str
    created: tuple[Version, ...]
    kept: int
    updated: tuple[int, ...]
    candidate: int | None
    pushed: int | None
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]
    unsent: int
    unregistered: Mapping[str, str]


@dataclass(frozen=True)
class _ExpectedVersion:
    """A version that should exist."""

    source: str
    stage: str
    row: str
    tags: Mapping[str, str]
    final: bool


def register(session: Session) -> RegisterReport:
    """Push the outs of ``dvc.lock`` to the DVC remote, create missing model versions and update
    tags.

    Raises:
        TrackingError: the store or the remote does not answer, an object is missing, a file is
            damaged, or this account lacks the rights.
    """
    from mlflow.exceptions import MlflowException

    model = session.params.gate.registered_model
    session.client  # noqa: B018 - a store that is away is waited for before the lock is taken
    with locked(session.root / paths.STATE / "register.lock", REGISTER_WAIT_S):
        try:
            # All of it may be repeated, so a server that goes away in the middle is waited for.
            return patiently(lambda: _reconcile(session), patience_of_run_s(), is_away)
        except (MlflowException, ArtifactStoreError) as error:
            raise store_error(
                f"{model}: registration stopped",
                error,
                f"EDIT on the registered model {model!r} and on the experiment {experiment_name()!r}",
                "what was registered stays, run vidbridge register again",
            ) from error


def _reconcile(session: Session) -> RegisterReport:
    from mlflow.exceptions import MlflowException

    root, params, client, content = session.root, session.params, session.client, session.content
    commit = head(root) if is_repository(root) else None
    pipeline = read_pipeline(content, root)
    unregistered: dict[str, str] = {}
    warnings = []
    rows: list[tuple[str, StageRecord]] = []
    for row, stage in _row_stages(params).items():
        if reason := pipeline.stale(stage, content):
            unregistered[stage] = reason
        else:
            rows.append((row, pipeline.records[stage]))
    pushed = None
    if content.remote_name():
        pushed = content.push(sorted(oid for oid in pipeline.cached if content.has(oid)))
    else:
        warnings.append(
            "no DVC remote: these versions load on this machine only; dvc remote add -d NAME URL, then vidbridge"
            " register"
        )
    model = params.gate.registered_model
    unsent = 0
    # First: a stage's run whose end was not sent yet is found below only afterwards. A failure is
    # reported below.
    with suppress(MlflowException, ArtifactStoreError):
        unsent = send_unsent(client, root)
    existing = {version.source: version for version in all_versions(client, model)}
    expected = [
        item
        for row, record in rows
        for item in _expected_versions(root, params, content, pipeline, row, record, commit)
    ]
    missing = {item.source: item for item in expected if item.source not in existing}
    if missing and not existing:
        ensure_model(client, model)
    if missing or (existing and LEDGER not in client.get_registered_model(model).tags):
        # So the ledger belongs to the model's owner, not to the first account that decides.
        prove_rights(client, params.gate)
    updated = [number for item in expected if (number := _update(client, existing.get(item.source), item))]
    runs = {
        stage: _stage_run(client, root, pipeline.records[stage]) for stage in {item.stage for item in missing.values()}
    }
    created = {_create(client, model, item, runs[item.stage]) for item in missing.values()}
    if created:
        existing = _without_duplicates(client, model, created)
    candidate = _point_candidate(client, params, expected, existing)
    if rows:
        _keep_files(client, root, params)
    unsent += send_unsent(client, root)
    if expected and any(item.tags.get("lock_commit") is None for item in expected):
        warnings.append(
            "no commit holds this dvc.lock yet, so the gate will refuse these versions; commit dvc.lock and params.yaml"
        )
    return RegisterReport(
        model=model,
        created=tuple(version for version in existing.values() if version.number in created),
        kept=len(expected) - len(missing),
        updated=tuple(updated),
        candidate=candidate,
        pushed=pushed,
        skipped=tuple(dict.fromkeys(unregistered.values())),
        warnings=tuple(warnings),
        unsent=unsent,
        unregistered=unregistered,
    )


def _row_stages(params: Params) -> dict[str, str]:
    """Map every policy to the DVC stage that produces it."""
    return {"base": "base"} | {row: f"sft@{row}" for row in params.sft} | {row: f"grpo@{row}" for row in params.grpo}


def _expected_versions(
    root: Path,
    params: Params,
    content: ContentStore,
    pipeline: Pipeline,
    row: str,
    record: StageRecord,
    commit: str | None,
) -> Iterator[_ExpectedVersion]:
    folder = paths.model(row).as_posix()
    outs = [(path, out) for path, out in record.outs.items() if path == folder or path.startswith(f"{folder}/")]
    if len(outs) != 1:
        raise TrackingError(
            "dvc.lock", f"stage {record.name} has {len(outs)} outs under {folder}, expected one", "compare dvc.yaml"
        )
    path, out = outs[0]
    shared = _shared_tags(params, pipeline, row, record, out)
    if commit:
        shared["git_commit"] = commit
        if held := holding_commit(root, record.name, out):
            shared["lock_commit"] = held
    final_only = _evaluation_tags(content, pipeline, row)
    history = _history(content, record.name, path, out)
    kept = parse_kept(content.read(out, paths.SUMMARY_FILE), f"{path}/{paths.SUMMARY_FILE}", record.name)
    for checkpoint in _checkpoints(content, record.name, path, out):
        own = {
            "step": str(checkpoint.step),
            "final": str(checkpoint.final).lower(),
            "metrics": json.dumps(checkpoint.metrics, sort_keys=True),
            "gauges": json.dumps(_gauges(history, checkpoint.step), sort_keys=True),
        }
        tags = shared | own | (final_only | kept if checkpoint.final else {})
        yield _ExpectedVersion(Source(out, checkpoint.path).uri, record.name, row, tags, checkpoint.final)


def _checkpoints(content: ContentStore, stage: str, path: str, out: str) -> list[Checkpoint]:
    """Read the checkpoints of an out; an out that is itself a model folder (the base) is one, at
    step 0."""
    files = content.files(out)
    text = content.read(out, paths.CHECKPOINTS_FILE)
    if text is None:
        prefix = next((prefix for prefix in ("", paths.FINAL) if f"{prefix}/config.json".lstrip("/") in files), None)
        if prefix is None:
            raise TrackingError(
                path,
                f"holds neither {paths.CHECKPOINTS_FILE} nor a model",
                f"run the stage again: dvc repro -f -s {stage}",
            )
        return [Checkpoint(stage=stage, step=0, path=prefix, final=True)]
    checkpoints = []
    # A line that is not UTF-8 is not a checkpoint, and is reported with its number.
    for number, line in enumerate(text.decode(errors="replace").splitlines(), 1):
        where = f"{path}/{paths.CHECKPOINTS_FILE} line {number}"
        try:
            checkpoint = Checkpoint.model_validate_json(line)
        except ValidationError as error:
            raise TrackingError(where, f"{error.errors()[0]['msg']}", f"run {stage} again") from error
        if not any(file.startswith(f"{checkpoint.path}/") for file in files):
            raise TrackingError(where, f"path {checkpoint.path!r} is not in the out", f"run {stage} again")
        checkpoints.append(checkpoint)
    return sorted(checkpoints, key=lambda item: (item.step, item.final))


def _history(content: ContentStore, stage: str, path: str, out: str) -> list[dict[str, float]]:
    """Read the metrics that training logged, a row per step; empty without training."""
    text = content.read(out, paths.HISTORY_FILE)
    if text is None:
        return []
    try:
        return [{**json.loads(line)} for line in text.decode().splitlines()]
    except (ValueError, TypeError) as error:
        raise TrackingError(f"{path}/{paths.HISTORY_FILE}", str(error), f"run {stage} again") from error


def _gauges(history: list[dict[str, float]], step: int) -> dict[str, list[float]]:
    """Last values of each gauge up to a checkpoint, oldest first, so that the gate needs no work
    tree."""
    gauges: dict[str, list[float]] = {}
    for row in history:
        if row.get("step", 0) <= step:
            for name, value in row.items():
                if name.startswith(GAUGE):
                    gauges.setdefault(name.removeprefix(GAUGE), []).append(round(value, 4))
    return {name: values[-GAUGE_VALUES:] for name, values in gauges.items()}


def _shared_tags(params: Params, pipeline: Pipeline, row: str, record: StageRecord, out: str) -> dict[str, str]:
    parents = {dep: {"stage": parent.stage, "out": parent.out} for dep, parent in pipeline.parents(record).items()}
    return {
        "stage": record.name,
        "row": row,
        "recipe": params.recipe,
        "out": out,
        "stage_digest": record.digest,
        "params_digest": record.params_digest,
        "params": json.dumps(dict(record.params), sort_keys=True),
        "parents": json.dumps(parents, sort_keys=True),
        "data": json.dumps(pipeline.data(record), sort_keys=True),
        USAGE: usage_of(params, row).model_dump_json(),
    }


def _evaluation_tags(content: ContentStore, pipeline: Pipeline, row: str) -> dict[str, str]:
    tags = {}
    stage = f"evaluate@{row}"
    if text := _evaluated(content, pipeline, stage, paths.scores(row)):
        parse_scores(text, f"{paths.scores(row)}/{paths.SCORES_FILE}")
        tags["scores"] = json.dumps(json.loads(text), sort_keys=True)
        record = pipeline.records[stage]
        out, samples = record.outs[paths.scores(row).as_posix()], record.deps.get(paths.SAMPLES.as_posix())
        if samples and paths.PREDICTIONS_FILE in content.files(out):
            # By content: both were pushed above, and nothing is copied.
            tags["samples"] = json.dumps({"predictions": out, "samples": samples})
    if tags and (text := _evaluated(content, pipeline, "baselines", paths.scores("baselines"))):
        tags["baselines"] = parse_baselines(text, f"{paths.scores('baselines')}/{paths.SCORES_FILE}").model_dump_json()
    return tags


def _evaluated(content: ContentStore, pipeline: Pipeline, stage: str, folder: Path) -> bytes | None:
    """Read ``scores.json`` as locked; None if that stage has not run, or ran on other inputs."""
    if pipeline.stale(stage, content):
        return None
    out = pipeline.records[stage].outs.get(folder.as_posix())
    return content.read(out, paths.SCORES_FILE) if out else None


def _stage_run(client: MlflowClient, root: Path, record: StageRecord) -> Run | None:
    """Find the newest finished run of exactly this work; None if the stage was pulled, or ran
    without this store."""
    where = (
        f"tags.`{TAG}stage_digest` = '{record.digest}' and tags.`{TAG}stage` = '{record.name}' and attributes.status ="
        " 'FINISHED'"
    )
    runs = client.search_runs(
        [experiment_id(client, root)], where, max_results=1, order_by=["attributes.start_time DESC"]
    )
    return runs[0] if runs else None


def _create(client: MlflowClient, model: str, item: _ExpectedVersion, run: Run | None) -> int:
    tags = {TAG + name: value for name, value in item.tags.items()}
    if run and (commit := run.data.tags.get(TAG + "git_commit")):
        tags[TAG + "git_commit"] = commit
    version = client.create_model_version(
        model, item.source, run_id=run.info.run_id if run else None, tags=tags, await_creation_for=0
    )
    return int(version.version)


def _update(client: MlflowClient, version: Version | None, item: _ExpectedVersion) -> int | None:
    if version is None:
        return None
    news = {
        name: item.tags[name]
        for name in MUTABLE
        if name in item.tags and version.tags.get(TAG + name) != item.tags[name]
    }
    if version.freed is not None:
        # Its content is back: `gc` had freed its weights.
        client.delete_model_version_tag(version.model, str(version.number), TAG + "freed")
    for name, value in news.items():
        # Another host may be registering the same versions.
        retry_on_conflict(partial(client.set_model_version_tag, version.model, str(version.number), TAG + name, value))
    return version.number if news or version.freed is not None else None


def _without_duplicates(client: MlflowClient, model: str, ours: set[int]) -> dict[str, Version]:
    """Versions by source. If another host registered at the same moment, the older of two stays,
    and only our own is removed."""
    kept: dict[str, Version] = {}
    for version in all_versions(client, model):
        if version.source in kept and version.number in ours:
            client.delete_model_version(model, str(version.number))
            ours.discard(version.number)
        else:
            kept.setdefault(version.source, version)
    return kept


def _point_candidate(
    client: MlflowClient, params: Params, expected: list[_ExpectedVersion], existing: Mapping[str, Version]
) -> int | None:
    """Set the alias ``candidate`` to the checkpoint that the table's only leaf kept: the last, or
    the best watched one. Returns None (and moves nothing) before it exists."""
    for item in expected:
        if item.row == params.candidate and item.final:
            version = existing[item.source]
            if CANDIDATE not in version.aliases:
                client.set_registered_model_alias(version.model, CANDIDATE, str(version.number))
            return version.number
    return None


def _keep_files(client: MlflowClient, root: Path, params: Params) -> None:
    """Record this ``dvc.lock`` and ``params.yaml`` once, with the pipeline's run where there is
    one."""
    texts = {name: (root / name).read_text(encoding="utf-8") for name in (paths.LOCK_FILE, paths.PARAMS_FILE)}
    digest = hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()
    experiment = experiment_id(client, root)
    if client.search_runs([experiment], f"tags.`{TAG}files` = '{digest}'", max_results=1):
        return
    parent = os.environ.get("VIDBRIDGE_PIPELINE_RUN")
    run_id = parent
    if run_id is None:
        tags = {TAG + "kind": "register", TAG + "recipe": params.recipe}
        run_id = str(client.create_run(experiment, run_name=f"register {params.recipe}", tags=tags).info.run_id)
    for name, text in texts.items():
        client.log_text(run_id, text, name)
    client.set_tag(run_id, TAG + "files", digest)
    if parent is None:
        client.set_terminated(run_id)
