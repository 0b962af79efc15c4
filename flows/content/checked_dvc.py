"""``dvc`` as the pipeline starts it: the same command line, with every list of files checked before
DVC writes one of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started by path, so that the project in the working directory cannot stand in for a package.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from dvc.cli import main

    from flows.content.checkouts import watch_lists

    watch_lists()
    sys.exit(main(sys.argv[1:]))
