"""What `selfpatch pretrain` finds out before it trains: settings, sizes, cost, the weights it starts from."""
