"""Stand-in of vLLM: this project's own decoding behind the server's protocol, on a real socket."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import transformers
import uvicorn

from stages.domain.core.frames import Frames
from stages.lib.engine.client import UNIX, EngineClient
from stages.lib.engine.wire import Question, Reply, Sampling, Video
from stages.lib.engine_server.app import Answering, Refused
from stages.lib.inference.decode import Limits, SeededDraws, decode, greedy
from stages.lib.models.load import load_model
from stages.lib.models.processor import EncodedPrompt, _process_videos, split_videos


class HfEngine:
    """A saved model, decoded as in training."""

    device = "cpu"

    def __init__(self, model: Path) -> None:
        self.model = str(model)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self._net, self._processor = load_model(model, "fp32")
        self._one_at_a_time = threading.Lock()

    async def generate(
        self, question: Question, videos: Sequence[Video], seeds: Sequence[str | None], sampling: Sampling
    ) -> tuple[list[int], list[Reply]]:
        return await asyncio.to_thread(self._generate, question, videos, seeds, sampling)

    def _generate(
        self, question: Question, videos: Sequence[Video], seeds: Sequence[str | None], sampling: Sampling
    ) -> tuple[list[int], list[Reply]]:
        prompt = self._expanded(question, videos)
        room = self._net.config.text_config.max_position_embeddings
        if len(prompt.ids) + sampling.max_tokens > room:
            raise Refused(f"{len(prompt.ids)} + {sampling.max_tokens} tokens, and the model reads {room}")
        sampled = [seed for seed in seeds if seed is not None]
        drawn = SeededDraws(sampled, sampling.temperature, torch.device("cpu")) if sampled else greedy
        assert len(sampled) in (0, len(seeds)), "of one kind at a time"
        with self._one_at_a_time:
            replies = decode(
                self._net,
                self._processor,
                [prompt] * len(seeds),
                drawn,
                Limits(sampling.max_tokens, sampling.ends, sampling.suppressed, sampling.min_tokens),
                logps_at=(sampling.temperature if sampled else 1.0) if sampling.logps else None,
            )
        return list(prompt.ids), [
            Reply(reply.ids, reply.logps, "end" if reply.ids[-1] in sampling.ends else "length") for reply in replies
        ]

    def _expanded(self, question: Question, videos: Sequence[Video]) -> EncodedPrompt:
        processor: Any = self._processor
        shown = [
            Frames(
                video.pixels,
                tuple(video.metadata["frames_indices"]),
                video.metadata["total_num_frames"],
                Fraction(video.metadata["fps"]),
            )
            for video in videos
        ]
        fields, expansions = _process_videos(processor, shown)
        text = processor.tokenizer.decode(list(question.prompt_ids), skip_special_tokens=False)
        texts, _ = processor.get_text_with_replacements([text], videos_replacements=list(expansions))
        ids = processor.tokenizer(texts[0], add_special_tokens=False)["input_ids"]
        return EncodedPrompt(tuple(ids), split_videos(fields, [len(videos)])[0])

    async def load_weights(self, folder: Path) -> None:
        self._net, self._processor = load_model(folder, "fp32")


@dataclass(frozen=True)
class Served:
    """A stand-in that answers at an address; ``ended``: its engine has ended."""

    address: str
    answering: Answering
    ended: threading.Event

    def client(self, **options: Any) -> EngineClient:
        return EngineClient(self.address, **options)


@contextmanager
def served(
    engine: Any,
    *,
    weights: str = "",
    key: str | None = None,
    video_bytes: int = 1 << 24,
    tcp: bool = False,
    at: Path | None = None,
) -> Iterator[Served]:
    """Serve an engine in a thread, on a Unix socket (``at`` a path, or anywhere) or on a free port
    of loopback."""
    with tempfile.TemporaryDirectory(prefix="stand-in-") as folder:
        socket = f"{folder}/s" if at is None else str(at)
        started: list[Served] = []

        async def run() -> None:
            answering = Answering(engine, weights=weights, key=key, video_bytes=video_bytes, on_death=leave)
            where: dict[str, Any] = {"host": "127.0.0.1", "port": 0} if tcp else {"uds": socket}
            config = uvicorn.Config(answering.app(), lifespan="off", log_config=None, access_log=False, **where)
            servers.append(uvicorn.Server(config))
            serving = asyncio.ensure_future(servers[0].serve())
            while not servers[0].started and not serving.done():
                await asyncio.sleep(0.005)
            port = servers[0].servers[0].sockets[0].getsockname()[1] if tcp else None
            started.append(Served(f"http://127.0.0.1:{port}" if tcp else f"{UNIX}{socket}", answering, ended))
            await serving

        def leave() -> None:
            servers[0].should_exit = True
            ended.set()

        servers: list[uvicorn.Server] = []
        ended = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        until = time.monotonic() + 30
        while not started:
            assert thread.is_alive(), "the stand-in did not start"
            assert time.monotonic() < until
            time.sleep(0.005)
        try:
            yield started[0]
        finally:
            leave()
            thread.join(30)
            assert not thread.is_alive()
