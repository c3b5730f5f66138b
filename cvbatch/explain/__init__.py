"""What a network saw: Grad-CAM in the graph of the forward pass."""
