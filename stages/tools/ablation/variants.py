"""Parameters of each variant: a whole ``params.yaml``, so that it is a pipeline of its own."""

from __future__ import annotations

from typing import Any

from stages.params import GrpoRow, Params, parse_params
from stages.runtime import paths


def start_of(params: Params) -> str:
    """Name of the row that all variants start from."""
    return next(iter(params.variants.values())).init


def chain_of(params: Params) -> list[str]:
    """Rows that lead to the start of all variants, the start first and ``base`` last."""
    chain = [start_of(params)]
    while chain[-1] != "base":
        chain.append(params.rows[chain[-1]].init)
    return chain


def variant_params(params: Params, seed: int, variant: str) -> dict[str, Any]:
    """Build a whole ``params.yaml`` with one variant behind the rows that lead to its start, which
    is evaluated too."""
    row, chain = params.variants[variant], chain_of(params)
    table = params.model_dump(mode="json")
    changed = row.model_dump(mode="json")
    kind = "grpo" if isinstance(row, GrpoRow) else "sft"
    like = params.ablation.variants[variant].like if params.ablation else variant
    for name in ("sft", "grpo", "difficulty"):
        table[name] = {key: value for key, value in table[name].items() if key in chain}
    table[kind][variant] = changed
    if kind == "grpo" and changed["samples"] != paths.SAMPLES.as_posix():
        table["difficulty"][variant] = params.difficulty[like].model_dump(mode="json") | {"init": row.init}
    table |= {"recipe": f"{params.recipe}-ablation", "seed": seed, "ablation": None}
    table["evaluation"]["of"] = [row.init, variant]
    table["gate"]["registered_model"] += "-ablation"
    parse_params(table, f"seed {seed}, {variant}")
    return table
