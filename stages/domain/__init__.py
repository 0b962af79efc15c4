"""Pure knowledge: no files, no clock, no torch, no global random state."""
