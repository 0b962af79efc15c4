"""Process that measures parts: it says on which card, then names of parts come in, a line each, and
what was found goes out, a JSON object a line. It ends with its input."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import traceback
import warnings

from benchmarks.gpu.parts import BY_NAME


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    # Libraries print; they are not to write between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    print(json.dumps(_about()), file=answers, flush=True)
    for name in map(str.strip, sys.stdin):
        began = time.monotonic()
        try:
            rows = [[row.what, dict(row.values)] for row in BY_NAME[name].run(dry=arguments.dry)]
            answer: dict[str, object] = {"rows": rows}
        except Exception as error:  # the page says it, and other parts go on
            traceback.print_exc()
            answer = {"failed": _reason(error)}
        print(json.dumps({**answer, "seconds": time.monotonic() - began}), file=answers, flush=True)
    return 0


def _about() -> dict[str, str | None]:
    """The card, and the CUDA of this torch; no card: None."""
    import torch

    if not torch.cuda.is_available():
        return {"card": None, "cuda": torch.version.cuda}
    card = torch.cuda.get_device_properties(0)
    return {"card": f"{card.name} ({card.total_memory / 2**30:.0f} GiB)", "cuda": torch.version.cuda}


def _reason(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({first})"
    return f"{type(error).__name__}: {first}"


if __name__ == "__main__":
    sys.exit(main())
