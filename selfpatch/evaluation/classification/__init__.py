"""Image classification: k-NN and linear."""
