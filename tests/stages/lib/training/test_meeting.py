"""A connection to the processes of a training cannot make them run code: real processes, and a real
attack."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.checkout import ROOT

#: Two processes that meet, and stay until a file appears.
MODULE = """
import os, sys, time
from pathlib import Path
from stages.runtime.ranks.distributed import launch

home = Path(sys.argv[1])
if (status := launch("meeting", sys.argv[1:])) is not None:
    sys.exit(status)
import torch.distributed as dist

dist.init_process_group("gloo")
dist.barrier()
(home / f"met-{dist.get_rank()}").touch()
while not (home / "go").exists():
    time.sleep(0.1)
dist.barrier()
dist.destroy_process_group()
"""


#: Attack on a store: ``PORT FILE``.
ATTACK = """
import base64, os, pickle, sys
from datetime import timedelta
from torch.distributed import TCPStore

class Payload:
    def __reduce__(self):
        return os.system, (f"id > {sys.argv[2]}",)

store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
for key in store.list_keys():
    if "rendezvous" in str(key):
        store.set(key, base64.b64encode(pickle.dumps(Payload())).decode())
print("reached")
"""


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_what_a_stranger_puts_into_the_meeting_place_is_not_unpickled(tmp_path: Path) -> None:
    (tmp_path / "meeting.py").write_text(MODULE)
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
        "VIDBRIDGE_RANKS": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }
    owned = tmp_path / "owned"
    process = subprocess.Popen([sys.executable, "-m", "meeting", str(tmp_path)], cwd=tmp_path, env=env)
    try:
        deadline = time.monotonic() + 100
        while not all((tmp_path / f"met-{rank}").exists() for rank in range(2)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        members = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        ports = {
            one.laddr.port
            for member in members
            for one in member.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
        }
        said = [_attack(port, owned) for port in sorted(ports)]
        assert any("reached" in one for one in said), "the attack was tried"
        time.sleep(11)  # a launcher of torch looks every five seconds
        assert not owned.exists()
        (tmp_path / "go").touch()
        assert process.wait(60) == 0
    finally:
        for member in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            member.kill()
        process.kill()
        process.wait()


def _attack(port: int, owned: Path) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):  # of something else than a store
        return subprocess.run(
            [sys.executable, "-c", ATTACK, str(port), str(owned)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        ).stdout
    return ""
