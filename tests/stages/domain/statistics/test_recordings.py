"""Units of intervals: recordings, however many clips are parts of one; clips that are their own
recordings give the same bytes as ever."""

from __future__ import annotations

import pytest

from stages.domain.core.records import Clip, Excerpt, Sample, Score
from stages.domain.statistics.metrics import recordings_shown, task_results
from stages.domain.statistics.paired import SampleScore, compare, paired_difference
from stages.domain.tasks.synthesis import synthesise
from stages.lib.evaluation.held_out import evaluation_digest
from stages.params import load_params
from tests.support.builders import clip
from tests.support.checkout import ROOT

SETTINGS = load_params(ROOT / "infra/recipes/smoke.yaml").synthesize.tasks
COLOURS = ("red", "green", "blue", "yellow")


def clips_of(source: str, count: int = 16) -> list[Clip]:
    """Clips whose source is ``source`` with their number ``{n}``, or with that of their recording
    of four, ``{r}``; in the latter case they are parts of one file."""
    return [
        clip(
            n, COLOURS[n % 4], split="test", source_id=source.format(n=n, r=n // 4),
            **({"excerpt": Excerpt(first=16 * (n % 4), file_frames=64)} if "{r}" in source else {}),
        )
        for n in range(count)
    ]  # fmt: skip


def samples_of(task: str, source: str) -> list[Sample]:
    return [sample for _, rows, _ in synthesise(clips_of(source), task, SETTINGS, 8, 7) for sample in rows]


def scores_of(samples: list[Sample], lost: int) -> list[Score]:
    """Scores of a policy that fails at the first ``lost`` clips, whatever the task."""
    return [
        Score(sample_id=s.sample_id, task=s.task, reply="", format_ok=True, value=value, parts={"native": value})
        for s in samples
        for value in [0.5 if s.task == "caption" and n_of(s) % 4 else float(n_of(s) >= lost)]
    ]


def n_of(sample: Sample) -> int:
    return int(sample.clip_id.removeprefix("c"))


@pytest.mark.parametrize("task", ["mcqa", "caption", "dark_event_infer", "mix_vid_qa"])
def test_a_clip_of_its_own_recording_counts_as_before(task: str) -> None:
    own, named = samples_of(task, "c{n}"), samples_of(task, "tape {n}")
    assert {sample.recordings for sample in own} == {None}
    assert all("recordings" not in sample.model_dump_json(exclude_none=True) for sample in own)
    assert [sample.model_copy(update={"recordings": None}) for sample in named] == own
    by_clip = {sample.sample_id: sample.timeline.clip_ids for sample in own}
    scores, others = scores_of(own, 5), scores_of(own, 9)
    for samples in (own, named):
        shown = recordings_shown(samples)
        assert task_results(scores, shown, 0.95) == task_results(scores, by_clip, 0.95)
        assert paired_difference(scores, others, shown, 0.95) == paired_difference(scores, others, by_clip, 0.95)


def test_parts_of_one_recording_are_one_unit() -> None:
    samples = samples_of("mcqa", "tape {r}")
    assert {sample.recordings for sample in samples} == {(f"tape {n}",) for n in range(4)}
    scores = scores_of(samples, 4)  # one recording of four is lost
    by_clip = {sample.sample_id: sample.timeline.clip_ids for sample in samples}
    ours, narrow = (task_results(scores, shown, 0.95)["mcqa"] for shown in (recordings_shown(samples), by_clip))
    assert ours.mean == narrow.mean == 0.75
    assert ours.high - ours.low > 1.5 * (narrow.high - narrow.low)


def test_a_mixture_is_about_the_recordings_of_both_clips() -> None:
    mixed = samples_of("mix_vid_qa", "tape {r}")
    assert mixed
    for sample in mixed:
        assert sample.recordings == tuple(
            f"tape {int(name.removeprefix('c')) // 4}" for name in sample.timeline.clip_ids
        )


def test_scores_by_sample_carry_the_recordings_to_the_gate() -> None:
    samples = samples_of("mcqa", "tape {r}")
    after, before = (
        [SampleScore.of(sample, score) for sample, score in zip(samples, scores_of(samples, lost), strict=True)]
        for lost in (0, 4)
    )
    kept = [SampleScore.model_validate_json(row.model_dump_json(exclude_none=True)) for row in after]
    assert kept == after
    found = compare(kept, before, confidence=0.95).mean
    assert found == paired_difference(scores_of(samples, 0), scores_of(samples, 4), recordings_shown(samples), 0.95)[0]
    assert found.p_value == 1, "of four recordings one was won"
    earlier = [row.model_copy(update={"recordings": None}) for row in before]
    assert compare(kept, earlier, confidence=0.95).mean == found
    assert compare(earlier, kept, confidence=0.95).mean.p_value == 1
    none = [row.model_copy(update={"recordings": None}) for row in after]
    assert compare(none, earlier, confidence=0.95).mean.p_value < 0.5, "four clips of sixteen, where nothing is known"
    own = SampleScore.of(samples_of("mcqa", "c{n}")[0], scores_of(samples, 0)[0])
    assert "recordings" not in own.model_dump_json(exclude_none=True)


def test_recordings_change_no_evaluation() -> None:
    params = load_params(ROOT / "infra/recipes/smoke.yaml")
    one, other = (samples_of("mcqa", source) for source in ("c{n}", "tape {r}"))
    assert evaluation_digest(params, one) == evaluation_digest(params, other)
