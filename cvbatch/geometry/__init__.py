"""Coordinates: boxes, anchors, resize rules, tiles, resampling."""
