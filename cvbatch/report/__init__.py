"""`cvbatch report`: one HTML page about a prediction, an evaluation or a training."""
