"""A model in this process: batches of questions, each video through processor and vision tower once
for all its questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from transformers import PreTrainedModel, ProcessorMixin

from stages.domain.core.frames import Frames
from stages.domain.core.timeline import sample_indices
from stages.lib.inference.generate import greedy_replies, sampled_replies
from stages.lib.inference.vision_cache import encode_equal_videos_once
from stages.lib.models.processor import EncodedPrompt, EncodedVideo, UnfitFramesError, about_video, encode_video
from stages.lib.video.errors import VideoError
from stages.tools.suites.engines.questions import Answer, Load, OnAnswers, Question, View, apply_view, seed_of


class LocalModel:
    """A model and its processor, prepared for several questions about a video: its tower is frozen,
    its features are cached.

    Args:
        seed: of the frame order of shuffled videos, and of sampled replies.
        temperature: of sampled replies; 0: none are asked for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        max_new_tokens: int,
        seed: int,
        temperature: float = 0.0,
    ) -> None:
        model.requires_grad_(False)
        encode_equal_videos_once(model)
        self._model, self._processor = model, processor
        self._max_new_tokens, self._seed, self._temperature = max_new_tokens, seed, temperature

    def answer(
        self, questions: Sequence[Question], pending: set[Question], load: Load, batch_size: int, on_answers: OnAnswers
    ) -> None:
        """Ask the pending questions; ``on_answers`` is called after each batch.

        The batches are cut from all ``questions``, whatever is pending: a reply does not depend on
        where an earlier call was interrupted. Greedy and sampled replies share no batch.
        """
        videos = _Videos(self._processor, load, _room(self._model, self._max_new_tokens), questions, self._seed)
        greedy = [question for question in questions if question.number is None]
        sampled = [question for question in questions if question.number is not None]
        for batch in (
            alike[start : start + batch_size]
            for alike in (greedy, sampled)
            for start in range(0, len(alike), batch_size)
        ):
            if pending.isdisjoint(batch):
                continue
            prompts: dict[Question, tuple[EncodedPrompt, int]] = {}
            failed: list[Answer] = []
            for question in batch:
                try:
                    prompts[question] = videos.prompt(question)
                except VideoError as error:
                    failed.append(Answer(question, None, 0, str(error)))
            replies = self._replies(prompts)
            answered = [
                Answer(question, reply, frames, "")
                for (question, (_, frames)), reply in zip(prompts.items(), replies, strict=True)
            ]
            on_answers([answer for answer in (*answered, *failed) if answer.question in pending])

    def _replies(self, prompts: Mapping[Question, tuple[EncodedPrompt, int]]) -> list[str]:
        """Reply to the prompts of a batch, all greedy or all sampled."""
        if not prompts:
            return []
        encoded = [prompt for prompt, _ in prompts.values()]
        if next(iter(prompts)).number is None:
            return greedy_replies(self._model, self._processor, encoded, self._max_new_tokens)
        seeds = [seed_of(self._seed, question) for question in prompts]
        return sampled_replies(self._model, self._processor, encoded, seeds, self._max_new_tokens, self._temperature)


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
        self._encoded: dict[View, EncodedVideo] = {}

    def prompt(self, question: Question) -> tuple[EncodedPrompt, int]:
        """Encode the question with its video. Returns the prompt and the number of frames.

        Raises:
            VideoError: the video cannot be read, or the model cannot take it.
        """
        if question.video_key != self._video_key:
            self._video_key, self._encoded = question.video_key, {}
            try:
                self._frames = self._fitted(self._load(question.video_key), self._prompts[question.video_key])
            except VideoError as error:
                self._frames = error  # all questions about it have the same reason
            except UnfitFramesError as error:
                self._frames = VideoError("unfit-frames", str(error))
        if isinstance(self._frames, VideoError):
            raise self._frames
        assert self._frames is not None
        if question.view not in self._encoded:
            changed = apply_view(self._frames, question.view, f"{self._seed}/{question.video_key}")
            self._encoded[question.view] = encode_video(self._processor, changed)
        return about_video(self._processor, question.prompt, self._encoded[question.view]), len(self._frames.pixels)

    def _fitted(self, frames: Frames, prompts: Sequence[str]) -> Frames:
        """Drop frames if the model cannot take all of them beside the longest of the prompts and a
        reply."""
        while True:
            video = encode_video(self._processor, frames)
            longest = max(len(about_video(self._processor, prompt, video).ids) for prompt in prompts)
            if longest <= self._room:
                self._encoded["video"] = video
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


def _room(model: PreTrainedModel, max_new_tokens: int) -> int:
    """Most tokens of a prompt."""
    return int(model.config.get_text_config().max_position_embeddings) - max_new_tokens
