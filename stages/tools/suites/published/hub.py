"""Annotations on the Hugging Face hub: a dataset at a commit, of which only the annotation files
are downloaded.

Example: ``hf://datasets/OWNER/NAME@<40 hex digits>``, or with a folder or file of it after a slash.
"""

from __future__ import annotations

import re
from pathlib import Path

from stages.tools.suites.published.benchmark import AnnotationError

SCHEME = "hf://"
_DATASET = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})(?:/(?P<inside>.+))?")


def download_annotations(address: str, files: tuple[str, ...]) -> Path:
    """Download the annotations of ``address`` if they are not in the cache. Returns their local
    path.

    Args:
        files: names of annotation files, as
            :attr:`stages.tools.suites.published.benchmark.Benchmark.files`.

    Raises:
        AnnotationError: it does not name a dataset at a commit, or the hub does not provide it.
    """
    match = _DATASET.fullmatch(address)
    if match is None:
        raise AnnotationError(
            "--annotations",
            f"{address!r} names no dataset of the hub at a commit",
            "write hf://datasets/OWNER/NAME@COMMIT"
            " with its 40 hex digits (a branch may be another file tomorrow), or the path of a file or folder",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    inside = match["inside"] or ""
    is_file = "." in Path(inside).name
    patterns = (
        [inside] if is_file else [f"{inside}/{name}".lstrip("/") for file in files for name in (file, f"**/{file}")]
    )
    try:
        folder = snapshot_download(
            match["name"], repo_type="dataset", revision=match["commit"], allow_patterns=patterns
        )
    except (HFValidationError, OSError) as error:
        raise AnnotationError(
            "--annotations",
            f"{address}: the hub does not provide it, and it was not downloaded before"
            f" ({type(error).__name__}: {str(error).splitlines()[0]}); see that the dataset and commit exist, that"
            " HF_HUB_OFFLINE is unset, and for a gated one that HF_TOKEN is set",
            "or download it and pass its folder",
        ) from error
    return Path(folder) / inside
