"""Unsupervised object discovery: LOST."""
