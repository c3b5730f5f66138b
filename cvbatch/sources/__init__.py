"""Input archives: which files belong to a source, and how each format is read."""
