"""Video object segmentation by label propagation on DAVIS."""
