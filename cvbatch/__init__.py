"""cvbatch: Keras vision models over image archives, on Ray, into Parquet."""

__version__ = "0.1.0"
