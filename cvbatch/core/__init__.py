"""Shared data types, errors, progress, signals and child processes; no I/O library."""
