"""`cvbatch predict`: run models on an image archive."""
