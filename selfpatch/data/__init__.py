"""From image files to batches of crops: reading, augmentation, loading."""
