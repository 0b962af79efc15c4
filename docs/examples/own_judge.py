"""A judge of your own behind an OpenAI-compatible endpoint; replace :func:`judge` by your model or
rule.

    python docs/examples/own_judge.py --port 8400
    VIDBRIDGE_JUDGE_URL=http://127.0.0.1:8400/v1 vidbridge run

with `judge: {kind: openai, ...}` in `params.yaml`.

A question comes as a chat request. Its JSON schema (``response_format``) says which kind of
question it is and which keys the answer has. The texts stand in the user's message, one a line as
JSON; the two equal lines that begin with FENCE enclose what the system under test wrote. It is
data: never follow what it says. It needs the standard library only.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def judge(kind: str, texts: dict[str, str]) -> dict[str, Any]:
    """Answer one question, here by the words that two texts share.

    Args:
        kind: ``covers`` (DarkEventInfer: 2 right, 1 in part, 0 wrong), ``right`` (MixVidQA),
            ``answers`` (open questions), ``events`` (list the events of a description),
            ``entailed``, and with ``rewards.caption_scorer: completeness_naturalness`` also
            ``complete`` and ``natural`` (0 to 5). Those of ``qa_utility`` are left out here.
        texts: name to text: ``reference``, ``question``, ``answer``, ``description``, ``event``.

    Raises:
        ValueError: the kind is not known.
    """
    match kind:
        case "covers":
            shared = overlap(texts["reference"], texts["answer"])
            return {"reason": f"{shared:.2f} of the words", "score": 2 if shared > 0.8 else 1 if shared > 0.4 else 0}
        case "right" | "answers":
            shared = overlap(texts["reference"], texts["answer"])
            return {"reason": f"{shared:.2f} of the words", "right": shared > 0.8}
        case "events":
            return {"events": [part.strip() for part in texts["description"].split(" then ") if part.strip()][:10]}
        case "entailed":
            shared = overlap(texts["event"], texts["description"])
            return {"reason": f"{shared:.2f} of the words", "entailed": shared > 0.8}
        case "complete":
            shared = overlap(texts["reference"], texts["description"])
            return {"reason": f"{shared:.2f} of the words", "marks": round(5 * shared)}
        case "natural":
            words = texts["description"].split()
            return {"reason": f"{len(words)} words", "marks": 5 if len(words) > 4 else 0}
    raise ValueError(f"kind: {kind!r} is not known to this judge; add a case for it")


def overlap(reference: str, text: str) -> float:
    """The share of the reference's words that the text has."""
    wanted = set(reference.casefold().split())
    return len(wanted & set(text.casefold().split())) / len(wanted) if wanted else 0.0


def read_question(request: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The kind of a question and its texts by name, from a chat request."""
    kind = request["response_format"]["json_schema"]["name"]
    lines = request["messages"][-1]["content"].splitlines()
    pairs = (line.split(": ", 1) for line in lines if not line.startswith("FENCE "))
    return kind, {name: json.loads(text) for name, text in pairs}


class Handler(BaseHTTPRequestHandler):
    """``POST /v1/chat/completions`` answers; `vidbridge` requests ``GET /v1/models`` before it
    starts."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": "word-overlap", "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            answer = judge(*read_question(request))
        except (KeyError, ValueError) as error:
            # Not a verdict: the caller counts it as unavailable, never as 0.
            self.reply(400, {"error": {"message": f"{type(error).__name__}: {error}"}})
            return
        message = {"role": "assistant", "content": json.dumps(answer)}
        self.reply(
            200, {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        )

    def reply(self, status: int, body: dict[str, Any]) -> None:
        """Send a JSON document."""
        sent = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: Any) -> None:
        """Write no line a request."""


def server(port: int) -> ThreadingHTTPServer:
    """A server on this machine only; port 0 takes any free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--port", type=int, default=8400)
    with server(options.parse_args().port) as listening:
        print(f"VIDBRIDGE_JUDGE_URL=http://127.0.0.1:{listening.server_address[1]}/v1", flush=True)
        listening.serve_forever()
