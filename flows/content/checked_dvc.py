"""``dvc`` as the pipeline starts it: the same command line, with every list of files checked before
DVC writes one of them.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Run DVC's command line with the arguments of this process; returns its status."""
    from dvc.cli import main as dvc

    from flows.content.checkouts import watch_lists

    watch_lists()
    return int(dvc(sys.argv[1:]))


if __name__ == "__main__":
    # Started by path, so that the project in the working directory cannot stand in for a package.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from stages.runtime.dispatch import import_quickly, run_and_leave

    import_quickly()
    run_and_leave(lambda: sys.exit(main()))
