"""Builders of projects and parts, and servers for tests. Test modules import from here and never
from each other."""

from pkgutil import iter_modules

import pytest

# An assertion that fails in a builder shows its values, as one in a test does.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in iter_modules(__path__)))
