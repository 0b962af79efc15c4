"""``python -m stages VERB [ROW]``: run one stage by itself. DVC calls this; `vidbridge run` and
`dvc repro` are for people."""

from __future__ import annotations

import sys
from functools import partial

from stages.runtime import dispatch, warm

if __name__ == "__main__":
    warm.run_in_warm_process(sys.argv[1:])
    dispatch.run_and_leave(partial(dispatch.run, sys.argv[1:]))
