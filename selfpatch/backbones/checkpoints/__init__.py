"""Weights files of other programs, brought under timm's names."""
