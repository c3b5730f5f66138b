"""`cvbatch demo`: a rendered archive and three small networks trained for it."""
