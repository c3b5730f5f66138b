"""A result, an evaluation or a training as one HTML page that needs nothing else."""
