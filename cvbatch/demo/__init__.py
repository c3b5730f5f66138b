"""The demo: an archive drawn by the project, and three small networks that can read it."""
