"""The training loop and what belongs to it, for pretraining and for heads alike."""
