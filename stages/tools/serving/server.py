"""A version as a service: rows with a video and a question in, thinking and answer out.

A row, as JSON: ``{"video": "kitchen/cut-3.mp4", "question": "What happens first?"}``; instead of
``video`` (a path below the folder VIDBRIDGE_SERVE_VIDEOS) there may be ``video_base64``, and beside
it ``options`` (a list of choices) and ``task``.

``vidbridge serve`` runs it in our own application (:mod:`stages.tools.serving.app`), ``mlflow
models serve -m FOLDER`` in MLflow's. Clients are untrusted: paths stay below one folder, sizes are
bounded, for a request and for all of them together, decoding happens in separate processes that may
be ended, and generation stops when the time of the request is over. A request is refused with a
status and one sentence.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from mlflow.pyfunc.model import PythonModel

from stages.domain.core.frames import Frames
from stages.domain.core.prompts import render_prompt, render_question
from stages.domain.core.replies import parse_reply
from stages.domain.core.timeline import counts
from stages.domain.tasks import TASK_NAMES, is_analysed
from stages.runtime import paths
from stages.tools.serving.files import OpenFile, open_named
from stages.tools.serving.limits import (
    BATCH_PIXELS,
    DECODING_SHARE,
    FRAME_BYTES,
    REQUEST_FRAME_BYTES,
    limits_from_environment,
)
from stages.tools.serving.refusal import Refused
from stages.tools.serving.requests import QuestionRow, parse_rows
from stages.tools.serving.videos import Budget, Decoders, keep_base64, timed_out
from stages.tracking.registry.servable import parse_usage

_log = logging.getLogger(__name__)
#: Statuses as MLflow's exceptions name them; any other is a bad request.
_CODES = {500: codes.INTERNAL_ERROR, 503: codes.TEMPORARILY_UNAVAILABLE, 504: codes.DEADLINE_EXCEEDED}


class Refusal(MlflowException):
    """:class:`Refused`, as MLflow's server sends it."""

    def serialize_as_json(self) -> str:
        """Body of the refusal. MLflow's own would contain the input: a whole video, if it was sent
        as text."""
        return json.dumps({"error_code": self.error_code, "message": self.args[0]})


class Gone(Exception):
    """The client has disconnected."""


@dataclass(frozen=True)
class RowPrompt:
    """A row of a request: its prompt, and which of the request's files it is about."""

    prompt: str
    file: OpenFile


@dataclass(frozen=True)
class Request:
    """A request with its videos opened, each once. The caller closes it."""

    questions: tuple[RowPrompt, ...]

    @property
    def files(self) -> tuple[OpenFile, ...]:
        return tuple({question.file.key: question.file for question in self.questions}.values())

    def close(self) -> None:
        for file in self.files:
            file.close()


class VideoAnswers(PythonModel):
    """The pyfunc of a version's folder: loads weights and processor once, then answers one request
    at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._usage = parse_usage((folder / paths.USAGE_FILE).read_bytes(), paths.USAGE_FILE)

    def load_context(self, context: Any) -> None:  # noqa: ARG002 - what MLflow calls
        """Load the model.

        Raises:
            ValueError: a limit in the environment is not valid, or the size of the processor's
                frames is unbounded.
        """
        from stages.lib.models.load import device, load_model, use_threads
        from stages.lib.models.resizing import most_pixels

        self._limits = limits_from_environment()
        self._decoders = Decoders(self._folder, self._usage.sampled_frames, self._limits.timeout_s * DECODING_SHARE)
        atexit.register(self._decoders.close)
        use_threads()
        model, self._processor = load_model(self._folder, self._usage.model.precision)
        model.to(device())  # type: ignore[arg-type]
        self._model = model
        # More frames may each be smaller, so the largest number need not take the most.
        self._video_bytes = 3 * max(most_pixels(self._processor, n) * n for n in counts(self._usage.sampled_frames))
        self._frames = Budget(FRAME_BYTES)
        # One request after the other, in order of arrival: they share one device, and memory is
        # planned for one.
        self._turns = ThreadPoolExecutor(1, "turn", initializer=use_threads)
        if self._usage.caution:
            _log.warning("%s", self._usage.caution)

    def close(self) -> None:
        """End the processes that decode and answer."""
        self._turns.shutdown(cancel_futures=True)
        self._decoders.close()
        atexit.unregister(self._decoders.close)

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> list[dict[str, str | None]]:
        """Answer every row of a request through MLflow's server.

        Raises:
            Refusal: the request is wrong (400), it takes too long (504), or the server itself
                failed (500).
        """
        ends = time.monotonic() + self._limits.timeout_s
        try:
            request = self.receive(parse_rows(model_input.to_dict(orient="records")))
            try:
                return self.answer(request, ends)
            finally:
                request.close()
        except Refused as refused:
            code = _CODES.get(refused.status, codes.INVALID_PARAMETER_VALUE)
            raise Refusal(refused.sentence, error_code=code) from refused
        except Exception as error:
            # The boundary to the client: the traceback is for the server's log only.
            _log.exception("a request failed")
            raise Refusal(fault_message(error), error_code=codes.INTERNAL_ERROR) from error

    @property
    def timeout_s(self) -> float:
        """Time limit of a request."""
        return self._limits.timeout_s

    @property
    def max_body_bytes(self) -> int:
        """Size limit of a request."""
        return self._limits.max_body_bytes

    def receive(self, rows: Sequence[QuestionRow]) -> Request:
        """Open the videos of a request, each once however it is named; embedded videos become
        files.

        Raises:
            Refused: one is not available, or they are too large.
        """
        files: dict[tuple[object, ...], OpenFile] = {}
        questions = []
        left_bytes = self._limits.max_bytes
        try:
            for number, row in enumerate(rows):
                if row.video is not None:
                    file = open_named(self._limits.folder, row.video, self._limits.max_bytes)
                else:
                    file = keep_base64(row.video_base64 or b"", left_bytes)
                    left_bytes -= os.fstat(file.descriptor).st_size
                if file.key in files:
                    file.close()
                file = files.setdefault(file.key, file)
                question = render_question(row.question, row.options, self._usage.prompt)
                if row.task is not None and row.task not in (known := (*TASK_NAMES, *self._usage.tasks)):
                    names = ", ".join(dict.fromkeys(known))
                    raise Refused(400, f"row {number}: task: {row.task!r:.80} is not one; a request has one of {names}")
                analysed = self._usage.analysed if row.task is None else is_analysed(row.task)
                questions.append(RowPrompt(render_prompt(question, self._usage.prompt, analysed=analysed), file))
        except BaseException:
            for file in files.values():
                file.close()
            raise
        return Request(tuple(questions))

    def answer(self, request: Request, ends: float, gone: threading.Event | None = None) -> list[dict[str, Any]]:
        """Return for every question ``thinking`` and ``answer`` (None if the reply is not one block
        of each), the whole ``reply``, and ``warnings`` about its video, if there are any.

        Args:
            ends: end of the request's time, by the monotonic clock.
            gone: set when the client has disconnected.

        Raises:
            Refused: a video cannot be used, or the time is over.
            Gone: the client has disconnected.
        """
        files = request.files
        reserved = min(len(files) * self._video_bytes, REQUEST_FRAME_BYTES)
        with ExitStack() as reserving:
            reserving.enter_context(self._frames.of(reserved, ends))
            frames_of: dict[tuple[object, ...], Frames] = {}
            held_bytes = 0
            for file in files:
                if gone is not None and gone.is_set():
                    raise Gone
                frames_of[file.key] = frames = self._decode(file, ends)
                held_bytes += frames.pixels.nbytes
                if held_bytes > REQUEST_FRAME_BYTES:
                    allowed = f"{REQUEST_FRAME_BYTES >> 20} MB of frames are allowed"
                    raise Refused(
                        413, f"rows: the videos of one request are too large together, {allowed}; send fewer of them"
                    )
                if held_bytes > reserved:
                    # The processor alone scales some shapes: scaling twice would not give the same
                    # as once.
                    reserving.enter_context(self._frames.of(held_bytes - reserved, ends))
                    reserved = held_bytes
            items = [(question.prompt, frames_of[question.file.key]) for question in request.questions]
            turn = self._turns.submit(self._reply, items, ends, gone)
            try:
                return turn.result(max(ends - time.monotonic(), 0))
            except OutOfTime:
                if turn.cancel():
                    raise timed_out("waiting for other requests", self._limits.timeout_s) from None
                # It ends by itself, and reports that.
                return turn.result()

    def _decode(self, file: OpenFile, ends: float) -> Frames:
        from stages.lib.models.processor import UnfitFramesError, refuse_unfit

        field = "video_base64" if file.key[0] == "bytes" else "video"
        frames = self._decoders(file, field, ends)
        try:
            refuse_unfit(self._processor, frames)
        except UnfitFramesError as error:
            raise Refused(400, f"{field}: {error}") from error
        return frames

    def _reply(
        self, items: Sequence[tuple[str, Frames]], ends: float, gone: threading.Event | None
    ) -> list[dict[str, Any]]:
        from stages.lib.inference.generate import generate
        from stages.lib.inference.policy import ModelPolicy

        replies: list[str] = []
        for batch in batches(items):
            if gone is not None and gone.is_set():
                raise Gone
            policy = ModelPolicy(self._model, self._processor, max_time_s=max(ends - time.monotonic(), 0.001))
            replies += generate(policy, batch, max_new_tokens=self._usage.max_new_tokens, batch_size=len(batch))
            if time.monotonic() >= ends:
                raise timed_out("generation", self._limits.timeout_s)
        return [answer_row(text, frames.warnings) for text, (_, frames) in zip(replies, items, strict=True)]


def batches(items: Sequence[tuple[str, Frames]]) -> Iterator[Sequence[tuple[str, Frames]]]:
    """Batches of questions: in order, at most BATCH_PIXELS of frames together, or one."""
    start = pixels = 0
    for number, (_, frames) in enumerate(items):
        more = frames.pixels.size // 3
        if number > start and pixels + more > BATCH_PIXELS:
            yield items[start:number]
            start, pixels = number, 0
        pixels += more
    yield items[start:]


def fault_message(error: Exception) -> str:
    """Message about a fault of the server for an untrusted client: the exception's type, not its
    text."""
    return f"the server failed on this request ({type(error).__name__}); its log says more"


def answer_row(text: str, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """Response row of a reply: its parts, None if it does not parse, the whole text, and warnings
    about the video, if there are any."""
    reply = parse_reply(text)
    row: dict[str, Any] = {"thinking": reply and reply.thinking, "answer": reply and reply.answer, "reply": text}
    return row | ({"warnings": list(warnings)} if warnings else {})
