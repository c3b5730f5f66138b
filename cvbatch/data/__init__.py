"""Images in, rows out: stores, plans, sources, decoding, the schema, the sink."""
