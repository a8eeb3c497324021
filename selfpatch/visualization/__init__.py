"""What the patches of a backbone see, as arrays and as pictures."""
