"""Job files: pydantic schemas and the loader."""
