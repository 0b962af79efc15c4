"""Make the generated corpus: H.264 files of moving shapes and everything that is true of them.

Run as ``python -m stages corpus``; writes ``data/corpus`` (``videos/*.mp4`` and ``annotations.jsonl``).
"""

from __future__ import annotations

import shutil
import time
from functools import partial

from stages.corpus.shapes import PlannedClip, annotate, draw_scene, plan, render
from stages.lib.annotations.annotation import Annotation
from stages.lib.annotations.jsonl import write_annotations
from stages.lib.video.encoder import TIMEOUT_S, encode, ffmpeg_binary
from stages.params import Params, load_params
from stages.runtime import paths
from stages.runtime.workers import map_whole
from stages.tracking.runs.run import stage_run


def main() -> int:
    params = load_params()
    clips = plan(params.corpus, params.seed)
    ffmpeg_binary()
    with stage_run("corpus", params) as run:
        started = time.monotonic()
        _clear()
        made = map_whole(
            partial(_make, params=params),
            clips,
            "corpus",
            timeout_s=TIMEOUT_S,
            name=lambda clip: f"corpus: clip {clip.clip_id}",
            remedy="; try fewer processes: VIDBRIDGE_WORKERS=1",
        )
        write_annotations((row for row, _ in made), paths.CORPUS / paths.ANNOTATIONS_FILE)
        size_bytes, seconds = sum(size for _, size in made), time.monotonic() - started
        counted = {"clips": len(made), "bytes": size_bytes, "commands_built_by_ffmpeg_python": len(made), "seconds": seconds}
        run.summary({name: float(value) for name, value in counted.items()})
    print(
        f"corpus: {len(made):,} clips of {params.corpus.frames} frames, {size_bytes / 1e6:.1f} MB in {seconds:.1f} s;"
        f" {len(made):,} ffmpeg commands built by ffmpeg-python"
    )
    return 0


def _clear() -> None:
    """What an earlier run left would be taken for videos without annotations."""
    shutil.rmtree(paths.CORPUS / "videos", ignore_errors=True)
    (paths.CORPUS / paths.ANNOTATIONS_FILE).unlink(missing_ok=True)
    (paths.CORPUS / "videos").mkdir(parents=True)


def _make(clip: PlannedClip, params: Params) -> tuple[Annotation, int]:
    """Render, encode and describe one clip; also returns the file's size in bytes."""
    scene = draw_scene(clip, params.corpus, params.seed)
    row = annotate(clip, scene, params.corpus.rate, params.seed)
    file = paths.CORPUS / row.video
    encode(render(scene), params.corpus.rate, file, params.corpus.crf)
    return row, file.stat().st_size
