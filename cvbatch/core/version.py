"""The version of cvbatch: part of program keys and of Parquet metadata."""

__version__ = "0.1.0"
