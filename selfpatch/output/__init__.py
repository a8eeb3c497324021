"""Files written whole or not at all, checkpoints, locks, metrics and lines on the terminal."""
