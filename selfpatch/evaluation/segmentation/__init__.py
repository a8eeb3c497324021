"""Semantic segmentation: in-context, linear, overclustering, Semantic FPN and UPerNet."""
