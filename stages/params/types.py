"""Types shared by several tables of ``params.yaml``, and the error of an invalid file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from stages.errors import InputError

#: Names of rows become parts of paths and commands, so only these characters are allowed.
RowName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$")]
Fraction01 = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$")]
Precision = Literal["fp32", "bf16"]


class ParamsError(InputError, ValueError):
    """``params.yaml`` is invalid; each line of the message names field, value and remedy."""

    status = 2


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
