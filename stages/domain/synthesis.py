"""Which samples a set of clips gives: every task that is asked for, each clip with a generator of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stages.domain.records import SPLITS, Clip, Record, Reject, Sample, TaskName
from stages.domain.tasks import caption, dark_event_infer, mcqa, mix_vid_qa, structured_caption
from stages.domain.tasks.caption import Settings as CaptionSettings
from stages.domain.tasks.dark_event_infer import Settings as DarkEventInferSettings
from stages.domain.tasks.mcqa import Settings as McqaSettings
from stages.domain.tasks.mix_vid_qa import Settings as MixVidQASettings
from stages.domain.tasks.structured_caption import Settings as StructuredCaptionSettings


class TaskSettings(Record):
    """Settings of the tasks that are synthesised; a task that is not named is not made."""

    dark_event_infer: DarkEventInferSettings | None = None
    mix_vid_qa: MixVidQASettings | None = None
    mcqa: McqaSettings | None = None
    caption: CaptionSettings | None = None
    structured_caption: StructuredCaptionSettings | None = None


def synthesise(
    clips: Sequence[Clip], task: TaskName, settings: TaskSettings, sampled_frames: int, seed: int
) -> Iterator[tuple[Clip, list[Sample], list[Reject]]]:
    """The samples of one task, clip by clip in the order given, with what had to be set aside.

    Raises:
        ValueError: the task has no settings, so it is not to be made.
    """
    chosen = getattr(settings, task)
    if chosen is None:
        raise ValueError(f"synthesize.tasks.{task}: not set; give it settings to have it made")
    if isinstance(chosen, MixVidQASettings):
        rings = {split: mix_vid_qa.Ring([clip for clip in clips if clip.split == split]) for split in SPLITS}
        for clip in clips:
            yield clip, *mix_vid_qa.make(clip, rings[clip.split], chosen, sampled_frames, seed)
        return
    for clip in clips:
        match chosen:
            case DarkEventInferSettings():
                made = dark_event_infer.make(clip, chosen, sampled_frames, seed)
            case McqaSettings():
                made = mcqa.make(clip, chosen, sampled_frames, seed)
            case CaptionSettings():
                made = caption.make(clip, chosen, sampled_frames, seed)
            case StructuredCaptionSettings():
                made = structured_caption.make(clip, chosen, sampled_frames, seed)
            case _:
                raise TypeError(f"{task}: {type(chosen).__name__} is no task's settings")
        yield clip, *made
