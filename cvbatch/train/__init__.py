"""`cvbatch train`: fine-tuning on labelled Parquet."""
