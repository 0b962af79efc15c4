"""Checks of what a project reaches: the judge, MLflow, Prefect and the DVC remote."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flows.errors import FlowError
from flows.processes import prefect_server
from flows.processes.environment import defaults
from flows.project.diagnosis.finding import Finding, output_of
from flows.repro import preflight
from stages.params import ParamsError
from stages.runtime import paths
from stages.tracking.lineage.uri import TrackingError, check_server, display_uri, tracking_uri
from stages.tracking.session import Session


def check_judge(session: Session) -> Finding:
    try:
        params = session.params
    except ParamsError as error:
        return Finding(
            "judge",
            "warn",
            "params.yaml does not load, so which judge is wanted is unknown",
            str(ParamsError(error.field, error.problem, error.remedy)),
        )
    needed = preflight.endpoints(params, judged=True, written=True)
    if not needed:
        local = [place for place in params.judges.all if place.params.weights is not None]
        if local:
            models = ", ".join(f"{place.params.kind} by {place.params.weights}" for place in local)
            remedy = 'read the guide "Choosing a judge" for its measured errors; a model that reads is kind: openai'
            return Finding("judge", "warn", f"a model in the stages' own process compares texts: {models}", remedy)
        if any(place.params.kind == "rule_on_real_text" for place in params.judges.all):
            remedy = "name a model under `judge` in params.yaml (kind: openai), as infra/recipes/vidbridge-r1.yaml does"
            return Finding(
                "judge", "warn", "the rule judge on real text: it compares words and pays much that is wrong", remedy
            )
        return Finding("judge", "ok", "the rule judge: nothing to reach, exact on the generated world only")
    wrong = [problem for role, why in needed.items() for problem in preflight.judge_problems(role, why)]
    if wrong:
        return Finding("judge", "missing", "; ".join(needed.values()), "; ".join(map(str, wrong)))
    addresses = ", ".join(display_uri(os.environ[f"VIDBRIDGE_{role}_URL"]) for role in needed)
    return Finding("judge", "ok", f"{addresses} answers" if len(needed) == 1 else f"{addresses} answer")


def check_source(session: Session) -> Finding:
    """Check that the videos and their annotations can be listed; no file is read."""
    try:
        ingest = session.params.ingest
    except ParamsError:
        return Finding("source", "warn", "params.yaml does not load, so where the videos are is unknown", "mend it")
    if Path(ingest.source) == paths.CORPUS:
        return Finding("source", "ok", f"{paths.CORPUS}, which the first stage generates")
    # fsspec and its clients take half a second, where there is a source to ask.
    from stages.runtime.sources.failures import SourceAccessError
    from stages.runtime.sources.watch import check_reachable

    try:
        check_reachable(ingest.roots.below(session.root))
    except SourceAccessError as error:
        return Finding("source", "missing", f"{error.field}: {error.problem}", error.remedy)
    return Finding("source", "ok", " and ".join(filter(None, (ingest.source, ingest.videos))))


def check_engine(_root: Path) -> Finding:
    """Check that the rollout engine that the environment names can be used."""
    named = os.environ.get("VIDBRIDGE_ROLLOUT_ENGINE", "").strip()
    if named in ("", "hf"):
        return Finding("engine", "ok", "none: the stages decode replies themselves (VIDBRIDGE_ROLLOUT_ENGINE)")
    if problems := preflight.engine_problems():
        return Finding("engine", "missing", f"{problems[0].field}: {problems[0].problem}", problems[0].remedy)
    found = "vLLM, which each stage starts" if named == "vllm" else f"{named} answers"
    return Finding("engine", "ok", found)


def check_mlflow(root: Path) -> Finding:
    uri, default = tracking_uri(root), defaults(root)["MLFLOW_TRACKING_URI"]
    try:
        check_server(uri)
    except TrackingError as error:
        return Finding("MLflow store", "missing", display_uri(uri), str(error))
    return Finding("MLflow store", "ok", f"{display_uri(uri)}{' (the default)' if uri == default else ''}")


def check_prefect(root: Path) -> Finding:
    url = os.environ.get("PREFECT_API_URL")
    if url:
        if prefect_server.answers(url):
            return Finding("Prefect API", "ok", url)
        return Finding(
            "Prefect API",
            "missing",
            f"PREFECT_API_URL: {url}: no answer",
            "start that server, correct the address, or unset it",
        )
    try:
        running = prefect_server.running_server(root)
    except FlowError as error:  # it runs under another key than the project's
        return Finding("Prefect API", "missing", str(error))
    if running:
        return Finding("Prefect API", "ok", f"{running} (vidbridge ui or deploy)")
    return Finding("Prefect API", "ok", "none named; each run starts one of its own (a few seconds)")


def check_remote(root: Path) -> Finding:
    name = os.environ.get("VIDBRIDGE_DVC_REMOTE") or output_of(
        sys.executable, "-m", "dvc", "--cd", str(root), "config", "core.remote"
    )
    if not name:
        return Finding("DVC remote", "warn", "none", "versions load on this machine only; dvc remote add -d NAME URL")
    # As stages.tracking.lineage.opening takes it: a URL or a path may be there as well as a name.
    is_url = "/" in name
    url = name if is_url else output_of(sys.executable, "-m", "dvc", "--cd", str(root), "config", f"remote.{name}.url")
    name = "VIDBRIDGE_DVC_REMOTE" if is_url else name
    if not url:
        return Finding(
            "DVC remote", "missing", f"no remote is called {name}", f"dvc remote add -d {name} URL, or name its URL"
        )
    if problems := preflight.remote_problems(root):
        problem = problems[0]
        return Finding("DVC remote", "missing", f"{name}: {url}: {problem.field}: {problem.problem}", problem.remedy)
    if "://" not in url:
        return Finding("DVC remote", "ok", f"{name}: {url}, a folder of this machine (s3://… reaches others)")
    return Finding("DVC remote", "ok", f"{name}: {url}, which takes what is written to it")
