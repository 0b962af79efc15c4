"""State of processes: real short processes, in this PID namespace and in another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from stages.runtime import liveness
from stages.runtime.liveness import LivenessError, identity_of, lost_after_s, me, owner_is_gone, parse, process_state

#: Says who it is, and waits.
SAYS = "import sys; from stages.runtime.liveness import me; print(me(), flush=True); sys.stdin.read()"
UNSHARED = ["unshare", "-Urpf", "--mount-proc"]


@pytest.fixture
def unshared() -> list[str]:
    """The command before another one that gives it a PID namespace of its own."""
    try:
        tried = subprocess.run([*UNSHARED, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed (util-linux)")
    if tried.returncode:
        pytest.skip(f"PID namespaces are refused here: {tried.stderr.decode().strip()}")
    return UNSHARED


def start(*before: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", SAYS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    process = start()
    yield process
    process.kill()
    process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_process_is_alive_until_it_ends_and_gone_from_then_on(other: subprocess.Popen[str]) -> None:
    text = said(other)
    found = parse(text)
    assert found is not None
    assert found == identity_of(other.pid)
    assert process_state(found) == "alive"
    assert not owner_is_gone(text)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert owner_is_gone(text), "ended, though its parent has not asked yet"
    other.wait()
    assert owner_is_gone(text)


def test_a_number_that_was_given_again_is_another_process() -> None:
    earlier = replace(me(), started="1")
    assert process_state(me()) == "alive"
    assert process_state(earlier) == "gone"


@pytest.mark.parametrize("change", [{"boot": "another"}, {"namespace": "1"}, {"host": "elsewhere"}])
def test_of_a_process_of_another_boot_namespace_or_host_nothing_is_said(change: dict[str, str]) -> None:
    foreign = replace(me(), pid=2**22 - 1, **change)
    assert process_state(foreign) == "elsewhere"
    assert not owner_is_gone(str(foreign))


@pytest.mark.parametrize("text", ["", "1234", "a/b/c/d/e", "host:pid", "a/b/1/", "//1//"])
def test_what_names_no_process_names_none_that_is_gone(text: str) -> None:
    assert parse(text) is None
    assert not owner_is_gone(text)


def test_one_process_1_says_nothing_about_another(unshared: list[str]) -> None:
    both = [start(*unshared), start(*unshared)]
    try:
        texts = [said(process) for process in both]
        first, second = (parse(text) for text in texts)
        assert first is not None
        assert second is not None
        assert (first.pid, second.pid, first.host, second.host) == (1, 1, me().host, me().host)
        assert first.namespace != second.namespace
        # Each asked about the other, and about a process of ours.
        asks = (
            "from stages.runtime.liveness import parse, process_state; print([process_state(parse(t)) for t in"
            f" {[*texts, str(me())]!r}])"
        )
        told = subprocess.run([*unshared, sys.executable, "-c", asks], capture_output=True, text=True, check=True)
        assert told.stdout.strip() == str(["elsewhere"] * 3)
        assert [process_state(first), process_state(second)] == ["elsewhere"] * 2
    finally:
        for process in both:
            process.kill()
            process.communicate()


def test_where_proc_shows_other_numbers_nothing_is_said(unshared: list[str]) -> None:
    """Without --mount-proc, /proc/1 is the machine's first process, and this one believes to be
    number 1."""
    asks = "from stages.runtime.liveness import me, process_state; print(me().pid, process_state(me()))"
    command = ["unshare", "-Urpf", sys.executable, "-c", asks]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["1", "elsewhere"]


def test_after_a_fork_the_child_is_itself() -> None:
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, str(me()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    assert (found := parse(text)) is not None
    assert found.pid == child
    assert found != me()


@pytest.mark.parametrize("given", ["soon", "0", "-3", "nan", "inf"])
def test_a_time_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(
        LivenessError, match=r"VIDBRIDGE_LOST_AFTER_S: .* is not a number of seconds; set 1 or more, or unset it"
    ):
        lost_after_s({"VIDBRIDGE_LOST_AFTER_S": given})
    assert lost_after_s({}) == liveness.LOST_AFTER_S
