"""`cvbatch explain`: activations, filter patterns, DeepDream and Grad-CAM of one network."""
