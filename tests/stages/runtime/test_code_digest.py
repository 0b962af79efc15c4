"""Edits of a file that change its digest, and edits that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.runtime.code_digest import CodeError, code_digest

CODE = '''"""Says what it is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from stages.domain.tasks.rewards import score
from stages.lib.video import probe as probing

if TYPE_CHECKING:
    from torch import Tensor

#: A bound.
LIMIT = 0.5


class Rule:
    """A rule."""

    share: float = 0.25

    @property
    @math.log
    def worth(self) -> float:
        """Its worth."""
        return score(self.share) * LIMIT + np.pi  # per step


def nothing(tensor: Tensor) -> None:
    """Does nothing."""
'''

SAME = {
    "a comment": ("# per step", "# for each step"),
    "a docstring of the module": ('"""Says what it is."""', '"""Tell what it is."""'),
    "no docstring": ('    """A rule."""\n\n', ""),
    "pass for a docstring": ('    """Does nothing."""', "    pass"),
    "layout": (
        "score(self.share) * LIMIT + np.pi",
        "(\n            (score(self.share) * LIMIT)\n            + np.pi\n        )",
    ),
    "quotes": ('"""A rule."""', "'''A rule.'''"),
    "a module of ours that was moved": (
        "from stages.domain.tasks.rewards import",
        "from stages.domain.tasks.rewards import",
    ),
    "a package of ours that was moved": ("from stages.lib.video import probe", "from stages.lib.video import probe"),
    "another import of ours": (
        "from stages.domain.tasks.rewards import score\n",
        "from stages.domain.tasks.rewards import Unused, score\nimport stages.lib.rows.jsonl\n",
    ),
    "imports in another order": (
        "import math\nfrom typing import TYPE_CHECKING\n",
        "from typing import TYPE_CHECKING\nimport math\n",
    ),
    "an import for types only": (
        "    from torch import Tensor\n",
        "    from torch import Tensor\n    from torch import nn\n",
    ),
}
OTHER = {
    "a constant": ("LIMIT = 0.5", "LIMIT = 0.6"),
    "a whole number for a fraction": ("LIMIT = 0.5", "LIMIT = 1"),
    "a default": ("share: float = 0.25", "share: float = 0.26"),
    "a type that pydantic would check": ("share: float", "share: int"),
    "an operator": ("* LIMIT +", "* LIMIT -"),
    "an order of operations": ("score(self.share) * LIMIT + np.pi", "score(self.share) * (LIMIT + np.pi)"),
    "an order of decorators": ("    @property\n    @math.log\n", "    @math.log\n    @property\n"),
    "a name": ("def nothing", "def nobody"),
    "another module under its name": ("from stages.lib.video import probe as probing", "from stages.lib.video import"
    " reader as probing"),
    "another library under its name": ("import numpy as np", "import torch as np"),
    "another function of a library": ("import math\n", "from cmath import log as math\n"),
    "what only types saw, for all": ("if TYPE_CHECKING:", "if True:"),
}  # fmt: skip


def digest_of(folder: Path, text: str, name: str = "a.py") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return code_digest([folder / name])


@pytest.mark.parametrize("edit", SAME)
def test_prose_layout_and_moves_are_no_other_code(tmp_path: Path, edit: str) -> None:
    assert SAME[edit][0] in CODE
    assert digest_of(tmp_path, CODE.replace(*SAME[edit])) == digest_of(tmp_path, CODE)


@pytest.mark.parametrize("edit", OTHER)
def test_what_acts_is_other_code(tmp_path: Path, edit: str) -> None:
    assert OTHER[edit][0] in CODE
    assert digest_of(tmp_path, CODE.replace(*OTHER[edit])) != digest_of(tmp_path, CODE)


def test_names_and_order_of_files_do_not_count(tmp_path: Path) -> None:
    for name, text in {
        "old/a.py": "A = 1\n",
        "old/b.py": "B = 2\n",
        "new/sub/z.py": "A = 1\n",
        "new/y.py": "B = 2\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "new/sub/__init__.py").write_text('"""A package."""\n')
    (tmp_path / "new/__pycache__").mkdir()
    (tmp_path / "new/__pycache__/y.cpython-311.pyc").write_bytes(b"\0")
    (tmp_path / "new/.y.py.swp").write_bytes(b"\0")
    files = [tmp_path / "old/b.py", tmp_path / "old/a.py"]
    before = code_digest(files)
    assert before == code_digest([tmp_path / "old"]) == code_digest([tmp_path / "new"])
    assert before != code_digest(files[:1])
    assert before != code_digest([*files, files[0]]), "a second copy is more code"
    (tmp_path / "new/rules.txt").write_text("as it is")
    with_text = code_digest([tmp_path / "new"])
    (tmp_path / "new/rules.txt").write_text("as it was")
    assert len({before, with_text, code_digest([tmp_path / "new"])}) == 3, "what is no Python counts byte by byte"


def test_code_that_has_no_digest_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match=r"gone\.py: no such file, .*git checkout"):
        code_digest([tmp_path / "gone.py"])
    (tmp_path / "cut.py").write_text("A = 1\ndef\n")
    with pytest.raises(CodeError, match=r"cut\.py: line 2: not Python .*correct it there"):
        code_digest([tmp_path])
