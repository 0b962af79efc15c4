"""Safe loading of models as data: no code of a folder or of the hub runs, no pickle is opened, and
no prompt offers to.

The arguments for transformers (:data:`NO_CODE`, :data:`NO_PICKLE`) apply to the hub, too. A folder
is checked first, so that its fault is reported in one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.errors import Fault

#: Arguments of every ``from_pretrained``. Without them transformers asks on a terminal whether to
#: run code, and waits for the answer.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
#: Arguments for loading weights.
NO_PICKLE: dict[str, Any] = {"use_safetensors": True}

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "*.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack")
_CONVERT = (
    "convert them where you trust their maker: AutoModelForImageTextToText.from_pretrained(OLD).save_pretrained(NEW)"
)


def fault_of_files(folder: Path) -> Fault | None:
    """Reason why a folder cannot be loaded as a model without running its code; None if it can."""
    from transformers import CONFIG_MAPPING, __version__

    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (ValueError, RecursionError) as error:
        return Fault(f"{CONFIG} is not JSON ({type(error).__name__})", "copy the folder again")
    if not isinstance(config, dict):
        return Fault(f"{CONFIG} is not a table but {type(config).__name__}", "copy the folder again")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        code = ", and code that came with the model is not run (auto_map)" if "auto_map" in config else ""
        return Fault(
            f"{CONFIG}: model_type {kind!r:.80} is unknown to transformers {__version__}{code}",
            "take a model of a known type",
        )
    if not any(folder.glob(WEIGHTS)):
        if pickled := next((file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))), None):
            return Fault(
                f"its weights are pickled ({pickled}), which can run code, and only safetensors are read", _CONVERT
            )
        return Fault(f"holds no weights ({WEIGHTS})", "copy the folder again")
    return next(_faults_of_index(folder), None)


def _faults_of_index(folder: Path) -> Iterator[Fault]:
    """Check the index of a large model's parts, which may name any file: a pickle, or one outside
    the folder."""
    if not (folder / INDEX).is_file():
        return
    try:
        parts = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield Fault(f"{INDEX} lists no parts ({type(error).__name__})", "copy the folder again")
        return
    for part in parts:
        if not isinstance(part, str) or "/" in part or "\\" in part or not part.endswith(".safetensors"):
            yield Fault(f"{INDEX}: {part!r:.80} is not a safetensors file of the folder", _CONVERT)


def first_sentence(error: Exception) -> str:
    """Shorten a library's message about a model that needs its own code, without its advice to run
    it."""
    text = " ".join(str(error).split())
    return "it needs code of its own, which is not run" if "trust_remote_code" in text else text[:300]
