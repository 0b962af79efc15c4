"""An OpenAI-compatible endpoint on a free port that checks every request, judges by the structure
of the question, and fails to order."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.support.judges.viewer import Shown, event_of, events_in, pictures_of

KEY = "sk-test-0123456789abcdef"


class Fault(NamedTuple):
    """What the endpoint does instead of answering: a status, a body of its own, a body cut short, a
    pause, or nothing at all."""

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    content: str | None = None  # what the model writes
    finish: str = "stop"
    missing_bytes: int = 0
    pause_s: float = 0.0
    cut: bool = False
    mute: bool = False  # the message has no content


class Asked(NamedTuple):
    kind: str
    user: str
    before: dict[str, str]  # what stands before the fence
    inside: dict[str, str]  # what stands inside it
    seed: int
    pictures: tuple[Shown, ...] = ()


def read_question(body: Mapping[str, Any]) -> Asked:
    """The parts of a question; AssertionError where it is not exactly one fence around lines of
    JSON strings."""
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    form = body["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["strict"] is True
    assert form["json_schema"]["schema"]["additionalProperties"] is False
    content = user["content"]
    text, pictures = (content, ()) if isinstance(content, str) else (content[0]["text"], pictures_of(content[1:]))
    assert isinstance(content, str) or pictures, "a list holds pictures"
    lines = text.splitlines()
    fences = [n for n, line in enumerate(lines) if line.startswith("FENCE")]
    assert len(fences) == 2, "one fence"
    first, last = fences
    assert lines[first] == lines[last]
    assert re.fullmatch(r"FENCE [0-9a-f]{24}", lines[first])
    assert text.count(lines[first]) == 2, "the fence is nowhere else"
    assert last == len(lines) - 1, "nothing comes after it"

    def fields(part: list[str]) -> dict[str, str]:
        return {name: json.loads(value) for name, value in (line.split(": ", 1) for line in part)}

    return Asked(
        form["json_schema"]["name"],
        text,
        fields(lines[:first]),
        fields(lines[first + 1 : last]),
        body["seed"],
        pictures,
    )


def verdict(asked: Asked) -> dict[str, Any]:
    """Words that are equal are right; nothing that a text says about itself counts."""
    if asked.kind.startswith(("write_", "try_")):
        return written(asked)
    if asked.kind == "propose_events":
        return {"events": list(events_in(asked.pictures))[: int(asked.before["most"])]}
    if asked.kind == "read_event":
        return {"caption": event_of(asked.pictures)}
    if asked.kind == "same_event":
        return {"reason": "", "same": asked.inside["first"] == asked.inside["second"]}
    if asked.kind == "events":
        return {"events": [part for part in asked.inside["description"].split(" then ") if part][:10]}
    if asked.kind == "entailed":
        return {
            "reason": asked.inside["event"][:80],
            "entailed": asked.inside["event"] in asked.inside["description"].split(" then "),
        }
    if asked.kind == "natural":
        return {"reason": "", "marks": 5 if asked.inside["description"].startswith("the ") else 0}
    if asked.kind == "complete":
        return {"reason": "", "marks": 5 if asked.inside["description"] == asked.before["reference"] else 2}
    answer, reference = asked.inside["answer"], asked.before["reference"]
    if asked.kind in ("right", "answers"):
        assert asked.before["question"], "the judge sees the question"
        return {"reason": answer[:80], "right": answer == reference}
    return {"reason": answer[:80], "score": 2 if answer == reference else 1 if answer in reference else 0}


def written(asked: Asked) -> dict[str, Any]:
    """What a good writer says of a clip that the notes tell: which event is asked about follows
    from the seed."""
    text = asked.inside
    notes = text.get("asked") or text.get("seen") or text.get("known") or ""
    events = re.findall(r"^Event \d+(?: \([a-z ]+\))?: (.*)$", notes, re.MULTILINE)
    told = re.search(r"^In all: (.*)$", notes, re.MULTILINE)
    if asked.kind == "write_question":
        number = asked.seed % len(events)
        return {
            "question": f"what does {events[number].rpartition(' ')[0]} do as number {number + 1} ?",
            "answer": events[number],
        }
    if asked.kind == "try_question":
        meant = re.search(r"does (.*) do (first|last|as number (\d))", text["question"])
        mine = [event for event in events if meant and event.startswith(meant[1])]
        number = 0 if not meant or meant[2] == "first" else -1 if meant[2] == "last" else int(meant[3]) - 1
        return {"answer": mine[number] if mine else "it sleeps"}
    caption = told[1] if told else " then ".join(events)
    if asked.kind == "write_analysis":
        looks, actions = re.search(r"^Seen: (.*); (.*)$", notes, re.MULTILINE).groups()  # type: ignore[union-attr]
        *attributes, name = looks.split()
        return {
            "subjects": [{"name": name, "attributes": attributes, "actions": actions.split(", ")}],
            "caption": caption,
        }
    thinking = f"what moves is this: {', then '.join(events)}."
    if asked.kind == "write_caption_trace":
        return {"thinking": thinking, "answer": caption}
    if asked.kind == "write_dark_trace":
        return {"thinking": thinking, "answer": re.findall(r"^Event \d+ \(.*\): (.*)$", notes, re.MULTILINE)[0]}
    if asked.kind == "write_answer_trace":
        before = re.search(r'right after "(.*)"', text["question"])
        at = events.index(before[1]) + 1 if before else -1 if "last" in text["question"] else 0
        return {"thinking": thinking, "answer": events[at]}
    answer = written(asked._replace(kind="try_question", inside={"question": text["question"], "known": notes}))[
        "answer"
    ]
    if asked.kind == "write_choice_trace":
        options = [line.split(". ", 1) for line in text["question"].splitlines()[1:]]
        return {
            "thinking": thinking,
            "answer": next(letter for letter, option in options if option == answer.split()[-1]),
        }
    assert asked.kind == "write_mixed_trace"
    return {"thinking": thinking, "answer": answer}


class JudgeServer:
    """``faults``: what to do with the next requests, one each; ``always``: with every request after
    them.

    ``fails``: the fault of a question, whenever it comes, before those of ``faults``; ``says``:
    other answers than those above, by kind of question; ``last``: the number of requests after
    which all fail.
    """

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.fails: Callable[[Asked], Fault | None] = lambda asked: None
        self.says: dict[str, Callable[[Asked], dict[str, Any]]] = {}
        self.last: int | None = None
        self.pause_s = 0.0
        self.asked: list[Asked] = []
        self.bodies: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self.wrong: list[str] = []
        self.most_under_way = 0
        self._under_way = 0
        self._lock = threading.Lock()

    @property
    def requests(self) -> int:
        return len(self.arrivals)

    def times_asked(self) -> Counter[str]:
        return Counter(asked.user for asked in self.asked)

    def environment(self, **changes: str) -> dict[str, str]:
        return {"VIDBRIDGE_JUDGE_URL": self.url, "VIDBRIDGE_JUDGE_KEY": KEY, **changes}

    url = ""

    def take(self, path: str, authorization: str, body: dict[str, Any]) -> tuple[Asked | None, Fault | None]:
        with self._lock:
            self.arrivals.append(time.monotonic())
            self._under_way += 1
            self.most_under_way = max(self.most_under_way, self._under_way)
            asked = None
            try:
                assert path == "/v1/chat/completions"
                assert authorization == f"Bearer {KEY}"
                asked = read_question(body)
                self.asked.append(asked)
                self.bodies.append(body)
            except (AssertionError, KeyError, ValueError) as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
            if self.last is not None and self.requests > self.last:
                return asked, Fault(status=503)
            if asked is not None and (fault := self.fails(asked)) is not None:
                return asked, fault
            return asked, self.faults.popleft() if self.faults else self.always

    def leave(self) -> None:
        with self._lock:
            self._under_way -= 1


def completion(content: str | None, finish: str = "stop") -> bytes:
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 60}},
        }
    ).encode()


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    state = JudgeServer()
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            taken = self.headers.get("Authorization") == f"Bearer {KEY}"
            self.send_response(200 if taken else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            asked, fault = state.take(self.path, self.headers.get("Authorization", ""), json.loads(raw))
            try:
                self._answer(asked, fault or Fault())
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                # A client that has read the answer may ask again at once: it is no longer under way
                # then.
                state.leave()

        def _answer(self, asked: Asked | None, fault: Fault) -> None:
            ended.wait(state.pause_s + fault.pause_s)
            if fault.cut:
                self.close_connection = True
                return
            if asked is None:
                fault = Fault(status=400, body=b"the request is not what was expected")
            said = (
                fault.content
                if fault.content is not None
                else json.dumps(state.says.get(asked.kind, verdict)(asked))
                if asked
                else ""
            )
            body = fault.body if fault.body is not None else completion(None if fault.mute else said, fault.finish)
            self.send_response(fault.status)
            for name, value in {"Content-Type": "application/json", **fault.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) + fault.missing_bytes))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = bool(fault.missing_bytes)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *arguments: Any) -> None:
            # A client that gave up, or was ended, is no fault.
            if not isinstance(error := sys.exc_info()[1], ConnectionError):
                state.wrong.append(repr(error))

    with Server(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            ended.set()
            server.shutdown()
            thread.join()
    assert state.wrong == [], state.wrong[:3]
