"""timm's vision transformers as `Tokens`, and the ways to get weights into them."""
