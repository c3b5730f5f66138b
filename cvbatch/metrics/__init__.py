"""Metrics as sums that merge."""
