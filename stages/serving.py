"""A version as a service: MLflow hands over rows with a video and a question, and gets back thinking and answer.

A row, as JSON: ``{"video": "kitchen/cut-3.mp4", "question": "What happens first?"}``; instead of ``video`` (a path below the
folder VIDBRIDGE_SERVE_VIDEOS) there may be ``video_base64``, and beside it ``options`` (a list of choices) and ``task``.

Whoever asks is a stranger. Paths stay below one folder, sizes are bounded, decoding happens in a process of its own that may be
ended, and generation stops when the time of the request is over. A request is refused with a status and one sentence.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from mlflow.pyfunc.model import PythonModel
from pydantic import Field, ValidationError, model_validator

from stages import layout
from stages.domain.frames import Frames
from stages.domain.prompts import render_prompt, render_question
from stages.domain.records import Record, TaskName
from stages.domain.replies import parse_reply
from stages.serving_limits import FOLDER, MEGABYTES, SECONDS, limits_from_environment
from stages.sources.links import Links
from stages.tracking.servable import parse_usage
from stages.video.bounded import Wanted, load_bounded
from stages.video.errors import VideoError
from stages.workers import Aside, Lost

#: Questions of one request; they are answered in one batch.
MAX_ROWS = 16
#: Letters of a question with its options.
MAX_TEXT = 8192
#: Pixels of one video's frames in memory.
MAX_PIXEL_BYTES = 1 << 30

_log = logging.getLogger(__name__)


class Refusal(MlflowException):
    """A request that gets no answer, and why: a status and a sentence that says field, value, remedy."""

    def serialize_as_json(self) -> str:
        """What is sent. MLflow would put the input before the sentence: a whole video, were it sent as text."""
        return json.dumps({"error_code": self.error_code, "message": self.args[0]})


def _bad(sentence: str) -> Refusal:
    return Refusal(sentence, error_code=codes.INVALID_PARAMETER_VALUE)


def _late(what: str, limit_s: float) -> Refusal:
    return Refusal(
        f"{what}: not done within {limit_s:g} s ({SECONDS}); send a shorter video or fewer questions",
        error_code=codes.DEADLINE_EXCEEDED,
    )


class Asked(Record):
    """One row of a request."""

    question: str = Field(min_length=1, max_length=MAX_TEXT)
    #: Exactly one of the two: a path below the folder of the server, with forward slashes, or the bytes of a file.
    video: str | None = None
    video_base64: str | None = None
    options: tuple[str, ...] = Field(default=(), max_length=26)
    task: TaskName | None = None

    @model_validator(mode="after")
    def _has_one_video(self) -> Asked:
        if (self.video is None) == (self.video_base64 is None):
            given = "none" if self.video is None else "both"
            raise ValueError(f"video, video_base64: {given} given; send one of them")
        if len(self.question) + sum(map(len, self.options)) > MAX_TEXT:
            raise ValueError(f"question: with its options over {MAX_TEXT} letters; shorten it")
        return self


def find_video(folder: Path | None, name: str, max_bytes: int) -> Path:
    """The file that a request names.

    Raises:
        Refusal: the path is absolute, leads out of the folder (through ``..`` or a link), names no file, or one that is too large.
    """
    if folder is None:
        raise _bad(f"video: this server reads no files; send video_base64, or start it with {FOLDER} set to a folder")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise _bad(f"video: {name[:200]!r} may not leave the server's folder; give a path below it, without '..'")
    try:
        found = (folder / path).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise _bad(f"video: {name[:200]!r} is no file in the server's folder; give the path of one") from error
    # A folder that DVC checked out with links holds links into its cache; a caller sees files. No other link may lead out.
    if not found.is_relative_to(folder) and not Links(folder).in_store(found):
        raise _bad(f"video: {name[:200]!r} may not leave the server's folder; give a path below it, not a link that leads out")
    if not found.is_file():
        raise _bad(f"video: {name[:200]!r} is no file in the server's folder; give the path of one")
    if found.stat().st_size > max_bytes:
        raise _bad(_too_large("video", found.stat().st_size, max_bytes))
    return found


def _too_large(field: str, size: float, max_bytes: int) -> str:
    return f"{field}: {size / (1 << 20):.1f} MB, {max_bytes / (1 << 20):.3g} MB are allowed ({MEGABYTES}); send a smaller file"


def decode_text(text: str, max_bytes: int) -> bytes:
    """The bytes of a video sent as base64.

    Raises:
        Refusal: too many, none, or not base64.
    """
    if len(text) * 3 // 4 > max_bytes + 2:
        raise _bad(_too_large("video_base64", len(text) * 3 / 4, max_bytes))
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(f"video_base64: {error}; send the file's bytes as standard base64, without line breaks") from error
    if not content:
        raise _bad("video_base64: empty; send the bytes of a video file")
    return content


def parse_rows(rows: Sequence[dict[str, Any]]) -> list[Asked]:
    """The rows of a request, as MLflow's tables hold them: what was left out is missing, None or NaN.

    Raises:
        Refusal: there are none, too many, or one is not as it has to be.
    """
    if not 0 < len(rows) <= MAX_ROWS:
        raise _bad(f"rows: {len(rows)} in one request; send 1 to {MAX_ROWS}")
    asked = []
    for number, row in enumerate(rows):
        given = {str(name): value for name, value in row.items() if not _absent(value)}
        try:
            asked.append(Asked.model_validate(given))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            sentence = first["msg"].removeprefix("Value error, ")
            raise _bad(f"row {number}: {f'{field}: ' if field else ''}{sentence}") from error
    return asked


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


class VideoAnswers(PythonModel):
    """The pyfunc of a version's folder: loads weights and processor once, then answers one request at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._usage = parse_usage((folder / layout.USAGE_FILE).read_bytes(), layout.USAGE_FILE)

    def load_context(self, context: Any) -> None:  # noqa: ARG002 - what MLflow calls
        """Load the model.

        Raises:
            ValueError: the environment sets a limit that is none.
        """
        from stages.learning.factory import device, load_model, use_threads

        self._limits = limits_from_environment()
        self._load = Aside(load_bounded)
        atexit.register(self._load.close)
        use_threads()
        model, self._processor = load_model(self._folder, self._usage.model.precision)
        model.to(device())  # type: ignore[arg-type]
        self._model = model
        self._turn = threading.Lock()
        if self._usage.caution:
            _log.warning("%s", self._usage.caution)

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> list[dict[str, str | None]]:
        """Answer every row: ``thinking`` and ``answer`` (None where the reply is not one block of each), and the whole ``reply``.

        Raises:
            Refusal: something about the request is wrong (400), it takes too long (504), or the server itself failed (500).
        """
        ends = time.monotonic() + self._limits.timeout_s
        try:
            rows = parse_rows(model_input.to_dict(orient="records"))
            with self._my_turn(ends):
                return self._answer(rows, ends)
        except Refusal:
            raise
        except Exception as error:
            # The boundary to whoever asked: the traceback is for the server's log, not for them.
            _log.exception("a request failed")
            raise Refusal(
                f"the server failed on this request ({type(error).__name__}); its log says more", error_code=codes.INTERNAL_ERROR
            ) from error

    def _answer(self, rows: Sequence[Asked], ends: float) -> list[dict[str, str | None]]:
        from stages.learning.generate import generate
        from stages.learning.processor import UnfitFramesError, refuse_unfit

        videos: dict[tuple[str, str], Frames] = {}
        items = []
        for row in rows:
            key = ("path", row.video) if row.video is not None else ("bytes", row.video_base64 or "")
            if key not in videos:
                videos[key] = self._frames(*key, ends)
                try:
                    refuse_unfit(self._processor, videos[key])
                except UnfitFramesError as error:
                    raise _bad(f"{'video' if key[0] == 'path' else 'video_base64'}: {error}") from error
            question = render_question(row.question, row.options, self._usage.prompt)
            items.append((render_prompt(question, row.task or self._usage.default_task, self._usage.prompt), videos[key]))
        replies = generate(
            self._model,
            self._processor,
            items,
            max_new_tokens=self._usage.max_new_tokens,
            batch_size=len(items),
            max_time_s=max(ends - time.monotonic(), 0.001),
        )
        if time.monotonic() >= ends:
            raise _late("generation", self._limits.timeout_s)
        return [answer_row(text) for text in replies]

    def _frames(self, kind: Literal["path", "bytes"] | str, value: str, ends: float) -> Frames:
        if kind == "path":
            return self._decode(find_video(self._limits.folder, value, self._limits.max_bytes), "video", ends)
        content = decode_text(value, self._limits.max_bytes)
        with TemporaryDirectory(prefix="vidbridge-") as folder:
            file = Path(folder) / "video_base64"
            file.write_bytes(content)
            return self._decode(file, "video_base64", ends)

    def _decode(self, file: Path, field: str, ends: float) -> Frames:
        try:
            frames = self._load(Wanted(file, self._usage.sampled_frames, MAX_PIXEL_BYTES), max(ends - time.monotonic(), 0.001))
        except VideoError as error:
            raise _bad(f"{field}: {error}; send a video that ffmpeg can read") from error
        if isinstance(frames, Lost):
            if frames.reason == "timeout":
                raise _late(f"decoding {field}", self._limits.timeout_s)
            raise _bad(f"{field}: {frames.detail}; send a video that ffmpeg can read")
        return frames

    @contextmanager
    def _my_turn(self, ends: float) -> Iterator[None]:
        """One request at a time: they would share one device, and memory is planned for one."""
        if not self._turn.acquire(timeout=max(ends - time.monotonic(), 0)):
            raise _late("waiting for other requests", self._limits.timeout_s)
        try:
            yield
        finally:
            self._turn.release()


def answer_row(text: str) -> dict[str, str | None]:
    """A reply as it is sent: its parts, None where it does not parse, and the whole."""
    reply = parse_reply(text)
    return {"thinking": reply and reply.thinking, "answer": reply and reply.answer, "reply": text}
