"""`cvbatch export`: a result in the formats of other tools."""
