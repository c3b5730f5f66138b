"""Keras networks and model files."""
