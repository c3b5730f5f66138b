"""Benchmarks: cvbatch, its peers and the compiled programs alone on the same workload."""
