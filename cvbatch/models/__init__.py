"""Keras networks and their files: blocks, builders, the zoo, class cards."""
