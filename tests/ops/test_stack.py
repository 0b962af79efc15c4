"""The servers and hosts themselves: a proof on them is worth nothing if they are not what they
say."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.servers.hosts import Host
from tests.support.servers.stack import ADMIN, ADMIN_PASSWORD, Stack


def test_a_reader_may_read_and_not_write(servers: Stack) -> None:
    servers.add_user("reader", "password-of-the-reader")
    search = f"{servers.tracking_url}/api/2.0/mlflow/experiments/search?max_results=1"
    create = f"{servers.tracking_url}/api/2.0/mlflow/experiments/set-experiment-tag"
    tag = {"experiment_id": "0", "key": "a", "value": "b"}
    reader = ("reader", "password-of-the-reader")
    assert httpx.get(search, timeout=30).status_code == 401
    assert httpx.get(search, auth=reader, timeout=30).status_code == 200
    assert httpx.post(create, json=tag, auth=reader, timeout=30).status_code == 403
    assert httpx.post(create, json=tag, auth=(ADMIN, ADMIN_PASSWORD), timeout=30).status_code == 200


def test_a_host_sees_neither_the_other_one_nor_this_checkout(
    servers: Stack, project: Path, two_hosts: list[Host]
) -> None:
    first, second = two_hosts
    (first.folder / "mine.txt").write_text("of a", encoding="utf-8")
    assert first.succeed("cat", str(first.folder / "mine.txt")) == "of a"
    assert second.call("cat", str(first.folder / "mine.txt")).returncode != 0
    assert first.succeed("hostname").strip() == "a"
    clone = second.clone(servers.publish(project, "stack"))
    program = "import os, flows, mlflow; print(os.getpid(), os.path.expanduser('~'), flows.__file__)"
    done = second.call("python", "-c", program)
    assert done.stdout.split() == ["1", str(second.home), str(clone / "flows/__init__.py")], done.stdout + done.stderr
    assert "plan" in second.vidbridge("--help")


@pytest.mark.parametrize("how", ["killed", "stopped", "cut off"])
def test_a_server_that_was_away_is_back_with_what_it_had(servers: Stack, how: str) -> None:
    search = f"{servers.tracking_url}/api/2.0/mlflow/experiments/search?max_results=1"
    with servers.mlflow.away(how, 1), pytest.raises(httpx.HTTPError):
        httpx.get(search, auth=(ADMIN, ADMIN_PASSWORD), timeout=2)
    found = httpx.get(search, auth=(ADMIN, ADMIN_PASSWORD), timeout=60)
    assert found.json()["experiments"], "the database is another one than before"
