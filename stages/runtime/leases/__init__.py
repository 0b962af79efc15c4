"""Leases of folders that several hosts may share."""
