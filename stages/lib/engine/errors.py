"""Errors of rollout engines."""

from __future__ import annotations

from stages.errors import EndpointError, MachineError


class EngineError(EndpointError, RuntimeError):
    """A rollout engine cannot be used, or did not answer as it should."""


class EngineLost(EngineError):
    """It cannot be reached, ended in the middle of a request, or did not answer in time. Another
    attempt may succeed once it runs again."""


class EngineMismatch(EngineError):
    """It speaks another protocol, is of another version, or is no rollout engine."""


class KeyRefused(EngineError):
    """It does not accept the key."""


class RequestRefused(EngineError):
    """The model cannot do this, such as read a prompt that is too long."""


class PromptMismatch(EngineError):
    """It read other token ids than those that are trained on."""


class StaleWeights(EngineError):
    """It holds other weights than those that should draw."""


class EngineMemory(EngineError):
    """Its memory does not suffice."""


class WeightsError(MachineError):
    """Weights cannot be written for an engine, or be read by it."""


class EngineUnavailable(MachineError, RuntimeError):
    """An engine cannot be started on this machine."""
