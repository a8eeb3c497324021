"""Images in tar files of WebDataset's layout, read in place by an index."""
