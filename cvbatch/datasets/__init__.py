"""Labelled Parquet: schema, reading, training examples, splits."""
