"""`cvbatch demo`: a rendered image archive, and three small networks trained on such images."""
