"""Synthesis of samples from the manifest, in shards of clips, by worker processes, without holding
all clips in memory.

A finished shard is a file in the scratch folder, so that a killed synthesis resumes where it
stopped. The outs are the shards in the order of the manifest, independent of the number of workers.
"""

from __future__ import annotations

import heapq
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np

from stages.domain.core.records import SPLITS, Clip, Reject, Sample, Split, TaskName, reject_order
from stages.domain.core.timeline import SampledFrames
from stages.domain.statistics.intervals import Design, Interval, mean_interval
from stages.domain.statistics.metrics import recordings_of
from stages.domain.tasks import dark_event_infer, mix_vid_qa
from stages.domain.tasks.dark_event_infer import Settings as DarkEventInferSettings
from stages.domain.tasks.dark_event_infer import dark_frames
from stages.domain.tasks.partners import Ring, ring_of
from stages.domain.tasks.synthesis import samples_of
from stages.domain.tasks.task import Context
from stages.lib.judging.rule import RuleJudge
from stages.params import SynthesizeParams
from stages.runtime import paths
from stages.runtime.workers import map_whole
from stages.synthesize.manifest import Manifest, write_index
from stages.synthesize.text_only import TextOnlyGuesser

#: File of the manifest's index in the scratch folder.
INDEX_FILE = "index.npy"
#: Number of clips of one shard: a few megabytes of samples.
SHARD_CLIPS = 250
#: Time limit of a shard, which usually takes a second or less.
SHARD_TIMEOUT_S = 600.0
#: Largest numbers of clips for fitting and for testing the text-only guesser, and the smallest
#: number of events for a result.
FITTED_CLIPS, TRIED_CLIPS, MIN_EVENTS = 1000, 200, 20
#: Thresholds of a right guess outside the generated corpus
#: (:class:`~stages.lib.judging.rule.RuleJudge`), and the confidence of the interval whose lower end
#: is compared with ``synthesize.max_text_only``. Fixed, not taken from ``judge`` and
#: ``evaluation``: a limit then means the same in every recipe, and another judge does not change
#: the samples.
GUESS_SHARES, GUESS_CONFIDENCE = (0.8, 0.4), 0.95
#: Number of rejects sorted in memory; the sorted parts are then merged, since all rejects together
#: may exceed the memory.
SORTED_AT_ONCE = 2_000


class SampleCounts(NamedTuple):
    """Number of samples by split and task, and of rejects by reason."""

    samples: dict[Split, dict[TaskName, int]]
    rejects: Counter[str]


class TextOnlyResult(NamedTuple):
    """Result of guessing dark events from text alone.

    Attributes:
        guessed: fraction of right guesses, with its interval.
        tried: number of held-out events.
        fitted: number of events that the guesser was fitted on.
    """

    guessed: Interval
    tried: int
    fitted: int


def synthesise_manifest(
    manifest: Path, settings: SynthesizeParams, seed: int, scratch: Path, out: Path
) -> SampleCounts:
    """Write ``<split>/<task>.jsonl`` and ``rejects.jsonl`` (by reason) below ``out`` for all clips
    of the manifest.

    Args:
        manifest: the rows that ingest wrote.
        scratch: folder of the shards; finished shards of an earlier call with the same arguments
            are reused.

    Raises:
        WorkersError: a shard's process died or hung.
    """
    index = scratch / INDEX_FILE
    total = write_index(manifest, index)
    shards = [(start, min(start + SHARD_CLIPS, total)) for start in range(0, total, SHARD_CLIPS)]
    missing = [shard for shard in shards if not _file(scratch, shard).exists()]
    if len(missing) < len(shards):
        print(f"synthesize: {len(shards) - len(missing):,} of {len(shards):,} shards were made before")
    work = partial(make_shard, manifest=manifest, index=index, settings=settings, seed=seed, scratch=scratch)
    map_whole(
        work,
        missing,
        "synthesize",
        timeout_s=SHARD_TIMEOUT_S,
        name=lambda shard: f"synthesize: clips {shard[0]} to {shard[1] - 1}",
        remedy="mend the cause; the shards before it are kept, so start the stage again",
        unit="shard",
    )
    return _join([_file(scratch, shard) for shard in shards], settings.tasks.named, out)


def make_shard(
    shard: tuple[int, int], manifest: Path, index: Path, settings: SynthesizeParams, seed: int, scratch: Path
) -> None:
    """Make the samples of the clips ``[start, stop)`` and write them as one file; runs in a
    worker."""
    rows: dict[str, list[str]] = {}
    reasons: Counter[str] = Counter()
    clips = _manifest(manifest, index)
    rings = {split: _ring(manifest, index, split) for split in SPLITS}
    for clip in clips.clips(*shard):
        for task in settings.tasks.named:
            samples, rejects = _samples_and_rejects(
                clip, task, settings, Context(settings.sampled_frames, seed, rings[clip.split])
            )
            _guarantee(samples)
            for name, results in ((f"{clip.split}/{task}", samples), (f"rejects/{task}", rejects)):
                rows.setdefault(name, []).extend(row.model_dump_json(exclude_none=True) for row in results)
            reasons.update(reject.reason for reject in rejects)
    file = _file(scratch, shard)
    unfinished = file.with_suffix(paths.UNFINISHED)
    unfinished.write_text(json.dumps({"rows": rows, "reasons": reasons}), encoding="utf-8")
    unfinished.replace(file)


def _samples_and_rejects(
    clip: Clip, task: TaskName, settings: SynthesizeParams, context: Context
) -> tuple[list[Sample], list[Reject]]:
    """Call :func:`samples_of`; if a writer writes questions, also mix clips for which no template
    has a question."""
    samples, rejects = samples_of(clip, task, settings.tasks, context)
    mixing = settings.tasks.of(mix_vid_qa.TASK) if task == mix_vid_qa.NAME else None
    if mixing is None or settings.writer is None or not settings.writer.questions or samples:
        return samples, rejects
    if [reject.reason for reject in rejects] != ["nothing-to-ask"]:
        return samples, rejects
    return mix_vid_qa.make_unwritten(clip, mixing, context)


def _guarantee(samples: Sequence[Sample]) -> None:
    """Assert that at least one sampled frame of every sample with a dark part is dark."""
    for sample in samples:
        if sample.timeline.dark and not dark_frames(sample):
            raise AssertionError(f"{sample.sample_id}: made although no sampled frame is dark")


def _join(files: Sequence[Path], tasks: Sequence[TaskName], out: Path) -> SampleCounts:
    counts = SampleCounts({split: dict.fromkeys(tasks, 0) for split in SPLITS}, Counter())
    with ExitStack() as stack:

        def opened(name: str) -> TextIO:
            path = out / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            return stack.enter_context(path.open("w", encoding="utf-8"))

        written = {(split, task): opened(f"{split}/{task}") for task in tasks for split in SPLITS}
        set_aside = opened("rejects")
        for file in files:
            shard = json.loads(file.read_text(encoding="utf-8"))
            counts.rejects.update(shard["reasons"])
            for (split, task), lines in written.items():
                rows = shard["rows"].get(f"{split}/{task}", [])
                counts.samples[split][task] += len(rows)
                lines.writelines(row + "\n" for row in rows)
            for task in tasks:
                set_aside.writelines(row + "\n" for row in shard["rows"].get(f"rejects/{task}", []))
    sort_rejects(out / paths.REJECTS_FILE)
    return counts


def sort_rejects(file: Path) -> None:
    """Sort a file of rejects by :func:`~stages.domain.core.records.reject_order`, with
    :data:`SORTED_AT_ONCE` rows in memory."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder, ExitStack() as parts, file.open("rb") as rows:
        opened: list[BinaryIO] = []
        while batch := list(islice(rows, SORTED_AT_ONCE)):
            part = Path(folder) / str(len(opened))
            ordered: list[bytes] = sorted(batch, key=_order)
            part.write_bytes(b"".join(ordered))
            opened.append(parts.enter_context(part.open("rb")))
        with (Path(folder) / "whole").open("wb") as out:
            merged: Iterable[bytes] = heapq.merge(*opened, key=_order)
            out.writelines(merged)
        (Path(folder) / "whole").replace(file)


def _order(line: bytes) -> tuple[Any, ...]:
    return reject_order(Reject.model_validate_json(line))


def text_only(manifest: Path, settings: SynthesizeParams, seed: int, scratch: Path) -> TextOnlyResult | None:
    """Guess held-out dark events from text alone, with a guesser fitted on training clips; None if
    there are too few events.

    A guess is right if the rule judge gives it full marks. Call it after
    :func:`synthesise_manifest`.
    """
    task_settings = settings.tasks.of(dark_event_infer.TASK)
    if task_settings is None:
        return None
    with closing(Manifest(manifest, scratch / INDEX_FILE)) as clips:
        return _guess(clips, task_settings, settings.sampled_frames, seed)


def _guess(
    clips: Manifest, task_settings: DarkEventInferSettings, sampled_frames: SampledFrames, seed: int
) -> TextOnlyResult | None:
    guesser = TextOnlyGuesser(islice(clips.shuffled("train"), FITTED_CLIPS))
    if guesser.fitted_on < MIN_EVENTS:
        return None
    judge = RuleJudge(*GUESS_SHARES)
    context = Context(sampled_frames, seed, ring_of(()))  # no partners: nothing is mixed
    right: list[float] = []
    recordings: list[tuple[str, ...]] = []
    held_out = chain(
        clips.shuffled("validation"), clips.shuffled("test"), islice(clips.shuffled("train"), FITTED_CLIPS, None)
    )
    for clip in islice(held_out, TRIED_CLIPS):
        for sample in dark_event_infer.make(clip, task_settings, context)[0]:
            event = next(e for e in clip.events if e.caption == sample.reference and e.span in sample.timeline.dark)
            verdict = judge.covers(sample, guesser.guess(clip, event))
            right.append(float(verdict.score == dark_event_infer.MAXIMUM))
            recordings.append(recordings_of(sample))
    if len(right) < MIN_EVENTS:
        return None
    interval = mean_interval(np.array(right), Design.of(recordings), GUESS_CONFIDENCE)
    return TextOnlyResult(interval, len(right), guesser.fitted_on)


def _file(scratch: Path, shard: tuple[int, int]) -> Path:
    return scratch / f"clips-{shard[0]:09d}-{shard[1]:09d}.json"


# A worker makes many shards of one manifest and is its only reader in the process, so the file
# stays open while the process lives.
@lru_cache(maxsize=1)
def _manifest(manifest: Path, index: Path) -> Manifest:
    return Manifest(manifest, index)


@lru_cache(maxsize=len(SPLITS))
def _ring(manifest: Path, index: Path, split: Split) -> Ring:
    return _manifest(manifest, index).ring(split)
