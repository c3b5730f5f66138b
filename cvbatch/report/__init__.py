"""`cvbatch report`: one HTML page over a result, an evaluation or a training."""
