"""Verdicts of a judge that takes a second for each, asked for side by side."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

from stages.domain.core.records import Sample
from stages.domain.core.replies import render_reply
from stages.domain.core.timeline import plain
from stages.domain.tasks.rewards import Referee
from stages.lib.judging.batch import score_replies
from stages.lib.judging.build import judge_of
from stages.lib.judging.embedder import LexicalEmbedder
from stages.params import OpenAIJudgeParams, load_params

FRAMES, RATE = 16, Fraction(8)


class SlowJudge(BaseHTTPRequestHandler):
    """Judge that answers every question after a second, as a large model does: right."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(1.0)
        verdict = {"choices": [{"message": {"content": json.dumps({"reason": "says it", "score": 2})}}], "usage": {}}
        body = json.dumps(verdict).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Listener(ThreadingHTTPServer):
    request_queue_size = 128


def judging(verdicts: int) -> tuple[float, int]:
    """Wall seconds for so many verdicts from a judge that takes a second for each, and how many of
    them were scored.
    """
    sample = Sample(
        sample_id="s",
        task="dark_event_infer",
        split="train",
        clip_id="c",
        timeline=plain("c", FRAMES, RATE),
        sampled_frames=FRAMES,
        question="what happens in the dark part ?",
        reference="the red bar rises",
        events=("the red bar rises",),
    )
    params = OpenAIJudgeParams.model_validate(
        {
            "kind": "openai",
            "model": "slow",
            "revision": "1",
            "temperature": 0.0,
            "max_tokens": 64,
            "seed": 1,
            "max_unavailable": 0.0,
        }
    )
    with tempfile.TemporaryDirectory() as folder, Listener(("127.0.0.1", 0), SlowJudge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        with patch.dict(os.environ, {"VIDBRIDGE_JUDGE_URL": url, "VIDBRIDGE_JUDGE_CACHE": folder}):
            referee = Referee(judge_of(params), LexicalEmbedder())
            replies = [render_reply("it rises", f"the red bar rises {number}") for number in range(verdicts)]
            began = time.perf_counter()
            scores = score_replies(
                [sample] * verdicts, replies, referee, load_params("infra/recipes/tiny.yaml").rewards
            )
            seconds = time.perf_counter() - began
        server.shutdown()
    return seconds, sum(score.value == 1.0 for score in scores)
