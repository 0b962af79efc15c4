"""Checks before the first stage starts: each takes a second and finds what would otherwise fail
after an hour.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from flows.content.names import has_file, unstorable_names
from flows.errors import FlowError
from flows.params_file.sizes import disk_need_gb
from flows.processes.environment import state
from flows.processes.locks import RUN_LOCK, only_run
from flows.processes.prefect_server import answers
from flows.repro.steps import Plan
from stages.domain.tasks.rewards import SentenceLikeness
from stages.errors import VidbridgeError
from stages.params import IngestParams, Params
from stages.runtime import paths
from stages.runtime.endpoint.settings import own_role
from stages.runtime.sources.addresses import is_remote
from stages.runtime.sources.failures import SourceAccessError
from stages.tracking.lineage.git import FIRST_COMMIT, head, is_repository
from stages.tracking.lineage.uri import (
    TrackingError,
    check_server,
    display_uri,
    is_server,
    patience_of_run_s,
    tracking_uri,
)
from stages.tracking.session import Session

GB = 1e9
#: Verbs whose replies a rollout engine may draw.
_DRAWN = frozenset({"difficulty", "grpo", "evaluate"})
#: Verbs that query a judge.
_JUDGED = frozenset({"difficulty", "grpo", "baselines", "evaluate"})


def ffmpeg() -> Path | None:
    """Path of the ffmpeg in use: ``VIDBRIDGE_FFMPEG``, else the locked one; None if there is
    none."""
    named = os.environ.get("VIDBRIDGE_FFMPEG")
    if named:
        found = shutil.which(named)
        return Path(found) if found else None
    import imageio_ffmpeg

    try:
        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        return None


def problems(session: Session, plan: Plan) -> list[VidbridgeError]:
    """Everything that would make a run fail later. Empty if the run can start."""
    root, params = session.root, session.params
    found: list[VidbridgeError] = [*git_problems(root)]
    found += _source(root, params, plan)
    found += _local_models(root, params, plan)
    if ffmpeg() is None:
        named = os.environ.get("VIDBRIDGE_FFMPEG")
        remedy = (
            "correct the path or unset it" if named else "reinstall the environment (uv sync), or set VIDBRIDGE_FFMPEG"
        )
        found.append(FlowError("VIDBRIDGE_FFMPEG", f"{named or '(not set)'}: no such program", remedy))
    need, free = disk_need_gb(params, [step.name for step in plan.to_run]), shutil.disk_usage(root).free / GB
    if free < need:
        found.append(
            FlowError(
                "disk",
                f"{free:.1f} GB are free at {root}, about {need:.1f} GB are needed",
                "make room, or move the project",
            )
        )
    found += mlflow_problems(session)
    found += remote_problems(root)
    found += prefect_problems()
    if _verbs(plan) & _DRAWN:
        found += engine_problems()
    needed = endpoints(params, judged=_judged(params, plan), written="synthesize" in _verbs(plan))
    return found + [problem for role, why in needed.items() for problem in judge_problems(role, why)]


def git_problems(root: Path) -> list[VidbridgeError]:
    """Reasons why a run cannot be tied to a commit, at most one."""
    try:
        if not is_repository(root):
            problem = f"{root} is not a repository, and a model version names its commit"
            return [FlowError("git", problem, f"type: {FIRST_COMMIT}")]
        if head(root) is None:
            problem = f"{root} has no commit yet, and a run is recorded as one that follows it"
            return [FlowError("git", problem, "type: git add -A && git commit -m start")]
    except TrackingError as error:
        return [error]
    return []


def mlflow_problems(session: Session) -> list[VidbridgeError]:
    """Problems with MLflow: it does not answer, or this account may not record there what the run
    will produce.
    """
    try:
        uri = check_server(tracking_uri(session.root), wait_s=patience_of_run_s())
        if is_server(uri):
            _try_rights(session)
    except TrackingError as error:
        return [error]
    return []


def _try_rights(session: Session) -> None:
    """Check the account's rights on the server; only a server has accounts. Takes two seconds of
    imports, which the run needs anyway.

    Raises:
        TrackingError: this account may not record runs, or not write to the registered model, where
            that is there already.
    """
    from stages.tracking.registry.rights import check_run_rights

    check_run_rights(session)


def remote_problems(root: Path) -> list[VidbridgeError]:
    """Reasons why outputs cannot be pushed to the DVC remote, if there is one: each registration
    pushes.
    """
    from stages.tracking.lineage.opening import open_content

    try:
        with open_content(root) as content:
            if content.remote_name():
                content.check_remote()
    except TrackingError as error:
        return [error]
    return []


def engine_problems() -> list[VidbridgeError]:
    """Problem with the rollout engine that the environment names: it is not built, does not answer,
    or is another one.
    """
    if os.environ.get("VIDBRIDGE_ROLLOUT_ENGINE", "").strip() in ("", "hf"):
        return []  # without the imports of a client
    from stages.lib.engine.process import check_engine

    try:
        check_engine()
    except VidbridgeError as error:
        return [error]
    return []


def prefect_problems() -> list[VidbridgeError]:
    """Problem with the Prefect server that the environment names: it does not answer."""
    url = os.environ.get("PREFECT_API_URL")
    if not url or answers(url):
        return []
    remedy = "start that server, correct the address, or unset it to use one of our own"
    return [FlowError("PREFECT_API_URL", f"{display_uri(url)}: no answer", remedy)]


def check_prefect() -> None:
    """Check that the Prefect server answers.

    Raises:
        FlowError: the Prefect server that the environment names does not answer.
    """
    if found := prefect_problems():
        raise FlowError.joined(found)


def _verbs(plan: Plan) -> set[str]:
    return {step.name.partition("@")[0] for step in plan.to_run}


def _judged(params: Params, plan: Plan) -> bool:
    """Return whether anything in the plan earns a reward: replies, or traces that a writer
    proposes.
    """
    writer, planned = params.synthesize.writer, {step.name for step in plan.to_run}
    written = writer is not None and writer.traces is not None and "synthesize" in planned
    watched = any(row.watch is not None and f"sft@{name}" in planned for name, row in params.sft.items())
    return written or watched or bool(_verbs(plan) & _JUDGED)


def endpoints(params: Params, *, judged: bool, written: bool) -> dict[str, str]:
    """Endpoints that a plan queries to judge or to write samples: the role that names its
    variables, and the parameters that need it.

    An address that several roles share is checked once.
    """
    wanted = []
    if judged:
        wanted += [
            (place.role, f"{place.field}.kind is 'openai'") for place in params.judges.all if place.params.at_endpoint
        ]
    if written and params.synthesize.writer is not None:
        wanted.append(("WRITER", "synthesize.writer is on"))
    found: dict[str, str] = {}
    for role, why in wanted:
        found.setdefault(own_role(role, os.environ), why)
    return found


def judge_problems(role: str, needed: str) -> list[VidbridgeError]:
    """Reasons why an endpoint cannot be used, as far as its list of models tells; ``needed``: the
    parameters that need it. No message holds the key.
    """
    url_name, key_name = f"VIDBRIDGE_{role}_URL", f"VIDBRIDGE_{role}_KEY"
    url = os.environ.get(url_name, "").strip().rstrip("/")
    if not url:
        remedy = "set it to the endpoint, such as http://127.0.0.1:8000/v1"
        return [FlowError(url_name, f"not set, and {needed}", remedy)]
    import httpx

    key = os.environ.get(key_name, "").strip()
    try:
        status = httpx.get(
            f"{url}/models", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=5
        ).status_code
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError) as error:
        # Not the error's own words: it may name the header that it cannot send, or a password in
        # the address.
        remedy = "start the judge's server, or correct address and key"
        return [FlowError(url_name, f"no answer ({type(error).__name__})", remedy)]
    if status in (401, 403):
        return [FlowError(key_name, f"the endpoint at {url_name} does not accept it ({status})", "set it")]
    return []  # not every endpoint lists its models


def _local_models(root: Path, params: Params, plan: Plan) -> list[VidbridgeError]:
    """Check that the models of the embedder and of judges in the stages' processes are there."""
    if not _judged(params, plan):
        return []
    found: list[VidbridgeError] = []
    likeness = params.rewards.embedder
    if isinstance(likeness, SentenceLikeness):
        place = ("rewards.embedder", "take `embedder: {kind: lexical}`")
        found += _local_model(root, likeness.model, likeness.revision, "modules.json", *place)
    for judge in params.judges.all:
        if judge.params.weights is not None:
            found += _local_model(
                root, *judge.params.weights, "config.json", judge.field, f"name another judge under {judge.field}"
            )
    return found


def _local_model(root: Path, model: str, revision: str, file: str, table: str, otherwise: str) -> list[VidbridgeError]:
    """Check that a model is a folder or a name on the hub, and on disk if nothing may be
    downloaded.
    """
    if (root / model).is_dir():
        return []
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    field = f"{table}.model"
    try:
        kept = try_to_load_from_cache(model, file, revision=revision)
    except HFValidationError:
        return [FlowError(field, f"{model!r} is not a folder and not a name on the hub", "correct it")]
    if not constants.HF_HUB_OFFLINE or isinstance(kept, str):
        return []
    problem = f"{model!r} at revision {revision!r} is not in the cache, and HF_HUB_OFFLINE is set"
    remedy = f"unset it once to download, set HF_HOME to a cache that holds it, or {otherwise}"
    return [FlowError(field, problem, remedy)]


def _source(root: Path, params: Params, plan: Plan) -> list[VidbridgeError]:
    """Check that the source folder exists, unless a stage of this run makes it."""
    outs = {out for step in plan.steps for out in step.outs}
    if params.ingest.source.rstrip("/") in outs:
        return []
    mapping = params.ingest.format
    if mapping.endswith(paths.MAPPING_SUFFIXES) and not (root / mapping).is_file():
        return [FlowError("ingest.format", f"{mapping!r} does not exist", "write the mapping, or correct the path")]
    field, value = "ingest.source", params.ingest.source
    ingest = params.ingest.below(root)
    if not ingest.is_plain_folder and (is_remote(value) or Path(ingest.source).exists()):
        return _reachable(ingest) if "ingest" in _verbs(plan) else []
    folder = Path(ingest.source)
    if not folder.is_dir():
        remedy = f"name that of your videos in params.yaml ({paths.CORPUS}: generated)"
        return [FlowError(field, f"{value!r} is not a folder", remedy)]
    # The adapter of another format checks its own file.
    name = params.ingest.annotations or (paths.ANNOTATIONS_FILE if params.ingest.format == "jsonl" else None)
    if name is not None and not has_file(folder, name):
        remedy = (
            "add one line of JSON for each video (see README)"
            if name == paths.ANNOTATIONS_FILE
            else "correct ingest.annotations"
        )
        return [FlowError(field, f"{value!r} holds no {name}", remedy)]
    if odd := list(islice(unstorable_names(folder), 3)):
        return [FlowError.from_error(error, within=field) for error in odd]
    remedy = f"remove such links: find {folder} -xtype l -delete"
    return [
        FlowError(field, f"{str(link)!r} is a link that leads nowhere, and DVC cannot hash it", remedy)
        for link in islice(_dangling_links(folder), 3)
    ]


def _reachable(ingest: IngestParams) -> list[VidbridgeError]:
    """Check that what ingest fetches can be listed, before anything starts."""
    from stages.runtime.sources.watch import check_reachable

    try:
        check_reachable(ingest.roots)
    except SourceAccessError as error:
        return [error]
    return []


def _dangling_links(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not path.exists():
                yield path


def check(session: Session, plan: Plan) -> None:
    """Check everything of :func:`problems`.

    Raises:
        FlowError: with every problem, a line each.
    """
    if found := problems(session, plan):
        raise FlowError.joined(found)


def check_alone(root: Path) -> None:
    """Check that no other run holds the project.

    Raises:
        FlowError: another run holds the project.
    """
    if (state(root) / RUN_LOCK).exists():
        with only_run(root):
            pass
