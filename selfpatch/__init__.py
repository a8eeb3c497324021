"""selfpatch: from a folder of unlabeled images to a vision transformer whose patches carry meaning."""
