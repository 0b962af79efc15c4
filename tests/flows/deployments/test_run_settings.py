"""Settings of a run of the deployment: those that its sender may choose, those that it may not; on
a real server."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import httpx
import pytest

from flows.deployments import deploy
from flows.errors import FlowError
from flows.processes.stream import guarded
from tests.support.servers.locked import Pages, clean, ended, of_worker, sent, with_token


@pytest.fixture(scope="module")
def deployed(pages: Pages) -> Pages:
    """Deployment of `infra/prefect.yaml` on that server, as `vidbridge deploy` creates it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in of_worker(pages).items():
            patch.setenv(name, value)
        deploy.create(pages.root, deploy.DeploymentRequest("main", "nightly"))
    return pages


def _deployment(pages: Pages) -> str:
    (one,) = sent("POST", f"{pages.api}/deployments/filter", {}, with_token(pages)).json()
    assert one["parameters"] == {
        "repository": None,
        "directory": None,
        "branch": "main",
        "source": None,
        "recipe": None,
        "promote": True,
    }
    return str(one["id"])


def test_a_run_may_not_set_what_the_worker_starts(deployed: Pages, tmp_path: Path) -> None:
    run = f"{deployed.api}/deployments/{_deployment(deployed)}/create_flow_run"
    held = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}}
    command = f"sh -c 'id > {tmp_path}/owned'"
    for name, value in {
        "command": command,
        "env": {"PYTHONPATH": "/tmp"},
        "working_dir": "/tmp",
        "name": "x",
        "env.PATH": "/tmp",
    }.items():
        refused = sent("POST", run, held | {"job_variables": {name: value}}, with_token(deployed))
        assert refused.status_code == 422, f"{name}: {refused.text}"
    refused = sent("POST", run, held | {"parameters": {"promote": "perhaps"}}, with_token(deployed))
    assert refused.status_code in (409, 422), refused.text
    allowed = sent("POST", run, held | {"parameters": {"recipe": "smoke"}}, with_token(deployed))
    assert allowed.status_code == 201
    changed = sent(
        "PATCH",
        f"{deployed.api}/flow_runs/{allowed.json()['id']}",
        {"job_variables": {"command": command}},
        with_token(deployed),
    )
    assert changed.status_code == 422


@pytest.mark.parametrize(
    ("name", "value"),
    [("repository", "https://evil.example/x"), ("directory", "a"), ("branch", "elsewhere"), ("source", "/etc")],
)
def test_whose_code_runs_and_on_what_only_the_deployment_says(
    deployed: Pages, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow's own look at its deployment, on a real server: Prefect's check of parameters can be
    switched off by who makes a run.
    """
    from types import SimpleNamespace
    from uuid import UUID

    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from flows import scheduled as module

    run = SimpleNamespace(flow_run=SimpleNamespace(deployment_id=UUID(_deployment(deployed))))
    monkeypatch.setattr(module, "FlowRunContext", SimpleNamespace(get=lambda: run))
    given: dict[str, str | None] = {"repository": None, "directory": None, "branch": "main", "source": None}
    with temporary_settings({PREFECT_API_URL: deployed.api, PREFECT_API_AUTH_STRING: deployed.key}):
        assert module.only_as_deployed(given).name == "nightly"
        with pytest.raises(FlowError, match=f"{name}: this run sets '{value}', and only the deployment may"):
            module.only_as_deployed(given | {name: value})


def test_what_the_server_lets_through_does_not_reach_the_process(deployed: Pages, tmp_path: Path) -> None:
    """Runs without a deployment are unchecked by the server; the template has no place for
    values."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
    from prefect.workers.process import ProcessJobConfiguration

    headers = with_token(deployed)
    pool = httpx.get(f"{deployed.api}/work_pools/vidbridge", headers=headers).json()
    wanted = {
        "command": "sh -c id",
        "env": {"PATH": str(tmp_path)},
        "env.LD_PRELOAD": "x",
        "working_dir": str(tmp_path),
        "labels": {"a": "b"},
    }

    async def make() -> ProcessJobConfiguration:
        async with get_client() as client:
            return await ProcessJobConfiguration.from_template_and_values(
                pool["base_job_template"], wanted, client=client
            )

    with temporary_settings({PREFECT_API_URL: deployed.api, PREFECT_API_AUTH_STRING: deployed.key}):
        made = asyncio.run(make())
    assert (made.command, made.env, made.working_dir, made.labels) == (None, {}, None, {})


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_foreign_runs_on_a_real_worker(deployed: Pages, tmp_path: Path) -> None:
    """Try every way of making a run, with the key: job variables, no deployment, an unchecked
    run."""
    deployment, headers, owned = _deployment(deployed), with_token(deployed), tmp_path / "owned"
    foreign = tmp_path / "foreign"
    subprocess.run(["git", "init", "-q", "-b", "main", str(foreign)], check=True)
    now = {"state": {"type": "SCHEDULED"}}
    variables = {"job_variables": {"command": f"sh -c 'id > {owned}'", "env": {"PYTHONSTARTUP": str(owned)}}}
    (flow,) = sent(
        "POST", f"{deployed.api}/flows/filter", {"flows": {"name": {"any_": ["vidbridge-scheduled"]}}}, headers
    ).json()
    loose = now | variables | {"flow_id": flow["id"], "work_pool_name": "vidbridge"}
    orders = [(f"{deployed.api}/flow_runs/", loose)]
    for parameters in (
        {"repository": str(foreign)},
        {"work_dir": str(tmp_path)},
        {"branch": "elsewhere"},
        {"source": "/etc"},
    ):
        unchecked = now | {"enforce_parameter_schema": False, "parameters": parameters}
        orders.append((f"{deployed.api}/deployments/{deployment}/create_flow_run", unchecked))
    how: list[str] = []
    with (
        (tmp_path / "worker.log").open("wb") as log,
        guarded(deploy.worker_command(), deployed.root, clean(deployed.root, **of_worker(deployed)), log),
    ):
        for url, order in orders:  # one after the other: the deployment lets one run at a time
            made = sent("POST", url, order, headers)
            assert made.status_code == 201, made.text
            how.append(ended(deployed, made.json()["id"], headers))
    said = (tmp_path / "worker.log").read_text()
    assert "COMPLETED" not in how, said
    assert not owned.exists()
    assert f"repository: this run sets {str(foreign)!r}, and only the deployment may (None)" in said
    assert "branch: this run sets 'elsewhere', and only the deployment may ('main')" in said
    assert "source: this run sets '/etc', and only the deployment may (None)" in said
    assert not (deployed.root / ".vidbridge/scheduled").exists(), "no clone was made"
