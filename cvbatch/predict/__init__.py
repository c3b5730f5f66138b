"""`cvbatch predict`: models over an image archive."""
