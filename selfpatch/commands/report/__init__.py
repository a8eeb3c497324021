"""What the page of each command shows, and `selfpatch watch`, which serves that of a run while it trains."""
