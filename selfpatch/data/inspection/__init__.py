"""Every image of a folder read once, and what its file, its pixels and its likeness to others say."""
