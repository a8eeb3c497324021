"""What a run does between its steps: scores and pictures, checkpoints, the best of them."""
