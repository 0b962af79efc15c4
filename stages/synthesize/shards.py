"""From the manifest to samples: a shard of clips after the other, in worker processes, none held in memory.

A finished shard is a file in the scratch folder, so that a synthesis that was killed goes on where it was; the outs are the shards in
the manifest's order, whatever the number of workers.
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
from stages.domain.statistics.bootstrap import Design, Interval, mean_interval
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

#: Where the manifest's index lies in the scratch folder.
INDEX_FILE = "index.npy"
#: Clips of one shard: a few megabytes of samples.
SHARD_CLIPS = 250
#: A shard takes a second or less; one that takes this long never ends.
SHARD_TIMEOUT_S = 600.0
#: Clips that the text-only guesser is fitted on and tried on, at most: so many tell enough. Fewer events than the last tell nothing.
FITTED_CLIPS, TRIED_CLIPS, MIN_EVENTS = 1000, 200, 20
#: What counts as a right guess outside the generated world (:class:`~stages.lib.judging.rule.RuleJudge`), and the confidence of the interval
#: whose lower end ``synthesize.max_text_only`` is held against. Fixed, not taken from ``judge`` and ``evaluation``: a limit that was set
#: for one recipe then means the same in another, and another judge makes no other samples.
GUESS_SHARES, GUESS_CONFIDENCE = (0.8, 0.4), 0.95
#: So many rejects are sorted in memory, the parts then merged: what was set aside may be many times what memory holds.
SORTED_AT_ONCE = 2_000


class SampleCounts(NamedTuple):
    """Samples by split and task, and what was set aside by reason."""

    samples: dict[Split, dict[TaskName, int]]
    rejects: Counter[str]


class TextOnlyResult(NamedTuple):
    """How often words alone gave a dark event away: share of full marks, of so many held-out events, after seeing so many others."""

    guessed: Interval
    tried: int
    fitted: int


def synthesise_manifest(manifest: Path, settings: SynthesizeParams, seed: int, scratch: Path, out: Path) -> SampleCounts:
    """Write ``<split>/<task>.jsonl`` and ``rejects.jsonl`` (by reason) below ``out`` for all clips of the manifest.

    Args:
        manifest: the rows that ingest wrote.
        scratch: finished shards of an earlier call with the same arguments, which are not made again.

    Raises:
        WorkersError: a shard's process died or hung.
    """
    index = scratch / INDEX_FILE
    total = write_index(manifest, index)
    shards = [(start, min(start + SHARD_CLIPS, total)) for start in range(0, total, SHARD_CLIPS)]
    todo = [shard for shard in shards if not _file(scratch, shard).exists()]
    if len(todo) < len(shards):
        print(f"synthesize: {len(shards) - len(todo):,} of {len(shards):,} shards were made before")
    work = partial(make_shard, manifest=manifest, index=index, settings=settings, seed=seed, scratch=scratch)
    map_whole(
        work,
        todo,
        "synthesize",
        timeout_s=SHARD_TIMEOUT_S,
        name=lambda shard: f"synthesize: clips {shard[0]} to {shard[1] - 1}",
        unit="shard",
    )
    return _join([_file(scratch, shard) for shard in shards], settings.tasks.named, out)


def make_shard(shard: tuple[int, int], manifest: Path, index: Path, settings: SynthesizeParams, seed: int, scratch: Path) -> None:
    """Make the samples of the clips ``[start, stop)`` and keep them as one file; runs in a worker."""
    rows: dict[str, list[str]] = {}
    reasons: Counter[str] = Counter()
    clips = _manifest(manifest, index)
    rings = {split: _ring(manifest, index, split) for split in SPLITS}
    for clip in clips.clips(*shard):
        for task in settings.tasks.named:
            samples, rejects = _made(clip, task, settings, Context(settings.sampled_frames, seed, rings[clip.split]))
            _guarantee(samples)
            for name, made in ((f"{clip.split}/{task}", samples), (f"rejects/{task}", rejects)):
                rows.setdefault(name, []).extend(row.model_dump_json(exclude_none=True) for row in made)
            reasons.update(reject.reason for reject in rejects)
    file = _file(scratch, shard)
    unfinished = file.with_suffix(paths.UNFINISHED)
    unfinished.write_text(json.dumps({"rows": rows, "reasons": reasons}), encoding="utf-8")
    unfinished.replace(file)


def _made(clip: Clip, task: TaskName, settings: SynthesizeParams, context: Context) -> tuple[list[Sample], list[Reject]]:
    """What :func:`samples_of` makes; where questions are written, also mixtures of clips that no template can ask about."""
    samples, rejects = samples_of(clip, task, settings.tasks, context)
    mixing = settings.tasks.of(mix_vid_qa.TASK) if task == mix_vid_qa.NAME else None
    if mixing is None or settings.writer is None or not settings.writer.questions or samples:
        return samples, rejects
    if [reject.reason for reject in rejects] != ["nothing-to-ask"]:
        return samples, rejects
    return mix_vid_qa.make_unwritten(clip, mixing, context)


def _guarantee(samples: Sequence[Sample]) -> None:
    """Assert of every sample what is promised of it: a dark part is seen to be dark."""
    for sample in samples:
        if sample.timeline.dark and not dark_frames(sample):
            raise AssertionError(f"{sample.sample_id}: made although no sampled frame is dark")


def _join(files: Sequence[Path], tasks: Sequence[TaskName], out: Path) -> SampleCounts:
    made = SampleCounts({split: dict.fromkeys(tasks, 0) for split in SPLITS}, Counter())
    with ExitStack() as stack:

        def opened(name: str) -> TextIO:
            path = out / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            return stack.enter_context(path.open("w", encoding="utf-8"))

        written = {(split, task): opened(f"{split}/{task}") for task in tasks for split in SPLITS}
        set_aside = opened("rejects")
        for file in files:
            shard = json.loads(file.read_text(encoding="utf-8"))
            made.rejects.update(shard["reasons"])
            for (split, task), lines in written.items():
                rows = shard["rows"].get(f"{split}/{task}", [])
                made.samples[split][task] += len(rows)
                lines.writelines(row + "\n" for row in rows)
            for task in tasks:
                set_aside.writelines(row + "\n" for row in shard["rows"].get(f"rejects/{task}", []))
    sort_rejects(out / paths.REJECTS_FILE)
    return made


def sort_rejects(file: Path) -> None:
    """Put a file of rejects into the order of :func:`~stages.domain.core.records.reject_order`; :data:`SORTED_AT_ONCE` are held in memory."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder, ExitStack() as parts, file.open("rb") as rows:
        opened: list[BinaryIO] = []
        while some := list(islice(rows, SORTED_AT_ONCE)):
            part = Path(folder) / str(len(opened))
            ordered: list[bytes] = sorted(some, key=_order)
            part.write_bytes(b"".join(ordered))
            opened.append(parts.enter_context(part.open("rb")))
        with (Path(folder) / "whole").open("wb") as out:
            merged: Iterable[bytes] = heapq.merge(*opened, key=_order)
            out.writelines(merged)
        (Path(folder) / "whole").replace(file)


def _order(line: bytes) -> tuple[Any, ...]:
    return reject_order(Reject.model_validate_json(line))


def text_only(manifest: Path, settings: SynthesizeParams, seed: int, scratch: Path) -> TextOnlyResult | None:
    """Try to tell held-out dark events from words alone, after seeing training clips; None where there is too little to learn from.

    A guess is right where the rule judge gives it full marks. Call it after :func:`synthesise_manifest`.
    """
    chosen = settings.tasks.of(dark_event_infer.TASK)
    if chosen is None:
        return None
    with closing(Manifest(manifest, scratch / INDEX_FILE)) as clips:
        return _guessed(clips, chosen, settings.sampled_frames, seed)


def _guessed(clips: Manifest, chosen: DarkEventInferSettings, sampled_frames: int, seed: int) -> TextOnlyResult | None:
    guesser = TextOnlyGuesser(islice(clips.shuffled("train"), FITTED_CLIPS))
    if guesser.fitted_on < MIN_EVENTS:
        return None
    judge = RuleJudge(*GUESS_SHARES)
    context = Context(sampled_frames, seed, ring_of(()))  # nobody is mixed in
    right: list[float] = []
    asked: list[tuple[str, ...]] = []
    held_out = chain(clips.shuffled("validation"), clips.shuffled("test"), islice(clips.shuffled("train"), FITTED_CLIPS, None))
    for clip in islice(held_out, TRIED_CLIPS):
        for sample in dark_event_infer.make(clip, chosen, context)[0]:
            event = next(e for e in clip.events if e.caption == sample.reference and e.span in sample.timeline.dark)
            verdict = judge.covers(sample, guesser.guess(clip, event))
            right.append(float(verdict.score == dark_event_infer.MAXIMUM))
            asked.append(sample.timeline.clip_ids)
    if len(right) < MIN_EVENTS:
        return None
    interval = mean_interval(np.array(right), Design.of(asked), GUESS_CONFIDENCE)
    return TextOnlyResult(interval, len(right), guesser.fitted_on)


def _file(scratch: Path, shard: tuple[int, int]) -> Path:
    return scratch / f"clips-{shard[0]:09d}-{shard[1]:09d}.json"


# A worker makes many shards of one manifest, and is its process' only reader: it is open as long as the process lives.
@lru_cache(maxsize=1)
def _manifest(manifest: Path, index: Path) -> Manifest:
    return Manifest(manifest, index)


@lru_cache(maxsize=len(SPLITS))
def _ring(manifest: Path, index: Path, split: Split) -> Ring:
    return _manifest(manifest, index).ring(split)
