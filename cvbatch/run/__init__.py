"""The rooms that know Ray: they wire plain callables into jobs."""
