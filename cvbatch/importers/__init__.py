"""`cvbatch import`: labels of other tools to labelled Parquet."""
