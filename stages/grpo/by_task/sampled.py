"""Log-probabilities that transformers' generation samples its tokens with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class SampledLogps:
    """Log-probability of each sampled token, collected while a batch is generated.

    Generation does not hand them out: it would hold the logits of all steps. Each step's logits are
    held here until the next step shows which token was sampled from them.
    """

    def __init__(self, temperature: float, suppressed: Sequence[int]) -> None:
        self._temperature, self._suppressed = temperature, list(suppressed)
        self._taken: list[torch.Tensor] = []
        self._latest_BV: torch.Tensor | None = None

    def __call__(self, _: Any, __: Any, inputs: dict[str, Any], output: Any) -> None:
        """Forward hook of the model that generates."""
        if self._latest_BV is not None:
            self._taken.append(self._of(inputs["input_ids"][:, -1]))
        logits_BV = output.logits[:, -1].float()
        logits_BV = logits_BV.index_fill(
            1, torch.tensor(self._suppressed, dtype=torch.long, device=logits_BV.device), -torch.inf
        )
        self._latest_BV = torch.log_softmax(logits_BV / self._temperature, dim=-1)

    def _of(self, tokens_B: torch.Tensor) -> torch.Tensor:
        assert self._latest_BV is not None
        return self._latest_BV.gather(1, tokens_B[:, None])[:, 0].cpu()

    def rows(self, replies: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of the tokens of each reply of the batch, in its order."""
        steps = max(len(reply) for reply in replies)
        assert self._latest_BV is not None
        last_B = torch.tensor([reply[-1] for reply in replies], device=self._latest_BV.device)
        # The last step's tokens were not shown to the model. Rows that ended earlier do not read
        # theirs.
        logps_TB = torch.stack([*self._taken, self._of(last_B)][:steps])
        return [logps_TB[: len(reply), row].tolist() for row, reply in enumerate(replies)]


@contextmanager
def sampled_logps(model: torch.nn.Module, temperature: float, suppressed: Sequence[int]) -> Iterator[SampledLogps]:
    """Collect the log-probabilities of what ``model`` generates meanwhile.

    Args:
        temperature: that of the sampling.
        suppressed: tokens that are never sampled.
    """
    collected = SampledLogps(temperature, suppressed)
    hook = model.register_forward_hook(collected, with_kwargs=True)
    try:
        yield collected
    finally:
        hook.remove()
