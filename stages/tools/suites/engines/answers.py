"""Replies on disk: a line per question as it is answered, so that an interrupted evaluation can
resume.

A folder holds ``identity.json`` (everything a reply depends on), ``predictions.jsonl`` and one such
file per control view and of sampled replies (lines that ``vidbridge score`` reads: ``{"id":
"001-1", "reply": "B", "frames": 64, "identity": "0f3a…", "content": "9c11…"}``, the last one a
digest of the reply's video), and ``unanswered.jsonl``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from stages.domain.core.digest import digest
from stages.runtime import paths
from stages.tools.suites.engines.questions import CONTROLS, Answer, EngineError, Kind, Question, View
from stages.tools.suites.published.predictions import MAX_CHARACTERS

IDENTITY_FILE = "identity.json"
UNANSWERED_FILE = "unanswered.jsonl"
_LOCK_FILE = ".lock"
VIEWS: tuple[View, ...] = ("video", *CONTROLS)
SAMPLED: Kind = "sampled"


#: Id of a question to a digest of its video.
ContentOf = Callable[[str], str | None]


class Answers:
    """The replies in a folder, by view and id; :meth:`add` writes more. Opened by
    :func:`open_answers`."""

    def __init__(
        self,
        folder: Path,
        identity: str,
        files: Mapping[Kind, TextIO],
        content_of: ContentOf,
        replaced: Mapping[Kind, frozenset[str]],
    ) -> None:
        self.replies: dict[View, dict[str, str]] = {
            view: _read(paths.predictions_file(folder, view), identity) for view in VIEWS
        }
        #: Sampled replies, by id and number.
        self.sampled: dict[tuple[str, int], str] = {
            (item_id, number): reply
            for (item_id, number), (reply, _, _) in _rows(paths.predictions_file(folder, SAMPLED), identity).items()
            if number is not None
        }
        #: Questions of this call without a reply, by question, with the reason.
        self.unanswered: dict[Question, str] = {}
        #: Ids of questions whose reply was dropped, since its video has changed.
        self.replaced = replaced
        self._folder, self._identity, self._files, self._content_of = folder, identity, files, content_of

    def pending(self, questions: Sequence[Question]) -> set[Question]:
        return {question for question in questions if not self._answered(question)}

    def _answered(self, question: Question) -> bool:
        if question.number is None:
            return question.item_id in self.replies[question.view]
        return (question.item_id, question.number) in self.sampled

    def add(self, answers: Sequence[Answer]) -> None:
        """Write answers; each line is flushed to the system before this returns."""
        for answer in answers:
            question = answer.question
            if answer.reply is None:
                self.unanswered[question] = answer.reason
                continue
            if len(answer.reply) > MAX_CHARACTERS:
                # In the file it would prevent all others from being scored.
                self.unanswered[question] = (
                    f"a reply of {len(answer.reply):,} characters, at most {MAX_CHARACTERS:,} are kept"
                )
                continue
            row = {"id": question.item_id, "reply": answer.reply, "frames": answer.frames, "identity": self._identity}
            row["content"] = self._content_of(question.item_id)
            if question.number is not None:
                row["number"] = question.number
            file = self._files[question.kind]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            if question.number is not None:
                self.sampled[question.item_id, question.number] = answer.reply
            else:
                self.replies[question.view][question.item_id] = answer.reply

    def close(self) -> None:
        """Write the unanswered questions."""
        rows = [
            {"id": question.item_id, "view": question.kind, "video": question.video_key, "reason": reason}
            for question, reason in self.unanswered.items()
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self._folder / UNANSWERED_FILE).write_text(text, encoding="utf-8")


@contextmanager
def open_answers(
    folder: Path, identity: Mapping[str, Any], content_of: ContentOf, sampled: bool = False
) -> Iterator[Answers]:
    """Open the replies of ``folder``, which is created if missing and locked for this process.

    Replies about a video that has been replaced are dropped.

    Args:
        content_of: id of a question to a digest of its present video; None: it is missing, which
            drops no reply.
        sampled: sampled replies are asked for, too.

    Raises:
        EngineError: it cannot be created, it holds replies of another identity or invalid lines, or
            another process is writing there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(
            "--out", f"{folder}: cannot be made ({error.strerror})", "name a folder that can be written to"
        ) from error
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / _LOCK_FILE, timeout=0))
        except Timeout as error:
            raise EngineError(
                "--out", f"another evaluation is writing into {folder}", "wait for it, or name another folder"
            ) from error
        _check_identity(folder, identity)
        replaced = {}
        kinds: tuple[Kind, ...] = (*VIEWS, SAMPLED) if sampled else VIEWS
        for kind in kinds:
            _drop_half_line(paths.predictions_file(folder, kind))
            replaced[kind] = _drop_replaced(paths.predictions_file(folder, kind), digest(identity), content_of)
        files = {
            kind: stack.enter_context(paths.predictions_file(folder, kind).open("a", encoding="utf-8"))
            for kind in kinds
        }
        answers = Answers(folder, digest(identity), files, content_of, replaced)
        try:
            yield answers
        finally:
            answers.close()


def _check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    path = folder / IDENTITY_FILE
    expected = json.loads(json.dumps(identity))
    if not path.exists():
        strange = next((name.name for view in VIEWS if (name := paths.predictions_file(folder, view)).exists()), None)
        if strange is not None:
            raise EngineError(
                "--out",
                f"{folder} holds {strange} but no {IDENTITY_FILE}, so its owner is unknown",
                "name another folder",
            )
        path.write_text(json.dumps(expected, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EngineError("--out", f"{path}: not JSON ({error})", "name another folder") from error
    if stored != expected:
        differs = [
            f"{name} ({_display(stored.get(name))} there, {_display(expected.get(name))} now)"
            for name in {**stored, **expected}
            if stored.get(name) != expected.get(name)
        ]
        raise EngineError(
            "--out",
            f"{folder} holds replies of another evaluation, which differs in {'; '.join(differs)}",
            "name another folder",
        )


def _display(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _drop_half_line(path: Path) -> None:
    """Cut off the text behind the last line break, left by a process that was killed."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)


def _drop_replaced(path: Path, identity: str, content_of: ContentOf) -> frozenset[str]:
    """Remove the replies whose video has other content now. Returns their ids."""
    kept, dropped = [], set()
    for (item_id, _), (_, content, line) in _rows(path, identity).items():
        now = content_of(item_id)
        if now is None or now == content:
            kept.append(line)
        else:
            dropped.add(item_id)
    if dropped:
        unfinished = path.with_suffix(paths.UNFINISHED)
        unfinished.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        unfinished.replace(path)
    return frozenset(dropped)


def _read(path: Path, identity: str) -> dict[str, str]:
    return {item_id: reply for (item_id, _), (reply, _, _) in _rows(path, identity).items()}


def _rows(path: Path, identity: str) -> dict[tuple[str, int | None], tuple[str, str | None, str]]:
    """Map id, and number of a sampled reply, to reply, digest of its video, and line."""
    rows: dict[tuple[str, int | None], tuple[str, str | None, str]] = {}
    for position, line in enumerate(path.read_text(encoding="utf-8").split("\n") if path.exists() else (), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            item_id, reply, whose, content = row["id"], row["reply"], row["identity"], row["content"]
            number = row["number"] if path.name == paths.predictions_file(Path(), SAMPLED).name else None
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                "--out",
                f"{path}:{position}: no reply of this command ({error!r})",
                "delete that line, or name another folder",
            ) from error
        if whose != identity:
            raise EngineError(
                "--out",
                f"{path}:{position}: the reply of another evaluation ({whose}, not {identity})",
                "name another folder",
            )
        rows[item_id, number] = (reply, content, line)
    return rows
