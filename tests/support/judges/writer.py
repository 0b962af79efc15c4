"""Parameters of a writer at the test's endpoint."""

from __future__ import annotations

from typing import Any

from stages.domain.core.records import TaskName
from stages.params import WriterParams
from tests.support.builders import rules

RULE = {"kind": "rule", "full_share": 0.8, "partial_share": 0.4}


def settings(*traced: TaskName, judge: dict[str, Any] | None = None, **changes: Any) -> WriterParams:
    traces = (
        {"tasks": traced, "least": 1.0, "judge": judge or RULE, "rewards": rules().model_dump()} if traced else None
    )
    values = {"model": "author", "revision": "r1", "temperature": 0.7, "max_tokens": 300, "seed": 10, "tries": 3}
    return WriterParams.model_validate({**values, "questions": True, "traces": traces, "events": None, **changes})
