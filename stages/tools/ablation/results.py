"""Folder of scores that an ablation leaves, by seed and policy."""

from __future__ import annotations

from pathlib import Path

from stages.domain.core.records import Clip, Sample, Score
from stages.errors import InputError
from stages.lib.rows.jsonl import iterate_rows, read_json, read_rows
from stages.params import load_params
from stages.runtime import paths

IDENTITY_FILE = "identity.json"
CLIPS_FILE = "clips.json"


class Results:
    """Folder of scores: ``<seed>/<policy>/`` with the files of evaluation, and
    ``<seed>/clips.json``.

    A variant's folder also has ``identity.json``, written last: what it was trained with.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, seed: int, policy: str) -> Path:
        return self.folder / str(seed) / policy

    def scores(self, seed: int, policy: str, kind: str = "predictions") -> list[Score]:
        return read_rows(self.of(seed, policy) / f"{kind}.jsonl", Score)

    def identity(self, seed: int, variant: str) -> dict[str, str] | None:
        """Commit and digest of the parameters (:func:`variant_params`) that it was trained with;
        None if it is not complete."""
        file = self.of(seed, variant) / IDENTITY_FILE
        return dict(read_json(file)) if file.exists() else None

    def clips(self, seed: int) -> dict[str, list[str]]:
        """Result of :func:`content_digests` for a seed."""
        file = self.folder / str(seed) / CLIPS_FILE
        digests: dict[str, list[str]] = read_json(file)
        if not all(isinstance(clips, list) for clips in digests.values()):
            raise InputError(
                f"{file}",
                "written by an earlier version, which stored names of clips and not their content, so that"
                " clips shared by seeds are unknown",
                f"delete {self.folder / str(seed)} and run vidbridge ablate",
            )
        return digests


def content_digests(root: Path) -> dict[str, list[str]]:
    """Map sample id to digests of the recordings that it shows, for all held-out samples of a
    project.

    A recording's digest is the first one of its files. Seeds give other clips the same names, and
    may hold out the same clip.
    """
    split = load_params(root / paths.PARAMS_FILE).evaluation.split
    clips = list(iterate_rows(root / paths.CLIPS / paths.MANIFEST_FILE, Clip))
    first: dict[str, str] = {}
    for clip in clips:
        first[clip.source_id] = min(first.get(clip.source_id, clip.sha256), clip.sha256)
    content = {clip.clip_id: first[clip.source_id] for clip in clips}
    samples = [
        sample for file in sorted((root / paths.SAMPLES / split).glob("*.jsonl")) for sample in read_rows(file, Sample)
    ]
    return {sample.sample_id: [content[name] for name in sample.timeline.clip_ids] for sample in samples}
