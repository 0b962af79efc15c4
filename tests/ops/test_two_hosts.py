"""Host B after host A: what A ran, and handed on, is fetched from S3 on a host that has nothing but
the repository's address and keys."""

from __future__ import annotations

import re
from pathlib import Path

import httpx

from tests.support.servers.hosts import Host
from tests.support.servers.stack import ADMIN, ADMIN_PASSWORD, Stack

#: A policy of the recipe `smoke`: data, base, one SFT stage and one GRPO stage before it.
TARGET = "evaluate@bridge"
ROW = "  bridge:\n    init: cold-start"
MODEL = "vidbridge-smoke"


def ran(host: Host) -> str:
    """The names of the stages that ran on a host, by what DVC said."""
    return " ".join(re.findall(r"Running stage '(.*?)'", host.vidbridge("run", TARGET, "--yes")))


def newest(servers: Stack) -> str:
    """The number of the last version that ended a training of `grpo@bridge`."""
    address = f"{servers.tracking_url}/api/2.0/mlflow/model-versions/search"
    asked = {"filter": f"name = '{MODEL}'", "max_results": "100"}
    found = (
        httpx.get(address, params=asked, auth=(ADMIN, ADMIN_PASSWORD), timeout=60)
        .raise_for_status()
        .json()["model_versions"]
    )
    ours = {("vidbridge.stage", "grpo@bridge"), ("vidbridge.final", "true")}
    tags = {int(one["version"]): {(tag["key"], tag["value"]) for tag in one["tags"]} for one in found}
    return str(max(number for number, has in tags.items() if ours <= has))


def test_another_host_runs_only_what_nobody_ran(servers: Stack, project: Path, two_hosts: list[Host]) -> None:
    first, second = two_hosts
    url = servers.publish(project, "fetch")
    first.clone(url)
    said = first.vidbridge("run", TARGET, "--yes", "--push")
    assert "pushed: dvc.lock is on branch runs/" in said
    # The branch `main` has no lock: DVC's run cache in the remote tells.
    clone = second.clone(url)
    plan = second.vidbridge("plan", TARGET)
    assert re.search(r"^0 to run, \d+ to fetch from the remote \(\d+ files, ", plan, re.MULTILINE), plan
    said = second.vidbridge("run", TARGET, "--yes")
    assert "Running stage" not in said
    assert "the registry has what dvc.lock holds" in said
    assert "none is new" in said
    assert (clone / "scores/bridge/scores.json").is_file()
    assert not (clone / "models").exists()
    with servers.mlflow.away("cut off", 0), servers.s3.away("cut off", 0):
        assert "nothing to do" in second.vidbridge("run", TARGET), "neither registry nor remote is asked"
    params = clone / "params.yaml"
    head, row = params.read_text().split(ROW, 1)
    params.write_text(head + ROW + re.sub(r"learning_rate: \S+", "learning_rate: 5.0e-4", row, count=1))
    assert ran(second) == f"grpo@bridge {TARGET}"
    second.vidbridge("run", TARGET, "--push")
    # Host A takes that over, and B may go back to what A ran.
    (first.project / "params.yaml").write_text(params.read_text())
    assert re.search(r"^0 to run, 1 to fetch", first.vidbridge("plan", TARGET), re.MULTILINE)
    # Promoted from B, and read where there is nothing but two URLs.
    second.vidbridge("run", "baselines", "--yes")
    assert "is champion" in second.vidbridge("promote", newest(servers))
    empty = first.folder / "empty"
    empty.mkdir()
    uri = f"models:/{MODEL}@champion"
    assert "grpo@bridge" in first.succeed("vidbridge", "explain", uri, cwd=empty)
    first.succeed("vidbridge", "export", str(empty / "champion"), "--model", uri, cwd=empty)
    assert (empty / "champion/model.safetensors").is_file()
    params.write_text(head + ROW + row)
    assert "will run" not in second.vidbridge("plan", TARGET)
