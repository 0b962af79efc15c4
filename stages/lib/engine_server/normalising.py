"""How vLLM normalises the pixels of a model. Like the server, with the standard library alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def normalises_alike(model: Path) -> bool:
    """Whether a model's folder has the same mean and deviation for pictures and videos: on the
    device, vLLM normalises videos with those for pictures."""
    parts: dict[str, dict[str, Any]] = {"image_processor": {}, "video_processor": {}}
    for name, part in (("preprocessor_config", "image_processor"), ("video_preprocessor_config", "video_processor")):
        if (file := model / f"{name}.json").is_file():
            parts[part] = json.loads(file.read_text())
    if (file := model / "processor_config.json").is_file():
        parts |= {part: own for part, own in json.loads(file.read_text()).items() if part in parts}
    image, video = parts.values()
    return all(image.get(name) == video.get(name) for name in ("image_mean", "image_std"))
