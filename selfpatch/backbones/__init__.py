"""Backbones: one contract, timm's vision transformers and Swin that fulfil it, and ways to get weights into them."""
