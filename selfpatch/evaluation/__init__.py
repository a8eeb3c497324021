"""Dense benchmarks of frozen features: a task knows `images -> Tokens` and nothing else of the model."""
