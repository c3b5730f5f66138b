"""`cvbatch evaluate`: predictions compared with labels."""
