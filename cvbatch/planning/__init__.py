"""Chunks of a source: planned, pending and done."""
