"""The same work done by cvbatch, by its peers and by bare programs, measured side by side."""
