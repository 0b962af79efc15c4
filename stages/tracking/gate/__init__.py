"""The gate: when a candidate becomes champion."""
