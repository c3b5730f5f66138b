"""The Parquet files of a prediction, written and read."""
