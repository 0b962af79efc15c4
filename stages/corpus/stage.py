"""Generate the corpus: H.264 files of moving shapes with their annotations.

Run as ``python -m stages corpus``; writes ``data/corpus`` (``videos/*.mp4`` and
``annotations.jsonl``).
"""

from __future__ import annotations

import shutil
import time
from functools import partial

from stages.corpus.shapes import PlannedClip, annotate, draw_scene, plan, render
from stages.lib.annotations.annotation import Annotation
from stages.lib.annotations.writing import write_annotations
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
        rendered = map_whole(
            partial(_render_clip, params=params),
            clips,
            "corpus",
            timeout_s=TIMEOUT_S,
            name=lambda clip: f"corpus: clip {clip.clip_id}",
            remedy="try fewer processes: VIDBRIDGE_WORKERS=1",
        )
        write_annotations((row for row, _ in rendered), paths.CORPUS / paths.ANNOTATIONS_FILE)
        size_bytes, seconds = sum(size for _, size in rendered), time.monotonic() - started
        counts = {
            "clips": len(rendered),
            "bytes": size_bytes,
            "commands_built_by_ffmpeg_python": len(rendered),
            "seconds": seconds,
        }
        run.summary({name: float(value) for name, value in counts.items()})
    print(
        f"corpus: {len(rendered):,} clips of {params.corpus.frames} frames, {size_bytes / 1e6:.1f} MB in"
        f" {seconds:.1f} s;"
        f" {len(rendered):,} ffmpeg commands built by ffmpeg-python"
    )
    return 0


def _clear() -> None:
    """Delete the files of an earlier run, which would count as videos without annotations."""
    shutil.rmtree(paths.CORPUS / "videos", ignore_errors=True)
    (paths.CORPUS / paths.ANNOTATIONS_FILE).unlink(missing_ok=True)
    (paths.CORPUS / "videos").mkdir(parents=True)


def _render_clip(clip: PlannedClip, params: Params) -> tuple[Annotation, int]:
    """Render, encode and describe one clip; also returns the file's size in bytes."""
    scene = draw_scene(clip, params.corpus, params.seed)
    row = annotate(clip, scene, params.corpus.rate, params.seed)
    file = paths.CORPUS / row.video
    encode(render(scene), params.corpus.rate, file, params.corpus.crf)
    return row, file.stat().st_size
