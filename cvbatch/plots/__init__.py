"""Figures of metrics, drawn by matplotlib."""
