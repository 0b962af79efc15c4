"""Which samples a set of clips gives: every task that is asked for, each clip with a generator of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stages.domain.core.records import SPLITS, Clip, Record, Reject, Sample, TaskName
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


def samples_of(
    clip: Clip, task: TaskName, settings: TaskSettings, ring: mix_vid_qa.Ring, sampled_frames: int, seed: int
) -> tuple[list[Sample], list[Reject]]:
    """The samples that one clip gives of one task, and what had to be set aside.

    Args:
        ring: the clips of the same split, among which MixVidQA looks for partners.

    Raises:
        ValueError: the task has no settings, so it is not to be made.
    """
    match getattr(settings, task):
        case MixVidQASettings() as chosen:
            return mix_vid_qa.make(clip, ring, chosen, sampled_frames, seed)
        case DarkEventInferSettings() as chosen:
            return dark_event_infer.make(clip, chosen, sampled_frames, seed)
        case McqaSettings() as chosen:
            return mcqa.make(clip, chosen, sampled_frames, seed)
        case CaptionSettings() as chosen:
            return caption.make(clip, chosen, sampled_frames, seed)
        case StructuredCaptionSettings() as chosen:
            return structured_caption.make(clip, chosen, sampled_frames, seed)
        case _:
            raise ValueError(f"synthesize.tasks.{task}: not set; give it settings to have it made")


def synthesise(
    clips: Sequence[Clip], task: TaskName, settings: TaskSettings, sampled_frames: int, seed: int
) -> Iterator[tuple[Clip, list[Sample], list[Reject]]]:
    """The samples of one task of clips that are in memory, clip by clip in the order given, with what had to be set aside."""
    rings = {split: mix_vid_qa.ring_of([clip for clip in clips if clip.split == split]) for split in SPLITS}
    for clip in clips:
        yield clip, *samples_of(clip, task, settings, rings[clip.split], sampled_frames, seed)
