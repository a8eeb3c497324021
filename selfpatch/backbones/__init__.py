"""Backbones: one contract, timm's vision transformers and Swin that fulfil it, and ways to get weights into them."""

from selfpatch.optim import late_compiler as late_compiler  # before timm
