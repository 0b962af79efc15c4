"""What `vidbridge doctor` checks."""
