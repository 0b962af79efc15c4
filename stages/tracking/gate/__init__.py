"""The gate: rules and decisions about which candidate becomes champion."""
