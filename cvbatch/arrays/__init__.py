"""NumPy and OpenCV alone: pure functions from arrays to arrays, without state."""
