"""Visualizations of the patches of a backbone, as arrays and as pictures."""
