"""Parameters of which prompts a GRPO row samples: the share of each task, and dynamic sampling."""

from __future__ import annotations

from pydantic import Field

from stages.params.types import Table


class LiveShare(Table):
    """Moving estimate of the share of groups that are live, which means that their rewards differ:
    ``(L + 1) / (N + 1)``, where L live groups of N are counted and both counts are multiplied by
    ``live_decay`` at each generation. It is 1 at the start."""

    live_decay: float = Field(gt=0, lt=1)
    #: Smallest live share that is reckoned with. It bounds the prompts that are drawn for a share
    #: that is small, or 0.
    least_live: float = Field(gt=0, lt=1)


class LiveRatio(LiveShare):
    """Prompts of a task in proportion to its weight divided by its live share, so that the live
    groups follow the weights; a task's weight is multiplied by at most ``1 / least_live``."""


class Oversampling(LiveShare):
    """Dynamic sampling in rounds of ``missing / live share`` prompts, rounded up: at most
    ``missing / least_live``."""

    #: Most optimiser steps between sampling a live group that its round did not need and training
    #: on it, with the ratio to the policy that sampled it; older ones are dropped. 0: all are
    #: dropped at once, as in DAPO.
    max_lag: int = Field(ge=0)
