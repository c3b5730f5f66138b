"""What a task trains on: targets, losses and validation metrics."""
