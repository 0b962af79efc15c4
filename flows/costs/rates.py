"""Declared rates: what a stage takes where no earlier run has measured it, and what it costs in
money. Circumstance, never a parameter.

``.vidbridge/rates.yaml``, or the file that ``VIDBRIDGE_RATES`` names, all of it optional:

    stages:                      # by stage, or by its group
      grpo: {seconds_per_step: 90, gpus: 8}
      sft@cold-start: {seconds_per_step: 4.5, gpus: 8}
      evaluate: {hours: 0.5, gpus: 1, gb: 0.1}
    gpu_hour: 2.20               # in `currency`
    calls_per_1000: {judge: 0.60, held_out_judge: 0.60, writer: 1.10}
    currency: EUR
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows.errors import UsageError
from flows.processes.environment import state
from stages.errors import Fault
from stages.runtime.bounded_yaml import YamlError, read_yaml

VARIABLE = "VIDBRIDGE_RATES"
FILE = "rates.yaml"

#: A judge (``judge``, ``held_out_judge``; one of a task is named after it, ``judge_caption``), or
#: the writer.
Who = Annotated[str, Field(pattern=r"^((held_out_)?judge(_[a-z0-9_]+)?|writer)$")]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageRate(_Declared):
    """Declared cost of one run of a stage. ``seconds_per_step``: of a training; else ``hours`` of
    the whole.
    """

    hours: _Amount | None = None
    seconds_per_step: _Amount | None = None
    #: GPUs that it uses.
    gpus: int = Field(default=0, ge=0)
    #: Size of its outputs, in GB.
    gb: _Amount | None = None

    @model_validator(mode="after")
    def _one_time(self) -> StageRate:
        if self.hours is not None and self.seconds_per_step is not None:
            raise ValueError("hours and seconds_per_step contradict each other; declare one of them")
        if self.gpus and self.hours is None and self.seconds_per_step is None:
            raise ValueError("gpus without a time says nothing; declare hours or seconds_per_step too")
        return self


class Rates(_Declared):
    stages: dict[str, StageRate] = Field(default_factory=dict)
    gpu_hour: _Amount | None = None
    calls_per_1000: dict[Who, _Amount] = Field(default_factory=dict)
    currency: str = Field(default="", max_length=12)

    def price(self, who: str) -> float | None:
        """Money for 1,000 calls; that of a task's judge is the general one's unless declared."""
        general = next((name for name in ("held_out_judge", "judge") if who.startswith(name)), who)
        return self.calls_per_1000.get(who, self.calls_per_1000.get(general))

    def of(self, stage: str) -> StageRate | None:
        """Rate of a stage by its name, else by its group."""
        return self.stages.get(stage) or self.stages.get(stage.partition("@")[0])


def load_rates(root: Path) -> Rates:
    """Read the declared rates; empty if none are declared.

    Raises:
        UsageError: the file cannot be read, or declares something that is not a rate; the message
            names file, field and remedy.
    """
    named = os.environ.get(VARIABLE, "").strip()
    path = Path(named).expanduser() if named else state(root) / FILE
    try:
        table = read_yaml(path)
    except FileNotFoundError as error:
        if not named:
            return Rates()
        raise UsageError(VARIABLE, f"{named!r} does not exist", "correct the path, or unset it") from error
    except YamlError as error:
        raise UsageError.from_error(error, within=VARIABLE if named else FILE) from error
    try:
        return Rates.model_validate(table or {})
    except ValidationError as error:
        raise UsageError.joined(
            UsageError(f"{path}: {'.'.join(map(str, e['loc'])) or 'rates'}", *_complaint(e["type"], e["msg"]))
            for e in error.errors()
        ) from error


def _complaint(kind: str, message: str) -> Fault:
    if kind == "extra_forbidden":
        keys = "stages (hours or seconds_per_step, gpus, gb), gpu_hour, calls_per_1000 and currency"
        return Fault("unknown key", f"it may hold {keys}")
    return Fault(message.removeprefix("Value error, "), "correct it, or remove the line")
