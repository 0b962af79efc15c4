"""A model in this process: batches of questions, each video through processor and vision tower once
for all its questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from transformers import PreTrainedModel, ProcessorMixin

from stages.domain.core.frames import Frames
from stages.domain.core.timeline import sample_indices
from stages.lib.inference.generate import replies
from stages.lib.inference.policy import Draws, Policy, Query
from stages.lib.inference.vision_cache import encode_equal_videos_once
from stages.lib.models.processor import EncodedVideo, UnfitFramesError, about_video, encode_video
from stages.lib.video.errors import VideoError
from stages.tools.suites.engines.questions import Answer, Load, OnAnswers, Question, View, apply_view, seed_of


def prepare(model: PreTrainedModel) -> None:
    """Prepare a model of this process for several questions about a video: its tower is frozen, its
    features are cached."""
    model.requires_grad_(False)
    encode_equal_videos_once(model)


class LocalModel:
    """A policy that is shown videos as it was trained on them.

    Args:
        seed: of the frame order of shuffled videos, and of sampled replies.
        temperature: of sampled replies; 0: none are asked for.
    """

    def __init__(
        self,
        policy: Policy,
        max_new_tokens: int,
        seed: int,
        temperature: float = 0.0,
    ) -> None:
        self._policy = policy
        self._max_new_tokens, self._seed, self._temperature = max_new_tokens, seed, temperature

    def answer(
        self, questions: Sequence[Question], pending: set[Question], load: Load, batch_size: int, on_answers: OnAnswers
    ) -> None:
        """Ask the pending questions; ``on_answers`` is called after each batch.

        The batches are cut from all ``questions``, whatever is pending: a reply does not depend on
        where an earlier call was interrupted. Greedy and sampled replies share no batch.
        """
        room = self._policy.max_tokens - self._max_new_tokens
        videos = _Videos(self._policy.processor, load, room, questions, self._seed)
        greedy = [question for question in questions if question.number is None]
        sampled = [question for question in questions if question.number is not None]
        for batch in (
            alike[start : start + batch_size]
            for alike in (greedy, sampled)
            for start in range(0, len(alike), batch_size)
        ):
            if pending.isdisjoint(batch):
                continue
            queries: dict[Question, Query] = {}
            failed: list[Answer] = []
            for question in batch:
                try:
                    queries[question] = videos.query(question)
                except VideoError as error:
                    failed.append(Answer(question, None, 0, str(error)))
            answered = [
                Answer(question, reply, len(query.frames.pixels), "")
                for (question, query), reply in zip(queries.items(), self._replies(queries), strict=True)
            ]
            on_answers([answer for answer in (*answered, *failed) if answer.question in pending])

    def _replies(self, queries: Mapping[Question, Query]) -> list[str]:
        """Reply to the queries of a batch, all greedy or all sampled."""
        if not queries:
            return []
        draws = None
        if next(iter(queries)).number is not None:
            draws = Draws([seed_of(self._seed, question) for question in queries], self._temperature)
        return replies(self._policy, [*queries.values()], self._max_new_tokens, draws)


class _Videos:
    """Videos of a batch's questions. Only the last one is kept, since questions about one video are
    adjacent."""

    def __init__(
        self, processor: ProcessorMixin, load: Load, room: int, all_questions: Sequence[Question], seed: int
    ) -> None:
        self._processor, self._load, self._room, self._seed = processor, load, room, seed
        self._prompts = {
            video_key: list(dict.fromkeys(question.prompt for question in questions))
            for video_key, questions in groupby(all_questions, key=lambda question: question.video_key)
        }
        self._video_key: str | None = None
        self._frames: Frames | VideoError | None = None
        self._shown: dict[View, tuple[Frames, EncodedVideo]] = {}

    def query(self, question: Question) -> Query:
        """Encode the question with its video.

        Raises:
            VideoError: the video cannot be read, or the model cannot take it.
        """
        if question.video_key != self._video_key:
            self._video_key, self._shown = question.video_key, {}
            try:
                self._frames = self._fitted(self._load(question.video_key), self._prompts[question.video_key])
            except VideoError as error:
                self._frames = error  # all questions about it have the same reason
            except UnfitFramesError as error:
                self._frames = VideoError("unfit-frames", str(error))
        if isinstance(self._frames, VideoError):
            raise self._frames
        assert self._frames is not None
        if question.view not in self._shown:
            changed = apply_view(self._frames, question.view, f"{self._seed}/{question.video_key}")
            self._shown[question.view] = changed, encode_video(self._processor, changed)
        frames, video = self._shown[question.view]
        return Query(question.prompt, frames, about_video(self._processor, question.prompt, video))

    def _fitted(self, frames: Frames, prompts: Sequence[str]) -> Frames:
        """Drop frames if the model cannot take all of them beside the longest of the prompts and a
        reply."""
        while True:
            video = encode_video(self._processor, frames)
            longest = max(len(about_video(self._processor, prompt, video).ids) for prompt in prompts)
            if longest <= self._room:
                self._shown["video"] = frames, video
                return frames
            count = len(frames.pixels)
            fewer = min(count - 2, count * self._room // longest // 2 * 2)
            if fewer < 2:
                raise VideoError(
                    "too-large",
                    f"{longest} tokens with {count} frames, and the model takes {self._room} beside a reply",
                )
            frames = thinned(frames, fewer)


def thinned(frames: Frames, count: int) -> Frames:
    """Take ``count`` of the frames, spread evenly, with the first and the last."""
    kept = sample_indices(len(frames.pixels), count)
    return replace(frames, pixels=frames.pixels[list(kept)], indices=tuple(frames.indices[number] for number in kept))
