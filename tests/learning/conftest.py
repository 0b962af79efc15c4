"""Fixtures of the learning tests; what they are made of stands in tiny_parts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tiny_parts import examples, family, folder, seen

__all__ = ["examples", "family", "folder", "seen"]
