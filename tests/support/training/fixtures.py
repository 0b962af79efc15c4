"""What training starts from here: each family, a saved model with a random start, examples that a
model can learn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.lib.models.load import save_model
from stages.lib.training.mixture import Example
from tests.support.training.tiny import FAMILIES, Seen, examples_of_colours, tiny


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved Qwen2.5-VL with a random start."""
    model, processor = tiny("qwen2_5_vl")
    save_model(model, processor, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def examples() -> list[Example]:
    """24 examples of two tasks; the colour is seen, nowhere said in the prompt."""
    return examples_of_colours(24)


@pytest.fixture
def seen() -> Seen:
    return Seen()
