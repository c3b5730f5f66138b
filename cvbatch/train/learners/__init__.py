"""Learners: targets, losses and validation metrics of each task."""
