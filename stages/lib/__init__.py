"""Libraries that two stages or more use."""
