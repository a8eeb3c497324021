"""Files behind URLs, read by ranges through a cache on the disk."""
