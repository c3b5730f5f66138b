"""Models compiled to programs, programs run on batches of images."""
