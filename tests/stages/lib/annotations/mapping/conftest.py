"""Reading by a mapping."""

from __future__ import annotations

from tests.support.annotations.mapped import mapped as mapped
