"""Pixels out of image files."""
