"""Holds what a platform engineer applies against the schemas of what it is applied to."""
