"""What the outputs of each task mean: their shapes in the graph, their reading outside it."""
