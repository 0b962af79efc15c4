"""Learning rates of parts of the model: groups of the optimiser for the vision tower and its
merger."""

from __future__ import annotations

from typing import Any, Literal

import torch

from stages.params import LearningRates

Part = Literal["text", "vision", "merger"]


class RatesOfParts:
    """Mixin for a trainer of TRL: gives parts of the model their own learning rate.

    Args (beside the trainer's):
        rates: rate of each part that has one; None: all have that of ``args``.
    """

    def __init__(self, *, rates: LearningRates | None = None, **kwargs: Any) -> None:
        self._rates = rates
        #: Part that each group of the optimiser trains, in order.
        self._parts: list[Part] = []
        super().__init__(**kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Split the groups of the stock optimiser, by weight decay, further by part.

        Raises:
            ValueError: nothing is trained of a part that has a rate.
        """
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if self._rates is not None and not self._parts:
            own = {"vision": self._rates.vision, "merger": self._rates.merger}
            part_of_weight = {
                id(weight): part_of(name)
                for name, weight in self.model.named_parameters()  # type: ignore[attr-defined]
            }
            stock = list(optimizer.param_groups)
            optimizer.param_groups.clear()
            # The text's first: the logged rate is that of the first group. No group is empty, which
            # ZeRO does not take.
            for part in ("text", "vision", "merger"):
                for group in stock:
                    members = [weight for weight in group["params"] if part_of_weight[id(weight)] == part]
                    if members:
                        rate = own.get(part) or group["lr"]
                        optimizer.add_param_group({**group, "params": members, "lr": rate})
                        self._parts.append(part)
            for part, rate in own.items():
                if rate is not None and part not in self._parts:
                    raise ValueError(
                        f"learning_rates.{part}: nothing of it is trained; write null, or name layers of it in"
                        " lora.targets"
                    )
        return optimizer

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if self._rates is not None and "learning_rate" in logs:
            rates = dict(zip(self._parts, self.lr_scheduler.get_last_lr(), strict=True))  # type: ignore[attr-defined]
            logs |= {f"learning_rate/{part}": rate for part, rate in rates.items() if part != "text"}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def part_of(name: str) -> Part:
    """Part of the model that a weight belongs to, by its name in any of the three families;
    adapters belong to the part of their layer."""
    if ".visual." not in name:
        return "text"
    # Qwen3-VL has further mergers for the features of tapped layers.
    return "merger" if "merger" in name else "vision"
